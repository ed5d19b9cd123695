"""Perplexity against plain double precision, over real processes, and where it must refuse.

Run as a script, this file is one process of the tests over several processes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM

from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity, row_losses
from pipeline.model.head import find_head
from pipeline.world import World
from tests import ROOT

#: The first targets of the 7 rows where they overlap.
COUNTED_FROM = torch.tensor([1, 16, 16, 16, 16, 20, 23])


def one_process(folder: Path, rank: int) -> None:
    """Rank ``rank`` of 4: writes its results with all 4, and with a group of the first 2, to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    pair = dist.new_group([0, 1])
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    rows = torch.load(folder / "rows.pt")
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    results = {}
    for world, group in ((4, dist.group.WORLD), (2, pair)):
        for micro_batch in (1, 3):
            if rank < world:
                forwards.clear()
                place = World(rank, world, control=group)
                sums, targets = row_losses(model, rows, micro_batch=micro_batch, device="cpu", world=place)
                results[world, micro_batch] = {"sums": sums, "targets": targets, "forwards": len(forwards)}
                overlapping = {"micro_batch": micro_batch, "device": "cpu", "counted_from": COUNTED_FROM}
                results[world, micro_batch]["overlapping"] = row_losses(model, rows, world=place, **overlapping)
    with torch.no_grad():
        model.lm_head.weight[:] = float("nan") if rank == 2 else model.lm_head.weight
    try:
        row_losses(model, rows, micro_batch=1, device="cpu", world=World(rank, 4, control=dist.group.WORLD))
    except RegrowError as error:
        results["refusal"] = str(error)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def over_processes(fresh_model, rows, tmp_path_factory):
    """What each of 4 gloo processes found, and the folder with the model and the rows that they read."""
    folder = tmp_path_factory.mktemp("processes")
    fresh_model().save_pretrained(folder / "model")
    torch.save(rows, folder / "rows.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE
        )
        for rank in range(4)
    ]
    for rank, process in enumerate(started):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"rank {rank} failed:\n{errors.decode()}"
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(4)]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_equals_double_precision_from_logits(model, rows):
    found = perplexity(model, rows, micro_batch=3, device="cpu")
    model.eval()
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row[None]).logits[0].double()
            for position in range(rows.shape[1] - 1):
                chances = torch.softmax(logits[position], dim=0)
                total -= math.log(chances[row[position + 1]].item())
    tokens = 7 * 23
    assert found["tokens"] == tokens, "a row of T tokens has T - 1 targets"
    assert (found["rows"], found["length"]) == (7, 24)
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-6), "loss is not the mean over targets, in nats"
    assert found["value"] == pytest.approx(math.exp(total / tokens), rel=1e-5), "perplexity is not exp(mean loss)"
    assert sum(found["row_losses"]) / len(found["row_losses"]) == pytest.approx(found["loss"], rel=1e-9), "of rows"


def test_the_standard_error_is_that_of_drawing_other_rows(model, rows):
    """Rows of unequal numbers of targets; against the spread of many draws with replacement."""
    counted_from = torch.tensor([1, 1, 12, 1, 12, 1, 1])
    found = perplexity(model, rows, micro_batch=3, device="cpu", counted_from=counted_from)
    sums, targets = row_losses(model, rows, micro_batch=3, device="cpu", counted_from=counted_from)
    drawn = torch.randint(7, (40_000, 7), generator=torch.Generator().manual_seed(0))
    spread = (sums[drawn].sum(1) / targets[drawn].sum(1)).exp().std().item()
    # A bootstrap of n rows has (n - 1) / n of the variance, and the linear term alone is counted.
    assert found["stderr"] == pytest.approx(spread * math.sqrt(7 / 6), rel=0.1)
    assert perplexity(model, rows[:1], micro_batch=3, device="cpu")["stderr"] is None


def test_what_stands_before_the_first_target_is_context(model, rows):
    model.eval()
    sums, targets = row_losses(model, rows, micro_batch=3, device="cpu", counted_from=COUNTED_FROM)
    assert targets.tolist() == [23, 8, 8, 8, 8, 4, 1]
    for row, first, total in zip(rows, COUNTED_FROM.tolist(), sums.tolist(), strict=True):
        with torch.no_grad():
            chances = torch.log_softmax(model(input_ids=row[None]).logits[0].double(), dim=-1)
        wanted = -sum(chances[place - 1, row[place]].item() for place in range(first, len(row)))
        assert total == pytest.approx(wanted, rel=1e-6)


def test_micro_batch_changes_rounding_only(model, rows):
    alone, _ = row_losses(model, rows, micro_batch=1, device="cpu")
    for micro_batch in (2, 3, 7, 16):
        together, targets = row_losses(model, rows, micro_batch=micro_batch, device="cpu")
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=0, msg=lambda m: f"micro-batch changed: {m}")
        assert targets.tolist() == [23] * 7
    assert alone.unique().numel() == 7, "rows with one loss cannot show their order"


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_same_bytes_on_any_number_of_processes(over_processes, one_thread, fresh_model, rows, world, micro_batch):
    expected, targets = row_losses(fresh_model(), rows, micro_batch=micro_batch, device="cpu")
    for rank in range(world):
        found = over_processes[rank][world, micro_batch]
        assert found["sums"].dtype == torch.float64
        assert torch.equal(found["sums"], expected), f"rank {rank} of {world}: {found['sums']} is not {expected}"
        assert torch.equal(found["targets"], targets)
    overlapping = {"micro_batch": micro_batch, "device": "cpu", "counted_from": COUNTED_FROM}
    expected = row_losses(fresh_model(), rows, **overlapping)
    for rank in range(world):
        for ours, theirs in zip(over_processes[rank][world, micro_batch]["overlapping"], expected, strict=True):
            assert torch.equal(ours, theirs), f"rank {rank} of {world} with overlap: {ours} is not {theirs}"


@pytest.mark.parametrize(("world", "micro_batch", "forwards"), [(4, 1, 2), (4, 3, 1), (2, 1, 4), (2, 3, 2)])
def test_all_processes_run_as_many_forwards(over_processes, world, micro_batch, forwards):
    counts = [over_processes[rank][world, micro_batch]["forwards"] for rank in range(world)]
    assert counts == [forwards] * world, "a process with fewer forwards hangs the others under ZeRO-3"


def test_one_broken_process_is_an_error_on_all(over_processes):
    # Rank 2 of 4 has row 2, and row 6 in the second turn.
    for rank, found in enumerate(over_processes):
        assert "row 2 of 7" in found.get("refusal", ""), f"rank {rank} did not see the broken row of rank 2"
        assert "2 such rows" in found["refusal"]


def test_nan_weights_raise_and_name_the_row(model, rows):
    # The one token that no other row has takes a NaN embedding, so that one row alone breaks.
    counts = torch.stack([torch.bincount(row, minlength=model.config.vocab_size) for row in rows])
    lonely = next(t for t in range(model.config.vocab_size) if counts[5, t] and counts[:, t].sum() == counts[5, t])
    with torch.no_grad():
        model.model.embed_tokens.weight[lonely] = float("nan")
    with pytest.raises(RegrowError, match="row 5 of 7 has a loss of nan \\(1 such") as refusal:
        perplexity(model, rows, micro_batch=2, device="cpu")
    assert "model.embed_tokens.weight has values that are not finite" in str(refusal.value)
    assert "float32" not in str(refusal.value), "no precision mends broken weights"
    assert model.training, "the training flag is restored after an error too"


def test_training_flags_and_gradients_stay_as_they_were(model, rows):
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    row_losses(model, rows, micro_batch=4, device="cpu")
    assert [module.training for module in model.modules()] == before, "a frozen block came back in training mode"
    model(input_ids=rows[:1], labels=rows[:1]).loss.backward()
    assert model.lm_head.weight.grad is not None, "weights can no longer be trained after an evaluation"


def test_where_the_head_is_known_no_logits_are_made(model, rows):
    made = []
    model.register_forward_hook(lambda module, inputs, output: made.append(output.logits.shape[-1]))
    whole = perplexity(model, rows, micro_batch=2, device="cpu")
    assert set(made) == {model.config.vocab_size}
    head = find_head(model)
    made.clear()
    thin = perplexity(model, rows, micro_batch=2, device="cpu", head=head)
    assert set(made) == {1}, "whole logits were made after all"
    assert thin.pop("row_losses") == pytest.approx(whole.pop("row_losses"), rel=1e-6)
    assert thin == pytest.approx(whole, rel=1e-6)


def test_bfloat16_model_has_losses_from_fp32(model, rows):
    exact, _ = row_losses(model, rows, micro_batch=1, device="cpu")
    rounded, _ = row_losses(model.bfloat16(), rows, micro_batch=1, device="cpu")
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0)
    # 23 losses that were rounded to bf16 would sum to a multiple of 2^-6 here; fp32 losses practically never do.
    assert not torch.equal(rounded, (rounded * 64).round() / 64), "token losses were rounded to bf16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(3, 1, dtype=torch.int64)}, "at least two tokens"),
        ({"rows": torch.zeros(0, 8, dtype=torch.int64)}, "at least one row"),
        ({"rows": torch.zeros(3, 8)}, "int64"),
        ({"micro_batch": 0}, "micro-batch is 0"),
    ],
)
def test_refuses_what_cannot_be_evaluated(model, rows, change, message):
    arguments = {"rows": rows, "micro_batch": 2, "device": "cpu"} | change
    with pytest.raises(RegrowError, match=message):
        row_losses(model, arguments.pop("rows"), **arguments)


if __name__ == "__main__":
    one_process(Path(sys.argv[1]), int(sys.argv[2]))
