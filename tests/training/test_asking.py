"""Asking ahead: the same bytes whoever asks, in one process or two, killed or not; and what is asked is the teacher."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from pipeline.training.answers import ROWS
from pipeline.training.asking import Asking, answer, ask
from pipeline.training.teacher import Teacher
from pipeline.world import ALONE
from tests.families import build
from tests.training.asked import LANES, LENGTH, contents, new_store, rows

ASKING, CPU, TOTAL = Asking(1.3, 5, within_documents=False), torch.device("cpu"), ROWS * LANES + 8


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(build("llama", spread=0.3), ALONE)


def test_the_same_bytes_in_one_process_in_two_and_killed(teacher, tmp_path):
    ask(teacher, rows(0, TOTAL), new_store(tmp_path / "one"), ASKING, CPU)
    whole = contents(tmp_path / "one")
    assert len(whole) == 2 * LANES
    for rank in (1, 0):
        ask(teacher, rows(rank, TOTAL, 2), new_store(tmp_path / "two"), ASKING, CPU)
    assert contents(tmp_path / "two") == whole, "two processes write other bytes"

    store = new_store(tmp_path / "killed")
    killed = islice(rows(0, TOTAL), ROWS * LANES - 2)

    def die(what: str) -> None:
        if what.endswith(f"row {ROWS * LANES - 3}"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(teacher, killed, store, ASKING, CPU, die)
    assert store.missing(TOTAL) == [range(2)] and len(contents(tmp_path / "killed")) == 1
    ask(teacher, rows(0, TOTAL), store, ASKING, CPU)
    assert contents(tmp_path / "killed") == whole, "a second start writes other bytes"


def test_the_draws_are_of_the_teacher_s_softmax(teacher, tmp_path):
    """With 255 of them at each position they are near it, and far from that of another temperature; each document
    alone where that is asked for."""
    (row,), store = rows(7, 8), new_store(tmp_path, samples=255)
    ids = torch.from_numpy(row.input_ids)[None]
    with torch.no_grad():
        across = teacher.model(ids).logits[0]
        alone = torch.cat([teacher.model(piece).logits[0] for piece in (ids[:, :5], ids[:, 5:])])

    def far(within: bool, logits: torch.Tensor, temperature: float) -> float:
        """Pearson's statistic over its mean, 1 where the draws are of these logits."""
        given = answer(teacher, row, store, Asking(1.3, 5, within), CPU)
        assert given.counts.sum() == 255 * LENGTH
        shares, position = (logits / temperature).softmax(dim=1).double(), torch.zeros(len(given.ids), dtype=torch.long)
        position[torch.from_numpy(given.different.astype("int64")).cumsum(0)[:-1]] = 1
        found = torch.zeros_like(shares)
        found[position.cumsum(0), torch.from_numpy(given.ids.astype("int64"))] = torch.from_numpy(given.counts).double()
        return float(((found - 255 * shares).square() / (255 * shares)).sum() / (LENGTH * (shares.shape[1] - 1)))

    assert far(False, across, 1.3) == pytest.approx(1, abs=0.15) == far(True, alone, 1.3)
    assert far(False, across, 0.7) > 1.3 and far(True, across, 1.3) > 1.3


def test_another_row_or_seed_is_another_draw(teacher, tmp_path):
    store, (row,) = new_store(tmp_path), rows(7, 8)
    given = answer(teacher, row, store, ASKING, CPU)
    same = answer(teacher, row, store, ASKING, CPU)
    assert (given.ids.tolist(), given.counts.tolist()) == (same.ids.tolist(), same.counts.tolist())
    for other in (
        answer(teacher, type(row)(8, row.input_ids, 0, row.cursor), store, ASKING, CPU),
        answer(teacher, row, store, Asking(1.3, 6, within_documents=False), CPU),
    ):
        assert other.ids.tolist() != given.ids.tolist() and other.entropies.tolist() == given.entropies.tolist()
