"""A session: one process's part of a training run, from the newest checkpoint to the last export.

It holds what travels together (engine, rows, position, folder) and knows how each thing is done between steps; when it
is done, the stage says. How a model is judged is handed in: training does not know evaluation.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.data.stream.loader import RowStream, load_rows
from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import Identity, LaneCursor, from_json, skipped_parts, to_json
from pipeline.launch import die_with_parent
from pipeline.life import Teller
from pipeline.stopping import hand_on_to_rank
from pipeline.training.bad_steps import BadSteps
from pipeline.training.batches import Sample
from pipeline.training.checkpoint import folder_of, step_of
from pipeline.training.engine import Engine
from pipeline.training.export import Origin, write_export
from pipeline.training.loop import Position, Step, train_steps
from pipeline.training.metrics import WINDOW, LineFile, cut_after, read_lines, step_line, step_record
from pipeline.training.restoring import load_checkpoint
from pipeline.training.saving import Checkpoints
from pipeline.training.watchdog import Watchdog

#: Files with a line for a step. Behind a checkpoint they are cut when a run goes on from it.
LINES = ("metrics.jsonl", "held_out.jsonl", "tasks.jsonl", "samples.jsonl", "bad_steps.jsonl")
#: Fields of held_out.jsonl, behind held_out_, and what a judge of held-out rows calls them.
HELD_OUT = {"loss": "loss", "perplexity": "value", "stderr": "stderr"}


@dataclass(frozen=True)
class Judges:
    """How the engine's model is judged between steps, on every process; None: it is not. ``held_out`` gives perplexity
    and loss of held-out rows, ``tasks`` what a task of each name says, at a step. Both call the function that they are
    handed, on every process as often, between their forwards: what it raises gives the judgement up."""

    held_out: Callable[[Engine, Callable[[], None]], dict[str, Any]] | None = None
    tasks: Callable[[Engine, int, Callable[[], None]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Rows:
    """The training rows of a run: what fixes them, the shards' names by source, how this process reads them from a
    position on, with how many reader processes, and whether each document of a row is read alone."""

    identity: Identity
    names: list[list[str]]
    behind: Callable[[Position], RowStream]
    workers: int
    within_documents: bool


def begin_reader() -> None:
    """In a reader process, first of all: it ends with its rank, and a signal to it is one to its rank."""
    die_with_parent()
    hand_on_to_rank()


class Session:
    """A training run as one process sees it. Every process makes one, and calls the same methods in the same order.

    ``folder`` takes exports/ and the line files, ``checkpoints`` what is needed to go on; ``origin`` is the model that
    training began with.
    ``judges`` measure the engine's model between steps. ``mfu`` gives the utilisation at a number of tokens a second of
    all processes.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        folder: Path,
        origin: Origin,
        checkpoints: Checkpoints,
        *,
        judges: Judges,
        mfu: Callable[[float], float | None],
        say: Teller,
    ):
        self.engine, self.rows, self.folder, self.origin, self.checkpoints = engine, rows, folder, origin, checkpoints
        self.judges, self.mfu, self.say = judges, mfu, say
        self.world, self.position = engine.world, Position()
        #: The step of the newest checkpoint; 0 where there is none, and none is needed to begin again.
        self.saved = 0
        # What only counts on the first process, which writes the lines.
        self._recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._left_out: set[str] = set()
        self._lines = {name: LineFile(folder / name) for name in LINES}
        #: Told each line that is written, with its file's name; on the first process.
        self.show: Callable[[str, dict[str, Any]], None] = lambda name, line: None

    def resume(self, found: tuple[Path, dict[str, Any]] | None, seed: int) -> None:
        """Go to where ``found`` (of ``newest_checkpoint``) stands, or to the start; later lines are cut off. ``seed``
        is that of random numbers on other processes than it was written by."""
        if found is not None:
            checkpoint, state = found
            load_checkpoint(checkpoint, self.engine, self.world, seed)
            # Its own lanes alone: the cursors of others would be kept as they are now, and the next checkpoint would
            # mix them with what the others have moved on to.
            lanes = from_json(state["lanes"])
            own = {lane: cursor for lane, cursor in lanes.items() if lane % self.world.size == self.world.rank}
            self.position = Position(state["step"], state["tokens"], own)
            self.saved = self.position.step
        if self.world.rank == 0:
            cut = [cut_after(self.folder / name, self.position.step) for name in LINES]
            if cut[0]:
                self.say(f"{cut[0]} steps behind the checkpoint are done again")
            self._recent.extend(read_lines(self.folder / "metrics.jsonl"))
            # Exports of steps that are done again may be made by another layout then.
            for path in (self.folder / "exports").glob("step-*"):
                if step_of(path) > self.position.step:
                    shutil.rmtree(path)

    def steps(
        self,
        count: int,
        rate: Callable[[int], float],
        bad_steps: BadSteps,
        watchdog: Watchdog,
        *,
        log_samples: bool = False,
    ) -> Iterator[Step]:
        """Train to step ``count`` at ``rate``, yielding after each step; its line is written by then. ``bad_steps``, as
        it is before the first step of a run, decides which are skipped; ``watchdog`` is told what is at work.

        Raises RegrowError on every process where the checkpoint under way could not be written.
        """

        def at(what: str) -> None:
            watchdog.beat(what)
            self.say.at(what)

        self.world.be_patient()
        self.position.bad_steps = self._recalled(bad_steps)
        stream = self.rows.behind(self.position)
        taken = train_steps(
            self.engine,
            load_rows(stream, self.rows.workers, begin_reader),
            self.position,
            steps=count,
            rate=rate,
            within_documents=self.rows.within_documents,
            on_rows=partial(self._log_rows, stream, log_samples),
            at=at,
        )
        for step in self._noted(taken):
            watchdog.between_steps(f"what is done behind step {step.step}")
            if self.world.rank == 0:
                used = self.mfu(step.tokens_per_second)
                self._recent.append(step_record(step, used, take_peak_memory(self.world.device)))
                self._log("metrics.jsonl", self._recent[-1])
                self.say(step_line(step, count, self._recent))
                for line in () if self.engine.compiled is None else self.engine.compiled.news():
                    self.say(line)
            self.checkpoints.look()
            yield step

    def evaluate(self, between: Callable[[], None] = lambda: None) -> None:
        """Judge the weights as they are, into held_out.jsonl, unless that was done before at this step."""
        if self.judges.held_out is None or self._judged("held_out.jsonl"):
            return
        with self.engine.precision():
            result = self.judges.held_out(self.engine, between)
        if self.world.rank == 0:
            judged = {f"held_out_{name}": result[of] for name, of in HELD_OUT.items()}
            self._log_here("held_out.jsonl", {**judged, "rows": result["rows"]})
            self.say(f"step {self.position.step}: held-out perplexity {result['value']:.2f}")

    def ask_tasks(self, between: Callable[[], None] = lambda: None) -> None:
        """Ask the weights as they are, into tasks.jsonl, unless that was done before at this step."""
        if self.judges.tasks is None or self._judged("tasks.jsonl"):
            return
        with self.engine.precision():
            found = self.judges.tasks(self.engine, self.position.step, between)
        if self.world.rank == 0:
            self._log_here("tasks.jsonl", {"tasks": found})
            figures = ", ".join(f"{task} {entry['value']:.3f}" for task, entry in found.items())
            self.say(f"step {self.position.step}: {figures}")

    def _judged(self, name: str) -> bool:
        """Whether this step has a line in a file, on every process."""
        lines = read_lines(self.folder / name) if self.world.rank == 0 else []
        return self.world.broadcast(any(line["step"] == self.position.step for line in lines))

    def checkpoint(self) -> None:
        """Write all that is needed to go on from here; it is complete when ``await_checkpoint`` returns, or the next
        one begins."""
        cursors = self.cursors()
        for line in skipped_parts(cursors, self.rows.names):
            if line not in self._left_out:
                self._left_out.add(line)
                self.say(line)
        state = {
            "step": self.position.step,
            "tokens": self.position.tokens,
            "identity": asdict(self.rows.identity),
            "lanes": to_json(cursors),
        }
        # The lines of its steps are on the disk before it is.
        for lines in self._lines.values():
            lines.sync()
        self.checkpoints.save(self.position.step, state)
        self.saved = self.position.step

    def leave(self) -> None:
        """On the way out, behind an error: the checkpoint that is being written is as good as any, and is ended."""
        self.checkpoints.leave()

    def await_checkpoint(self) -> None:
        """Wait until the checkpoint under way is complete, if there is one."""
        self.checkpoints.wait()

    def cursors(self) -> dict[int, LaneCursor]:
        """Where every lane that was read stands, of all processes; each calls it."""
        return {lane: cursor for share in self.world.gather(self.position.cursors) for lane, cursor in share.items()}

    def export(self) -> Path:
        """Write the weights as they are as a plain Hugging Face folder, and return it."""
        return write_export(self.engine, self.origin, self._export)

    @property
    def exported(self) -> bool:
        """Whether the export of this step is there, on every process; each asks."""
        return self.world.on_first(self._export.is_dir)

    @property
    def _export(self) -> Path:
        return folder_of(self.folder / "exports", self.position.step)

    def close(self) -> None:
        """Give up the engine, and the files that are open, once the last checkpoint is complete."""
        self.await_checkpoint()
        self.checkpoints.close()
        self.engine.close()
        for lines in self._lines.values():
            lines.close()

    def _noted(self, taken: Iterator[Step]) -> Iterator[Step]:
        """The same steps; an error says in which of them it was met."""
        try:
            yield from taken
        except RuntimeError as error:
            error.add_note(f"in step {self.position.step + 1}")
            raise

    def _log_rows(self, stream: RowStream, all_steps: bool, step: int, rows: list[Row], skipped: str | None) -> None:
        """What a step took, row by row in their order: of ``all_steps`` into samples.jsonl, of a step that was skipped,
        with the places where its rows' documents are found, into bad_steps.jsonl."""
        if all_steps:
            samples = self._in_order([(row.index, list(astuple(Sample.of(row)))) for row in rows])
            self._log("samples.jsonl", {"step": step, "rows": samples})
        if skipped is not None:
            found = [(row.index, {**asdict(Sample.of(row)), **asdict(stream.end_of(row))}) for row in rows]
            self._log("bad_steps.jsonl", {"step": step, "reason": skipped, "rows": self._in_order(found)})

    def _in_order(self, entries: list[tuple[int, Any]]) -> list[Any]:
        """The entries of all processes, each (a row's number, what is said of it), by these numbers."""
        together = (entry for share in self.world.gather(entries) for entry in share)
        return [said for _, said in sorted(together, key=lambda entry: entry[0])]

    def _log_here(self, name: str, line: dict[str, Any]) -> None:
        """A line on the weights as they are."""
        self._log(name, {"step": self.position.step, "tokens": self.position.tokens, **line})

    def _log(self, name: str, line: dict[str, Any]) -> None:
        if self.world.rank == 0:
            self._lines[name].append(line)
            self.show(name, line)

    def _recalled(self, bad_steps: BadSteps) -> BadSteps:
        """The same as behind the steps of metrics.jsonl, on every process."""
        lines = None
        if self.world.rank == 0:
            lines = [
                {"loss": line["loss"], "skipped": line.get("skipped", False)}
                for line in read_lines(self.folder / "metrics.jsonl")
            ]
        bad_steps.recall(self.world.broadcast(lines))
        return bad_steps


def take_peak_memory(device: torch.device) -> int | None:
    """The most bytes that were allocated on this process's GPU since this was last asked; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
