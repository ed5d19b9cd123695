"""A run that is watched from outside, by what it says and what it writes, and killed where it has come to a place."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from time import monotonic, sleep

import psutil
from commands import kill_tree, start

from campaign.cases import PHASES, STEPS, Kill

ROOT = Path(__file__).parent.parent.parent
#: In the environment of all that a start begins: the run's folder.
MARKER = "REGROW_FAULTS_RUN"
#: Seconds that a command may take; that its processes may outlive it; between looks, from far and from near.
LIMIT, PATIENCE, LOOK, CLOSE_LOOK = 600, 20, 0.005, 0.001
SAID = {
    re.compile(r"\[train\] started"): "started",
    re.compile(r"\[train\] step (\d+) of"): "step {}",
    re.compile(r"\[train\] step (\d+): held-out"): "judged {}",
}


class Start:
    """One start of a command on a run. ``seen`` holds when what was first seen, in seconds from the start; ``status``
    is the exit status, None where it did not end in time."""

    def __init__(self, command: list[str], run: Path):
        self.train, self.seen = run / "train", dict[str, float]()
        self._exports = set(self.train.glob("exports/step-*"))
        run.parent.mkdir(parents=True, exist_ok=True)
        self._said = run.parent / f"output-{len(list(run.parent.glob('output-*.txt'))) + 1}.txt"
        os.environ[MARKER] = str(run)
        # Into a file: nobody reads a pipe meanwhile, and a full one would stop the command.
        with self._said.open("w") as output:
            self._process, self._begin = start(command, ROOT, output), monotonic()
        self._reading = self._said.open("rb")
        self._line, self._family = b"", dict[str, list[psutil.Process]]()
        self.status: int | None = None

    def text(self) -> str:
        """All that was printed."""
        return self._said.read_text(errors="replace")

    def last_words(self) -> str:
        """The last line that was printed."""
        return self.text().rstrip().rpartition("\n")[2]

    @property
    def step(self) -> int:
        """The last step that was said."""
        return max((int(name.split()[1]) for name in self.seen if name.startswith("step ")), default=0)

    def follow(self, kill: Kill | None = None, pace: dict[str, float] | None = None) -> bool:
        """Watch the command until it ends, or the kill is done; whether it was. To be ended (``end``) either way."""
        while self._process.poll() is None and self._seconds() < LIMIT:
            self._look()
            if kill is not None and self._is_due(kill, pace or {}) and self._send(kill):
                return True
            # Looking closely takes a twentieth of a core.
            close = "started" in self.seen and (kill is None or kill.step <= self.step + 1)
            sleep(CLOSE_LOOK if close else LOOK)
        return False

    def end(self) -> float:
        """Wait for the command's end, which is forced where it does not come; the seconds that this took."""
        begin = monotonic()
        while self._process.poll() is None and monotonic() - begin < LIMIT:
            sleep(LOOK)
        seconds = monotonic() - begin
        self.status = self._process.poll()
        self._look()
        self._reading.close()
        self.seen.setdefault("ended", self._seconds())
        kill_tree(self._process)
        return seconds

    def _seconds(self) -> float:
        return monotonic() - self._begin

    def _note(self, name: str) -> None:
        self.seen.setdefault(name, self._seconds())

    def _look(self) -> None:
        """Note what is new: lines that were printed, folders that are written."""
        *lines, self._line = (self._line + self._reading.read()).split(b"\n")
        for line in lines:
            for pattern, name in SAID.items():
                if found := pattern.match(line.decode(errors="replace")):
                    self._note(name.format(*found.groups()))
                    self._family.clear()
        step = self.step
        if step == 0:
            return
        # Training may go on while a checkpoint is written.
        for saving in {step} | {step for step in PHASES["save"] if f"save {step}" in self.seen}:
            if f"complete {saving}" not in self.seen and files(self._saved(saving)) is not None:
                self._note(f"save {saving}")
                if (self._saved(saving) / "COMPLETE").exists():
                    self._note(f"complete {saving}")
        if files(self._scratch(step)) is not None:
            self._note(f"export {step}")
        elif f"export {step}" in self.seen or self._exported(step):
            # On a busy machine it may have come and gone between two looks.
            self._note(f"export {step}")
            self._note(f"exported {step}")

    def _saved(self, step: int) -> Path:
        return self.train / "checkpoints" / f"step-{step:08d}"

    def _scratch(self, step: int) -> Path:
        return self.train / "exports" / f".step-{step:08d}.new"

    def _exported(self, step: int) -> bool:
        target = self.train / "exports" / f"step-{step:08d}"
        return target not in self._exports and target.exists()

    def _is_due(self, kill: Kill, pace: dict[str, float]) -> bool:
        """Whether the command has come to where it is to be killed."""
        if kill.phase == "start":
            return self._seconds() >= kill.part * pace["start"] or "started" in self.seen
        if kill.phase == "opening":
            return self._is_behind("started", kill.part * pace["opening"]) or self.step > 0
        if kill.phase == "closing":
            return self._is_behind(f"exported {STEPS}", kill.part * pace["closing"])
        # A signal that saves may have taken the run further than where it was to be met.
        met = (min(step, STEPS) for step in PHASES[kill.phase] if step >= kill.step)
        step = next((step for step in met if f"step {step}" in self.seen), None)
        if step is None:
            return False
        if kill.phase == "step":
            return self._is_behind(f"step {step}", kill.part * pace["step"]) or self.step > step
        if kill.phase == "evaluation":
            return self._is_behind(f"step {step}", kill.part * pace["evaluation"]) or f"judged {step}" in self.seen
        if kill.phase == "writing":
            return self._is_behind(f"save {step}", kill.part * pace["save"]) or f"complete {step}" in self.seen
        return self._has_written(step, kill, pace)

    def _has_written(self, step: int, kill: Kill, pace: dict[str, float]) -> bool:
        """Whether as many files of a save or an export are there as the kill's part says."""
        exporting = kill.phase == "export"
        there = files(self._scratch(step) if exporting else self._saved(step))
        count = pace[f"{kill.phase} files"]
        # In the last part all files are there: then what was before is taken away, or the folder is moved into place.
        place = kill.part * (count + 1)
        done = f"{'exported' if exporting else 'complete'} {step}" in self.seen
        if done or (there is not None and there >= int(place)):
            self._note("written")
        return self._is_behind("written", place % 1 * pace[kill.phase] / count)

    def _is_behind(self, name: str, seconds: float) -> bool:
        return name in self.seen and self._seconds() >= self.seen[name] + seconds

    def _send(self, kill: Kill) -> bool:
        """Send the signal; False where its receiver is not there yet."""
        receivers = self._receivers(kill)
        for process in receivers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.Signals[kill.signal])
        return bool(receivers)

    def _receivers(self, kill: Kill) -> list[psutil.Process]:
        if not self._family.get(kill.receiver):
            self._family = family(self._process.pid)
        found = self._family.get(kill.receiver, [])
        return [found[int(kill.part * 1000) % len(found)]] if found and kill.receiver == "reader" else found


def files(folder: Path) -> int | None:
    """How many files a folder has, None where it is not there."""
    try:
        return len(os.listdir(folder))
    except FileNotFoundError:
        return None


def family(pid: int) -> dict[str, list[psutil.Process]]:
    """The processes of a command by what they are."""
    found: dict[str, list[psutil.Process]] = {"all": []}
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(pid)
        found |= {"command": [command], "all": [command, *command.children(recursive=True)]}
    ranks = set()
    for process in found["all"][1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            name = process.name()
            # A reader is a fork of its rank.
            if process.ppid() in ranks:
                found.setdefault("reader", []).append(process)
            elif name == "regrow-agent":
                found["agent"] = [process]
            elif name.startswith("regrow-rank-"):
                ranks.add(process.pid)
                found[name.removeprefix("regrow-").replace("-", " ")] = [process]
    return found


def left_running(run: Path) -> list[str]:
    """What still runs of a run whose command has ended, PATIENCE seconds later: nothing, or it is ended here."""
    end = monotonic() + PATIENCE
    while found := [process for process in psutil.process_iter() if _belongs(process, run)]:
        if monotonic() > end:
            break
        sleep(0.02)
    named = [str(process) for process in found]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return named


def _belongs(process: psutil.Process, run: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARKER) == str(run)
    except psutil.Error:
        return False


def pace(seen: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase of a training that was followed to its end."""
    steps = {int(name.split()[1]) for name in seen if name.startswith("step ")}

    def mean(begin: str, end: str) -> float:
        spans = [
            seen[f"{end} {n}"] - seen[f"{begin} {n}"] for n in steps if f"{begin} {n}" in seen and f"{end} {n}" in seen
        ]
        return sum(spans) / len(spans)

    return {
        "start": seen["started"],
        "opening": seen["step 1"] - seen["started"],
        "step": seen["step 2"] - seen["step 1"],
        "evaluation": mean("step", "judged"),
        "save": mean("save", "complete"),
        "export": mean("export", "exported"),
        # The last of it is the end of processes that have done all.
        "closing": (seen["ended"] - seen[f"exported {STEPS}"]) / 2,
    }
