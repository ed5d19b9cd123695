"""The sweep by micro-batch: the sums of one sweep over all, whoever computes them, killed wherever it was."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.batch_major import Wanted, own_share, sweep_by_batch
from pipeline.importance.distances import StateDistances
from pipeline.importance.kept import Kept
from pipeline.importance.sweep import removal_losses
from pipeline.world import World
from tests.families import BLOCKS, VOCABULARY, build

WANTED = Wanted(windows=((1, 2), (0, 3)), position=-1)


class Killed(BaseException):
    """Ends the sweep as a kill does: nothing in it catches this."""


@pytest.fixture(scope="module")
def model():
    return build("llama")


def some_ids(rows: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(1))


def sweep(model, ids, kept, said, wanted=WANTED):
    return sweep_by_batch(model, ids, wanted, kept=kept, micro_batch=2, world=World(), say=said)


def test_it_gives_what_sweeps_over_its_micro_batches_give(model):
    """Seven sequences: the last micro-batch is shorter."""
    ids, lines = some_ids(7), []
    losses, distances = sweep(model, ids, Kept(None, World()), lines.append)
    watch = StateDistances(BLOCKS, -1)
    expected = [removal_losses(model, batch, windows=WANTED.windows, watch=watch) for batch in ids.split(2)]
    assert losses.shape == (BLOCKS + 2 + 1, 7) and losses.dtype == torch.float64
    assert losses.equal(torch.cat(expected, dim=1)), "losses went through the records as other numbers, or moved"
    assert distances.to_json() == watch.to_json()
    assert lines == [f"sequence {count} of 7" for count in (2, 4, 6, 7)]


@pytest.mark.parametrize(
    ("wanted", "given"), [(Wanted(losses=False, position=3), (False, True)), (Wanted(), (True, False))]
)
def test_only_what_is_wanted_is_given(model, wanted, given):
    losses, distances = sweep(model, some_ids(3), Kept(None, World()), lambda line: None, wanted)
    assert (losses is not None, distances is not None) == given
    if distances is not None:
        watch = StateDistances(BLOCKS, 3)
        for batch in some_ids(3).split(2):
            removal_losses(model, batch, watch=watch)
        assert distances.to_json() == watch.to_json(), "distances without losses are others"


@pytest.mark.parametrize("done", [1, 3])
def test_killed_it_goes_on_to_the_same_bits_and_computes_nothing_again(model, tmp_path, done):
    ids, kept = some_ids(7), Kept(tmp_path, World())
    expected, distances = sweep(model, ids, Kept(None, World()), lambda line: None)
    lines = []

    def say_until(line: str) -> None:
        lines.append(line)
        if len(lines) == done:
            raise Killed

    with pytest.raises(Killed):
        sweep(model, ids, kept, say_until)
    forwards = []
    hook = model.register_forward_pre_hook(lambda module, given: forwards.append(module))
    again = []
    losses, found = sweep(model, ids, Kept(tmp_path, World()), again.append)
    hook.remove()
    assert losses.equal(expected) and found.to_json() == distances.to_json(), "a kill changed the sums"
    assert again[0] == f"{2 * done} of 7 sequences were scored before", again
    assert len(again) == 1 + 4 - done and again[-1] == f"sequence {7 - 2 * done} of {7 - 2 * done}", again
    fresh = []
    hook = model.register_forward_pre_hook(lambda module, given: fresh.append(module))
    sweep(model, ids, Kept(None, World()), lambda line: None)
    hook.remove()
    assert len(forwards) == len(fresh) * (4 - done) // 4 > 0, "micro-batches that were kept were computed again"


def test_the_number_of_processes_changes_no_bit(by_processes):
    for number in (2, 4):
        assert by_processes[number]["swept"] == by_processes[1]["swept"], f"{number} processes gave other sums"
    assert len(by_processes[1]["swept"]["losses"]) == BLOCKS + 1


@pytest.mark.parametrize(("rows", "micro_batch"), [(1, 1), (7, 2), (12, 3), (5, 8)])
def test_shares_are_runs_of_neighbours_and_all_of_them(rows, micro_batch):
    ids = torch.arange(rows)[:, None]
    for size in (1, 2, 3, 5):
        shares = [own_share(ids, micro_batch, World(rank, size)) for rank in range(size)]
        together = [batch.flatten().tolist() for share in shares for batch in share]
        assert together == [batch.flatten().tolist() for batch in ids.split(micro_batch)], f"{size} processes"
        counts = [len(share) for share in shares]
        assert max(counts) - min(counts) <= 1, f"micro-batches of {size} processes: {counts}"


@pytest.mark.parametrize("micro_batch", [0, -1, 1.5, None])
def test_a_micro_batch_of_no_sequence_is_refused(micro_batch):
    with pytest.raises(RegrowError, match=f"micro_batch {micro_batch}: a whole number"):
        own_share(torch.arange(4)[:, None], micro_batch, World())
