"""Fetching: a local copy of a shard that holds exactly the manifest's bytes, had ahead of use and dropped after it.

A remote shard is downloaded to a temporary file, checked against the manifest, and only then given its name in the
cache folder; local shards are checked where they lie. The processes of a machine may share one cache folder: locks
tell which copies are in use and which temporary files are left from the dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from pipeline.data.damage import DamagedShard
from pipeline.data.remote.locks import delete_unless_in_use, is_at, locked
from pipeline.data.remote.row_groups import NotParquet, fetch_row_group
from pipeline.data.remote.servers import STALLED, Patience, ShortBody, locate
from pipeline.data.remote.space import TEMPORARY, copy_size, taken_room
from pipeline.data.remote.verifying import checked_local, require_unchanged, unlike_first, why_wrong
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError
from pipeline.files import take_lock


class ShardCache:
    """Local, verified copies of shards; remote ones are fetched ahead, verified, and dropped after use.

    folder: where copies of remote shards lie. limit: bytes that the copies of all processes that are given this limit
    may take (None: what the disk has); copies that nobody reads make room. attempts, wait: see ``Patience``.
    ahead: background threads at most. stalled: seconds without a byte after which a server counts as stalled. ``say``
    gets a line at every wait, also from the background threads. Pickled (to a DataLoader worker) or forked, it starts
    without threads and holds nothing; under spawn ``say`` must be picklable.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int | None = None,
        attempts: int = 8,
        wait: float = 1.0,
        ahead: int = 4,
        stalled: float = STALLED,
        say: Callable[[str], None] = print,
    ):
        self._settings = {
            "folder": Path(folder),
            "limit": limit,
            "attempts": attempts,
            "wait": wait,
            "ahead": ahead,
            "stalled": stalled,
            "say": say,
        }
        self.folder = Path(folder)
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._held: dict[Path, tuple[IO[bytes], int]] = {}
        self._futures: dict[Path, Future[Path]] = {}
        self._waiting: deque[tuple[Future[Path], Shard, int | None]] = deque()
        self._threads = 0
        self._swept = False

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self.__init__(**settings)  # type: ignore[misc]

    def saying(self, say: Callable[[str], None]) -> ShardCache:
        """Another cache over the same folder with the same settings, whose lines go to ``say``."""
        return ShardCache(**{**self._settings, "say": say})

    def open(self, shard: Shard, group: int | None = None) -> Path:
        """A local path with exactly the manifest's bytes of ``shard``; stays until as many drops as opens.

        ``group``: of a remote parquet shard, this row group alone, as a small parquet file (columns of text and
        domain). Blocks, and waits a server's bad moments out. Raises DamagedShard where the bytes are not those of
        the manifest (of a download: twice), RegrowError where the shard cannot be had, or has no room in the limit.
        """
        if shard.kind == "local":
            return checked_local(shard)
        self._enter()
        copy = self._copy(shard, group)
        while True:
            with self._lock:
                if copy in self._held and copy.exists():
                    file, uses = self._held[copy]
                    self._held[copy] = (file, uses + 1)
                    return copy
                future = self._futures.pop(copy, None)
            if not self._was_fetched(future):
                self._deliver(shard, group)
            file = locked(copy, "r+b", fcntl.LOCK_SH)
            if file is not None:
                with self._lock:
                    _, uses = self._held.get(copy, (None, 0))
                    self._held[copy] = (file, uses + 1)
                return copy

    def ahead(self, shard: Shard, group: int | None = None) -> None:
        """Start fetching in a background thread what ``open`` will ask for; its errors come out of ``open``."""
        if shard.kind == "local":
            return
        self._enter()
        copy = self._copy(shard, group)
        with self._lock:
            if copy in self._futures or copy in self._held or copy.exists():
                return
            self._futures[copy] = future = Future()
            self._waiting.append((future, shard, group))
            if self._threads < self._settings["ahead"]:
                self._threads += 1
                # A daemon: a download under way must not keep a process from ending.
                threading.Thread(target=self._fetch_waiting, name="fetch ahead", daemon=True).start()

    def drop(self, shard: Shard, group: int | None = None) -> None:
        """Give back what one ``open`` gave; the last one to do so, in any process, deletes a remote shard's copy."""
        if shard.kind == "local":
            return
        self._enter()
        copy = self._copy(shard, group)
        with self._lock:
            future = self._futures.pop(copy, None)
            if future is not None:
                future.cancel()
            file, uses = self._held.pop(copy, (None, 0))
            if uses > 1:
                self._held[copy] = (file, uses - 1)
                return
        with contextlib.suppress(FileNotFoundError), file or copy.open("r+b") as file:
            if not take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, self.folder):
                # Another process reads it and will delete it. A forked child may share the lock: give it up for both.
                fcntl.flock(file, fcntl.LOCK_UN)
                return
            if is_at(file, copy):
                copy.unlink()

    def _enter(self) -> None:
        if self._process != os.getpid():  # Forked: the threads stayed behind, and what is held is the parent's.
            self._begin()
        if not self._swept:
            self._swept = True
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.iterdir():
                if TEMPORARY.fullmatch(left.name):
                    delete_unless_in_use(left)

    def _copy(self, shard: Shard, group: int | None) -> Path:
        """Where the copy lies: a name that no other content has, with the ending that tells readers the format."""
        pinned = (shard.kind, shard.address, shard.revision, shard.bytes, shard.sha256, shard.etag, shard.text_key)
        digest = hashlib.sha256(repr(pinned).encode()).hexdigest()[:20]
        part = "" if group is None else f"-{group}"
        return self.folder / f"{digest}{part}-{Path(shard.name).name[-100:]}"

    def _was_fetched(self, future: Future[Path] | None) -> bool:
        """Whether a background thread fetched it; what waits in its queue still is taken out of there."""
        if future is None or future.cancel():
            return False
        try:
            future.result()
        except DamagedShard:
            raise
        except RegrowError:
            return False  # It may have been long ago, and the server be back by now.
        return True

    def _fetch_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                future, shard, group = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._deliver(shard, group))
                except BaseException as error:
                    future.set_exception(error)

    def _deliver(self, shard: Shard, group: int | None) -> Path:
        """Fetch unless the copy is there, whole and right."""
        copy = self._copy(shard, group)
        # The name tells the others how much room it will take.
        part = copy.with_name(f"{copy.name}.{copy_size(shard, group)}.part")
        while True:
            if copy.exists():
                if self._is_right(shard, group, copy):
                    return copy
                continue
            file = locked(part, "ab", fcntl.LOCK_EX)
            if file is None:
                continue
            try:
                if copy.exists():  # Another process or thread fetched it while this one waited for the lock.
                    part.unlink()
                    continue
                self._make_room(shard, group)
                self._download(shard, group, copy, part)
                part.rename(copy)
                return copy
            except BaseException as error:
                part.unlink(missing_ok=True)
                if isinstance(error, OSError):
                    raise RegrowError(f"{copy}: cannot be written ({error.strerror})") from None
                raise
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # Not by closing alone: a child that was forked has it open too.
                file.close()

    def _is_right(self, shard: Shard, group: int | None, copy: Path) -> bool:
        """Whether the copy that is there is whole and right; a wrong one is deleted. False too where it just went."""
        file = locked(copy, "r+b", fcntl.LOCK_SH)  # Nobody drops it while it is read.
        if file is None:
            return False
        with file:
            # The copy of a row group got its name when it had been decoded; its own hash is nowhere.
            right = group is not None or why_wrong(shard, copy, _first_hash(copy)) is None
            if not right and is_at(file, copy):
                copy.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)
        return right

    def _make_room(self, shard: Shard, group: int | None) -> None:
        """Keep the folder within the limit, which its temporary files tell already: the oldest copies that nobody
        reads go. RegrowError where that is not enough."""
        limit = self._settings["limit"]
        if limit is None:
            return
        taken = taken_room(self.folder)
        total = sum(size for _, size in taken.values())
        for path in sorted(taken, key=lambda path: taken[path]):
            if total > limit and delete_unless_in_use(path):
                total -= taken[path][1]
        if total > limit:
            raise RegrowError(
                f"no room for shard {shard.name} in the cache {self.folder}: with it the copies in use take {total:,} "
                f"bytes, and data.cache_size is {limit:,}; raise it, or use fewer data.lanes or data.tokenise_processes"
            )

    def _download(self, shard: Shard, group: int | None, copy: Path, part: Path) -> None:
        """The bytes of a shard or row group into ``part``, verified; wrong ones are fetched once more."""
        what = f"shard {shard.name}" + ("" if group is None else f", row group {group}")
        settings = self._settings

        def fetched() -> str | None:
            if group is not None:
                try:
                    digest = fetch_row_group(shard, group, part, settings["stalled"])
                except NotParquet as error:
                    return str(error)
                return unlike_first(digest, _first_hash(copy))
            file_system, path = locate(shard, settings["stalled"])
            file_system.get_file(path, str(part))
            size = part.stat().st_size
            if size < shard.bytes:
                raise ShortBody(f"{size} of {shard.bytes} bytes came")
            return why_wrong(shard, part, _first_hash(copy))

        def patient(call: Callable[[], Any]) -> Any:
            return Patience(settings["attempts"], settings["wait"], settings["say"])(what, call)

        if shard.kind == "url":
            patient(lambda: require_unchanged(shard, settings["stalled"]))
        wrong = patient(fetched)
        if wrong is not None:
            settings["say"](f"{what}: {wrong}; fetching it once more")
            wrong = patient(fetched)
        if wrong is not None:
            raise DamagedShard(f"{what}: {wrong}, twice; replace it at its source, or list it anew with stage data")


def _first_hash(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.sha256")
