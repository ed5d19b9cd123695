"""A session: one process's part of a training run, from the newest checkpoint to the last export.

It holds what travels together (engine, rows, position, folder) and knows how each thing is done between steps; when it
is done, the stage says. How a model is judged is handed in: training does not know evaluation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.data.stream.loader import RowStream, load_rows
from pipeline.data.stream.position import Identity, LaneCursor, from_json, skipped_parts, to_json
from pipeline.launch import die_with_parent
from pipeline.life import Teller
from pipeline.training.checkpoint import Layout, folder_of, load_checkpoint, save_checkpoint
from pipeline.training.engine import Engine
from pipeline.training.export import Origin, write_export
from pipeline.training.loop import Position, Sample, Step, train_steps
from pipeline.training.metrics import WINDOW, LineFile, cut_after, read_lines, step_line, step_record

#: Files with a line for a step. Behind a checkpoint they are cut when a run goes on from it.
LINES = ("metrics.jsonl", "held_out.jsonl", "tasks.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class Judges:
    """How the engine's model is judged between steps, on every process; None: it is not. ``held_out`` gives perplexity
    and loss of held-out rows, ``tasks`` what a task of each name says, at a step."""

    held_out: Callable[[Engine], dict[str, Any]] | None = None
    tasks: Callable[[Engine, int], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Rows:
    """The training rows of a run: what fixes them, the shards' names by source, how this process reads them from a
    position on, with how many reader processes, and whether each document of a row is read alone."""

    identity: Identity
    names: list[list[str]]
    behind: Callable[[Position], RowStream]
    workers: int
    within_documents: bool


class Session:
    """A training run as one process sees it. Every process makes one, and calls the same methods in the same order.

    ``folder`` takes checkpoints/, exports/ and the line files; ``origin`` is the model that training began with.
    ``judges`` measure the engine's model between steps. ``mfu`` gives the utilisation at a number of tokens a second of
    all processes.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        folder: Path,
        origin: Origin,
        layout: Layout,
        *,
        judges: Judges,
        mfu: Callable[[float], float | None],
        say: Teller,
    ):
        self.engine, self.rows, self.folder, self.origin, self.layout = engine, rows, folder, origin, layout
        self.judges, self.mfu, self.say = judges, mfu, say
        self.world, self.position = engine.world, Position()
        # What only counts on the first process, which writes the lines.
        self._recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._left_out: set[str] = set()
        self._lines = {name: LineFile(folder / name) for name in LINES}

    def resume(self, found: tuple[Path, dict[str, Any]] | None) -> None:
        """Go to where ``found`` (of ``newest_checkpoint``) stands, or to the start; later lines are cut off."""
        if found is not None:
            checkpoint, state = found
            load_checkpoint(checkpoint, self.engine, self.world)
            # Its own lanes alone: the cursors of others would be kept as they are now, and the next checkpoint would
            # mix them with what the others have moved on to.
            lanes = from_json(state["lanes"])
            own = {lane: cursor for lane, cursor in lanes.items() if lane % self.world.size == self.world.rank}
            self.position = Position(state["step"], state["tokens"], own)
        if self.world.rank == 0:
            cut = [cut_after(self.folder / name, self.position.step) for name in LINES]
            if cut[0]:
                self.say(f"{cut[0]} steps behind the checkpoint are done again")
            self._recent.extend(read_lines(self.folder / "metrics.jsonl"))

    def steps(self, count: int, rate: Callable[[int], float], log_samples: bool = False) -> Iterator[Step]:
        """Train to step ``count`` at ``rate``, yielding after each step; its line is written by then."""
        taken = train_steps(
            self.engine,
            load_rows(self.rows.behind(self.position), self.rows.workers, die_with_parent),
            self.position,
            steps=count,
            rate=rate,
            within_documents=self.rows.within_documents,
            on_samples=self._log_samples if log_samples else None,
            at=self.say.at,
        )
        for step in taken:
            if self.world.rank == 0:
                used = self.mfu(step.tokens_per_second)
                self._recent.append(step_record(step, used, take_peak_memory(self.world.device)))
                self._lines["metrics.jsonl"].append(self._recent[-1])
                self.say(step_line(step, count, self._recent))
                for line in () if self.engine.compiled is None else self.engine.compiled.news():
                    self.say(line)
            yield step

    def evaluate(self) -> None:
        """Judge the weights as they are, into held_out.jsonl, unless that was done before at this step."""
        if self.judges.held_out is None or self._judged("held_out.jsonl"):
            return
        with self.engine.precision():
            result = self.judges.held_out(self.engine)
        if self.world.rank == 0:
            line = {
                "step": self.position.step,
                "tokens": self.position.tokens,
                "held_out_loss": result["loss"],
                "held_out_perplexity": result["value"],
                "held_out_stderr": result["stderr"],
                "rows": result["rows"],
            }
            self._lines["held_out.jsonl"].append(line)
            self.say(f"step {self.position.step}: held-out perplexity {result['value']:.2f}")

    def ask_tasks(self) -> None:
        """Ask the weights as they are, into tasks.jsonl, unless that was done before at this step."""
        if self.judges.tasks is None or self._judged("tasks.jsonl"):
            return
        with self.engine.precision():
            found = self.judges.tasks(self.engine, self.position.step)
        if self.world.rank == 0:
            line = {"step": self.position.step, "tokens": self.position.tokens, "tasks": found}
            self._lines["tasks.jsonl"].append(line)
            figures = ", ".join(f"{task} {entry['value']:.3f}" for task, entry in found.items())
            self.say(f"step {self.position.step}: {figures}")

    def _judged(self, name: str) -> bool:
        """Whether this step has a line in a file, on every process."""
        lines = read_lines(self.folder / name) if self.world.rank == 0 else []
        return self.world.broadcast(any(line["step"] == self.position.step for line in lines))

    def checkpoint(self, keep: int) -> Path:
        """Write all that is needed to go on from here; the ``keep`` newest checkpoints stay."""
        cursors = self.cursors()
        for line in skipped_parts(cursors, self.rows.names):
            if line not in self._left_out:
                self._left_out.add(line)
                self.say(line)
        state = {
            "step": self.position.step,
            "tokens": self.position.tokens,
            "layout": asdict(self.layout),
            "identity": asdict(self.rows.identity),
            "lanes": to_json(cursors),
        }
        return save_checkpoint(
            self.folder / "checkpoints", self.engine, self.world, step=self.position.step, state=state, keep=keep
        )

    def cursors(self) -> dict[int, LaneCursor]:
        """Where every lane that was read stands, of all processes; each calls it."""
        return {lane: cursor for share in self.world.gather(self.position.cursors) for lane, cursor in share.items()}

    def export(self) -> Path:
        """Write the weights as they are as a plain Hugging Face folder, and return it."""
        return write_export(self.engine, self.origin, folder_of(self.folder / "exports", self.position.step))

    def close(self) -> None:
        """Give up the engine, and the files that are open."""
        self.engine.close()
        for lines in self._lines.values():
            lines.close()

    def _log_samples(self, step: int, samples: list[Sample]) -> None:
        """What a step was trained on, row by row in their order, into samples.jsonl."""
        rows = sorted((sample for share in self.world.gather(samples) for sample in share), key=lambda row: row.index)
        if self.world.rank == 0:
            self._lines["samples.jsonl"].append({"step": step, "rows": [list(astuple(row)) for row in rows]})


def take_peak_memory(device: torch.device) -> int | None:
    """The most bytes that were allocated on this process's GPU since this was last asked; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
