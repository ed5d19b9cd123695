"""Boards: what training writes into its line files, shown by TensorBoard and Weights & Biases while it goes on.

A board is the first process's alone. Whatever one meets (a full disk, a server that is gone) is said in one line; it is
given up then, and training goes on without it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import first_line
from pipeline.files import write_atomic

Say = Callable[[str], None]
#: Of the line files those that boards are shown, and how the tags of their numbers begin.
SHOWN = {"metrics.jsonl": "train", "held_out.jsonl": "held_out", "tasks.jsonl": "tasks"}
#: Seconds that Weights & Biases has for its beginning, and for sending what is left at the end.
BEGIN, END = 30, 15


class Board(Protocol):
    """What is shown numbers by their tags, in the order of their steps."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``folder``. Of earlier starts what lies behind ``step``, at which training goes on, is no longer
    shown. ImportError without the package."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """The run ``name`` of a ``project``, with ``about`` as its config; its files are in ``folder``/wandb.

    Its id is kept there in id.txt, so that a resume goes on with the same run. Where it cannot begin
    (no key, no server) ``say`` is told so, and all is written to ``folder`` alone, for ``wandb sync``.
    """

    def __init__(self, folder: Path, project: str, name: str, about: Mapping[str, Any], say: Say):
        # Read where it is imported; what it would print, messages of ours say.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        kept = folder / "wandb" / "id.txt"
        if not kept.exists():
            write_atomic(kept, secrets.token_hex(4) + "\n")
        # Nothing of the machine, and nothing that is printed, is sent.
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            init_timeout=BEGIN,
        )

        def begin(mode: str | None) -> Any:
            return wandb.init(
                project=project,
                name=name,
                id=kept.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(folder),
                config=dict(about),
                settings=settings,
                mode=mode,
            )

        with _nobody_to_ask():
            try:
                self._run = begin(None)
            except Exception as error:
                # Else its helper still holds the id.
                wandb.teardown(exit_code=1)
                self._run = begin("offline")
                say(
                    f"Weights & Biases cannot be reached ({_told(error)}); what it would be sent is written to "
                    f"{folder / 'wandb'}, and sent by: wandb sync"
                )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        # Behind a checkpoint the steps that it has already stay as they are: none stands twice.
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """TimeoutError where a server does not take the rest in ``END`` seconds."""
        ending = threading.Thread(target=self._run.finish, name="end of wandb", daemon=True)
        ending.start()
        ending.join(END)
        if ending.is_alive():
            raise TimeoutError(f"not all was sent within {END} s; what is left is sent by: wandb sync")


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Within the context standard input is empty: a question would stop training, for somebody who is not there."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nobody:
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = before


class Boards:
    """Several boards under the names that messages call them by; ``say`` is told of each that is given up."""

    def __init__(self, makers: Mapping[str, Callable[[], Board]], say: Say):
        self._boards: dict[str, Board] = {}
        self._say = say
        for name, make in makers.items():
            with self._giving_up(name):
                self._boards[name] = make()

    def add(self, file: str, record: Mapping[str, Any]) -> None:
        """Show what a line of ``file`` holds; of a file that boards are not shown, nothing."""
        if values := values_of(file, record):
            for name, board in list(self._boards.items()):
                with self._giving_up(name):
                    board.add(record["step"], values)

    def close(self) -> None:
        """Nothing more is added."""
        while self._boards:
            name, board = self._boards.popitem()
            with self._giving_up(name):
                board.close()

    @contextlib.contextmanager
    def _giving_up(self, name: str) -> Iterator[None]:
        """Within the context an error is told, and ends the board of this name."""
        try:
            yield
        # Of libraries that are not ours any error may come.
        except Exception as error:
            self._boards.pop(name, None)
            self._say(f"{name} is left out from here on ({_told(error)})")


def values_of(file: str, record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by their tags: ``train/loss``, ``held_out/perplexity``, ``tasks/boolq``."""
    if file not in SHOWN:
        return {}
    found = record
    if file == "tasks.jsonl":
        found = {task: entry["value"] for task, entry in record["tasks"].items()}
    numbers = {
        name: value
        for name, value in found.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {f"{SHOWN[file]}/{name.removeprefix(f'{SHOWN[file]}_')}": value for name, value in numbers.items()}


def _told(error: Exception) -> str:
    """An error in a line, without the key that a server's answer may repeat."""
    key = os.environ.get("WANDB_API_KEY")
    said = f"{type(error).__name__}: {first_line(error)}"
    return said.replace(key, "...") if key else said
