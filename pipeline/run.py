"""The run folder: what a stage wrote, whether it still holds, and who works in it.

A stage is complete when its ``stage.json`` exists, and only then: it is written last, atomically, with the stage's
fingerprint (the config values it read, hashes of its inputs, the outputs of the stages before it). One process at a
time holds a run folder, through a lock that the kernel releases when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RegrowError(Exception):
    """A failure that its message explains to the person who meets it: what, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class's name; without the query of a URL, which may be a key."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", line)


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader sees the old file or the new one, also after a crash.

    Raises RegrowError when the disk is full or the folder cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RegrowError(f"{path}: cannot be written ({error.strerror}); nothing was lost") from None


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in ``path``; RegrowError names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RegrowError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise RegrowError(f"{path}: damaged, not valid JSON ({error}); move it aside and redo its stage") from None


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """RegrowError unless ``folder``'s disk has ``needed`` bytes free (and a tenth more)."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise RegrowError(
            f"no space for {what}: {needed / 1e9:.2f} GB needed in {folder}, {free / 1e9:.2f} GB free; "
            "free some space and start the same command again, it goes on from here"
        )


class Run:
    """A run folder by name: paths, stage records, the log, and cached hashes of large inputs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._hashes: dict[str, str] | None = None
        self._hashes_kept = 0.0

    @property
    def name(self) -> str:
        return self.folder.name

    def stage(self, name: str) -> Path:
        """The folder of a stage, which need not exist."""
        return self.folder / name

    def log(self, line: str) -> None:
        """Append one line, with the time, to log.txt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def record(self, stage: str) -> dict[str, Any] | None:
        """The stage's record, or None when the stage is not complete."""
        path = self.stage(stage) / "stage.json"
        return read_json(path) if path.exists() else None

    def require(self, stage: str, config_path: str | Path) -> dict[str, Any]:
        """The record of a stage that must be complete; RegrowError names the command that makes it so."""
        record = self.record(stage)
        if record is None:
            raise RegrowError(
                f"run {self.name}: stage {stage} is not done yet; first run: regrow run {config_path} "
                f"run.name={self.name} --until {stage}"
            )
        return record

    def hash_of(self, path: Path) -> str:
        """sha256 of an input file; remembered in hashes.json by path, size and times.

        The time of change tells a file that was put in another's place with its modification time kept.
        """
        if self._hashes is None:
            store = self.folder / "hashes.json"
            self._hashes = read_json(store) if store.exists() else {}
        status = path.stat()
        stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        if stamp not in self._hashes:
            self._hashes[stamp] = hash_file(path)
            # Not after each of 59,166 shards: the whole file is written every time.
            if time.monotonic() - self._hashes_kept > 5:
                self.keep_hashes()
        return self._hashes[stamp]

    def keep_hashes(self) -> None:
        """Write what ``hash_of`` has learnt."""
        if self._hashes is not None:
            write_json(self.folder / "hashes.json", self._hashes)
            self._hashes_kept = time.monotonic()

    def outputs(self, stage: str) -> dict[str, dict[str, Any]]:
        """Path -> size and sha256 of every file in a stage's folder that is part of its result."""
        root = self.stage(stage)
        kept = {}
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            if path.is_file() and not _passing(relative):
                kept[relative.as_posix()] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        return kept

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Write the stage's record: from here on the stage is complete."""
        write_json(self.stage(stage) / "stage.json", record)

    def set_aside(self, stages: list[str]) -> list[Path]:
        """Move the folders of ``stages`` to aside/NUMBER/; nothing is deleted. Returns the new places."""
        present = [self.stage(name) for name in stages if self.stage(name).exists()]
        if not present:
            return []
        number = 1 + max((int(p.name) for p in (self.folder / "aside").glob("*") if p.name.isdigit()), default=0)
        target = self.folder / "aside" / f"{number:03d}"
        target.mkdir(parents=True)
        # Last stage first: a crash in between never leaves a later stage standing on a missing earlier one.
        for folder in reversed(present):
            folder.rename(target / folder.name)
        return [target / folder.name for folder in present]

    def holder(self) -> str | None:
        """Host and pid of the command that works in the folder now, or None."""
        path = self.folder / ".lock"
        if not path.exists():
            return None
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return f"in use by {file.read().strip()}"
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder; RegrowError names host and pid of whoever holds it already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".lock"
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "an unknown process"
                raise RegrowError(f"run {self.name} is in use by {holder}; a run has one command at a time") from None
            file.truncate(0)
            file.write(f"host {socket.gethostname()} pid {os.getpid()}")
            file.flush()
            yield
            file.truncate(0)


#: Progress, checkpoints and logs: they serve a resume and are no part of a stage's result.
_PASSING = {"stage.json", "progress", "checkpoints", "metrics.discarded.jsonl"}


def _passing(relative: Path) -> bool:
    return relative.parts[0] in _PASSING or any(part.startswith(".") for part in relative.parts)


def compare_fingerprints(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, one phrase each; empty when they are equal."""
    differences = []
    for part in ("config", "inputs", "upstream"):
        before, after = old.get(part, {}), new.get(part, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                if part == "config":
                    was, now = (json.dumps(side.get(name), ensure_ascii=False) for side in (before, after))
                    differences.append(f"{name}: was {was}, is {now}")
                else:
                    kind = {"inputs": "input", "upstream": "output of an earlier stage,"}[part]
                    differences.append(f"{kind} {name} changed")
    if old.get("format") != new.get("format"):
        differences.append(f"format of the stage: was {old.get('format')}, is {new.get('format')}")
    return differences
