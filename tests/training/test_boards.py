"""Boards: they get the numbers of the lines, and what one of them meets ends it alone."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.training import boards
from pipeline.training.boards import Boards, TensorBoard, WeightsAndBiases, values_of

STEP = {"step": 3, "loss": 2.5, "mfu": None, "skipped": True, "slowest": {"rank": 1, "seconds": 2.0}}


class Kept:
    """A board that keeps what it is shown, and fails at a step."""

    def __init__(self, fails_at: int | None = None):
        self.shown: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.closed = fails_at, False

    def add(self, step: int, values: Any) -> None:
        if step == self.fails_at:
            raise OSError("No space left on device\nand more")
        self.shown.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_numbers_of_a_line_get_their_tags():
    assert values_of("metrics.jsonl", STEP) == {"train/loss": 2.5}
    held_out = {"step": 3, "tokens": 96, "held_out_perplexity": 12.0, "held_out_stderr": math.nan}
    values = values_of("held_out.jsonl", held_out)
    assert list(values) == ["held_out/tokens", "held_out/perplexity", "held_out/stderr"]
    tasks = {"step": 3, "tokens": 96, "tasks": {"sums": {"value": 0.5, "items": 4}, "boolq": {"value": None}}}
    assert values_of("tasks.jsonl", tasks) == {"tasks/sums": 0.5}
    assert values_of("samples.jsonl", {"step": 3, "rows": []}) == {}


def test_a_board_that_fails_is_left_out_with_one_line_and_the_other_goes_on():
    said: list[str] = []
    good, bad = Kept(), Kept(fails_at=2)

    def none() -> Kept:
        raise ImportError("no such package")

    shown = Boards({"good": lambda: good, "bad": lambda: bad, "absent": none}, said.append)
    assert said == ["absent is left out from here on (ImportError: no such package)"]
    for step in (1, 2, 3):
        shown.add("metrics.jsonl", {"step": step, "loss": 1.0})
    shown.add("samples.jsonl", {"step": 3, "rows": []})
    shown.close()
    assert said[1:] == ["bad is left out from here on (OSError: No space left on device)"]
    assert [step for step, _ in good.shown] == [1, 2, 3] and [step for step, _ in bad.shown] == [1]
    assert good.closed and not bad.closed


@pytest.fixture
def wandb(monkeypatch):
    """A package in wandb's place, which notes how it is begun; ``fails`` holds errors of the next beginnings."""
    fake = SimpleNamespace(begun=[], logged=[], fails=[], Settings=lambda **settings: settings)
    fake.teardown = lambda exit_code: fake.begun.append("torn down")

    def init(**given: Any) -> Any:
        fake.begun.append(given)
        assert not sys.stdin.read(), "a question would be put to somebody"
        if fake.fails:
            raise fake.fails.pop()
        return SimpleNamespace(log=lambda values, step: fake.logged.append((step, values)), finish=fake.finish)

    fake.init, fake.finish = init, lambda: None
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_resume_goes_on_with_the_same_run_of_weights_and_biases(wandb, tmp_path):
    said: list[str] = []
    for step in (1, 2):
        board = WeightsAndBiases(tmp_path, "project", "tiny", {"clip": 1.0}, said.append)
        board.add(step, {"train/loss": 2.0})
        board.close()
    first, second = wandb.begun
    assert first["id"] == second["id"] == (tmp_path / "wandb" / "id.txt").read_text().strip()
    assert (first["project"], first["name"], first["resume"], first["dir"]) == (
        "project",
        "tiny",
        "allow",
        str(tmp_path),
    )
    assert wandb.logged == [(1, {"train/loss": 2.0}), (2, {"train/loss": 2.0})] and said == []


def test_without_a_server_it_is_written_here_and_said_once_without_the_key(wandb, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setenv("WANDB_API_KEY", "0123secret")
    wandb.fails.append(ConnectionError("refused for 0123secret"))
    WeightsAndBiases(tmp_path, "project", "tiny", {}, said.append).add(1, {"train/loss": 2.0})
    assert [one if isinstance(one, str) else one["mode"] for one in wandb.begun] == [None, "torn down", "offline"]
    assert len(said) == 1 and "cannot be reached (ConnectionError: refused for ...)" in said[0], said
    assert wandb.logged == [(1, {"train/loss": 2.0})]


def test_an_end_that_waits_for_a_server_is_given_up(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "END", 0.1)
    said: list[str] = []
    wandb.finish = lambda: sys.modules["time"].sleep(1)
    make = lambda: WeightsAndBiases(tmp_path, "project", "tiny", {}, said.append)  # noqa: E731
    Boards({"Weights & Biases": make}, said.append).close()
    assert len(said) == 1 and "TimeoutError: not all was sent within 0.1 s" in said[0], said


def test_steps_behind_the_checkpoint_are_shown_no_more(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs tensorboard: pip install -e '.[tensorboard]', then test.sh",
    )
    for begin, loss in ((0, 1.0), (3, 2.0)):
        board = TensorBoard(tmp_path, begin)
        for step in range(begin + 1, begin + 6):
            board.add(step, {"train/loss": loss})
        board.close()
    shown = events.EventAccumulator(str(tmp_path))
    shown.Reload()
    losses = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert losses == [(step, 1.0 if step <= 3 else 2.0) for step in range(1, 9)]
