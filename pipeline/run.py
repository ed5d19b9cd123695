"""The run folder: what a stage wrote, whether it still holds, and who works in it.

A stage is complete when its ``stage.json`` exists, and only then: it is written last, atomically, with the stage's
fingerprint (the config values it read, hashes of its inputs, the outputs of the stages before it). One process at a
time holds a run folder, through a lock that the kernel releases when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any

from pipeline.errors import RegrowError
from pipeline.files import hash_file, read_json, require_writable, take_lock, write_json

#: Looks at a lock before it counts as held: ``regrow status`` holds it for a moment.
LOOKS = 4
#: What every record of a stage has, of any release.
RECORD = {"stage": str, "fingerprint": dict, "result": dict, "outputs": dict, "seconds": (int, float), "finished": str}


class Run:
    """A run folder by name: paths, stage records, the log, and cached hashes of large inputs."""

    def __init__(self, folder: Path):
        # "." and ".." have no name of their own.
        self.folder = folder
        if folder.name in ("", ".."):
            # Where the working directory is gone, so is the folder.
            with contextlib.suppress(FileNotFoundError):
                self.folder = Path(os.path.abspath(folder))
        self._hashes: dict[str, str] | None = None
        self._hashes_kept = 0.0
        # Open from its first line on; each is there when it has been written.
        self._log: FileIO | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def stage(self, name: str) -> Path:
        """The folder of a stage, which need not exist."""
        return self.folder / name

    def log(self, line: str) -> None:
        """Append a line (or several), with the time, to log.txt."""
        if self._log is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._log = FileIO(self.folder / "log.txt", "a")
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())

    def record(self, stage: str) -> dict[str, Any] | None:
        """The stage's record, or None when the stage is not complete; RegrowError where the file is not a record."""
        path = self.stage(stage) / "stage.json"
        if not path.exists():
            return None
        record = read_json(path)
        known = record if isinstance(record, dict) else {}
        if odd := [name for name, kind in RECORD.items() if not isinstance(known.get(name), kind)]:
            raise RegrowError(
                f"{path}: not a stage's record (missing, or of another kind: {', '.join(odd)}); move it aside and "
                "redo its stage"
            )
        return record

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
        known = self._known_hashes()
        status = path.stat()
        stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        if stamp not in known:
            known[stamp] = hash_file(path)
            # Not after each of 59,166 shards: the whole file is written every time.
            if time.monotonic() - self._hashes_kept > 5:
                self.keep_hashes()
        return known[stamp]

    def _known_hashes(self) -> dict[str, str]:
        if self._hashes is None:
            store = self.folder / "hashes.json"
            self._hashes = read_json(store) if store.exists() else {}
        return self._hashes

    def learn_hashes(self, other: Run) -> None:
        """Know what another run has hashed: the same inputs need not be read again."""
        known = self._known_hashes()
        known |= {**other._known_hashes(), **known}

    def keep_hashes(self) -> None:
        """Write what ``hash_of`` has learnt."""
        if self._hashes is not None:
            write_json(self.folder / "hashes.json", self._hashes)
            self._hashes_kept = time.monotonic()

    def outputs(self, stage: str) -> dict[str, dict[str, Any]]:
        """Path -> size and sha256 of every file in a stage's folder that is part of its result."""
        root = self.stage(stage)
        return {
            name: {"bytes": (root / name).stat().st_size, "sha256": hash_file(root / name)}
            for name in self.results(stage)
        }

    def results(self, stage: str) -> list[str]:
        """The paths, within a stage's folder, of every file that is part of its result."""
        root = self.stage(stage)
        _, of_another = _OF_ANOTHER.get(stage, ("", ()))
        files = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
        return [path.as_posix() for path in files if not _passing(path) and path.parts[0] not in of_another]

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Write the stage's record: from here on the stage is complete."""
        write_json(self.stage(stage) / "stage.json", record)

    def unfinish(self, stage: str) -> None:
        """Take the stage's record away: it is no longer complete, and its files stay."""
        (self.stage(stage) / "stage.json").unlink()

    def set_aside(self, stages: list[str], into: Path | None = None) -> list[Path]:
        """Move the folders of ``stages`` to aside/NUMBER/, or to the one that is named; nothing is deleted. Returns the
        new places.

        What stands in one and speaks of a stage that is not among them stays. A copy of config.yaml goes along."""
        present = [self.stage(name) for name in stages if self._going(name, stages)]
        if not present:
            return []
        taken = into is None or any((into / folder.name).exists() for folder in present)
        target = self.new_aside() if taken else into
        # Last stage first: a crash in between never leaves a later stage standing on a missing earlier one.
        for folder in reversed(present):
            going = self._going(folder.name, stages)
            if len(going) == len(list(folder.iterdir())):
                folder.rename(target / folder.name)
                continue
            (target / folder.name).mkdir()
            # The record first: without it the stage is not complete, whatever a crash leaves of it.
            for path in sorted(going, key=lambda path: (path.name != "stage.json", path.name)):
                path.rename(target / folder.name / path.name)
        return [target / folder.name for folder in present]

    def new_aside(self) -> Path:
        """A folder for what is set aside next, which holds a copy of config.yaml."""
        target = self.folder / "aside" / f"{1 + max((int(folder.name) for folder in self.asides()), default=0):03d}"
        target.mkdir(parents=True)
        if (config := self.folder / "config.yaml").exists():
            shutil.copyfile(config, target / config.name)
        return target

    def asides(self) -> list[Path]:
        """The folders of what was set aside, the oldest first."""
        found = [path for path in (self.folder / "aside").glob("*") if path.name.isdigit()]
        return sorted(found, key=lambda path: int(path.name))

    def bring_back(self, aside: Path, stages: list[str]) -> None:
        """Move the folders of ``stages`` out of one of ``asides`` back to where they stood, where none of the stages
        stands now; the aside goes when it is empty.

        What speaks of a stage that is not among them stays. RegrowError where a file of it would take another's place.
        """
        # First stage first: a crash in between never leaves a later stage standing on a missing earlier one.
        for folder in [aside / name for name in stages]:
            for path in self.stage(folder.name).glob("*"):
                if (folder / path.name).exists():
                    raise RegrowError(
                        f"{path} would take the place of {folder / path.name}; move one of them elsewhere"
                    )
                path.rename(folder / path.name)
            # In one move, over an empty folder too.
            folder.rename(self.stage(folder.name))
        if {path.name for path in aside.iterdir()} <= {"config.yaml"}:
            shutil.rmtree(aside)

    def _going(self, stage: str, stages: list[str]) -> list[Path]:
        """What of a stage's folder is moved aside with ``stages``."""
        owner, names = _OF_ANOTHER.get(stage, (stage, ()))
        folder = self.stage(stage)
        return [path for path in folder.glob("*") if owner in stages or path.name not in names]

    def holder(self) -> str | None:
        """Who works in the folder now (host and pid of the command), or None. RegrowError where that cannot be told."""
        path = self.folder / ".lock"
        if not path.exists():
            return None
        with path.open(encoding="utf-8") as file:
            if take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB, self.folder):
                return None
            return file.read().strip() or "another process"

    def require_free(self) -> None:
        """RegrowError where another command works in the folder, or where nothing can be written; leaves no trace."""
        require_writable(self.folder, "run.folder")
        if (holder := self.holder()) is not None:
            raise self._in_use(holder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder; RegrowError names host and pid of whoever holds it already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+", encoding="utf-8") as file:
            if not self._take(file):
                file.seek(0)
                raise self._in_use(file.read().strip() or "another process")
            file.truncate(0)
            file.write(f"host {socket.gethostname()} pid {os.getpid()}")
            file.flush()
            try:
                yield
            finally:
                # Who is killed leaves his name.
                file.truncate(0)

    def _take(self, file: IO[str]) -> bool:
        for _ in range(LOOKS):
            if take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, self.folder):
                return True
            time.sleep(0.05)
        return False

    def _in_use(self, holder: str) -> RegrowError:
        return RegrowError(f"run {self.name} is in use by {holder}; a run has one command at a time")


#: In a stage's folder: its starts, and how they failed.
HISTORY = "history.jsonl"
#: Progress, checkpoints, logs, what boards keep, and how a start of training ended: they serve a resume or a look, and
#: are no part of a stage's result.
_PASSING = {
    "stage.json",
    HISTORY,
    "progress",
    "checkpoints",
    "stacks",
    "tensorboard",
    "wandb",
    "DONE",
    "REQUEUE",
    "STOP",
}
#: Of a stage's folder what speaks of another stage's results, and grows without the stage: what was judged of the
#: exports of training. It is no part of the stage's result, and stays where the stage alone is done again.
_OF_ANOTHER = {"evaluate": ("train", ("curve", "curve.jsonl", "curve.discarded.jsonl"))}


def _passing(relative: Path) -> bool:
    if relative.parts[0] == "tasks" and relative.suffix == ".yaml":
        # Definitions of tasks name files of this machine: elsewhere the same result would have another hash.
        return True
    hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
    # Of steps that a resume did again.
    discarded = relative.name.endswith(".discarded.jsonl")
    return hidden or discarded or relative.parts[0] in _PASSING
