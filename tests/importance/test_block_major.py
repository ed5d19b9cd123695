"""The sweep by block: equal to the batch-major one, killed at every instant, and in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.block_major import sweep_by_block
from pipeline.importance.distances import StateDistances
from pipeline.importance.sweep import dense_states, removal_losses
from pipeline.model.load import load_model
from pipeline.model.streaming import StreamedModel
from tests import ROOT
from tests.families import BLOCKS, build
from tests.importance.sweeping import FEW, quiet, some_ids


def batch_major(model, ids, micro_batch, position=-1):
    watch = StateDistances(BLOCKS, position)
    losses = [removal_losses(model, batch, watch=watch) for batch in ids.split(micro_batch)]
    return torch.cat(losses, dim=1), watch


#: Tied head, two rotaries, tuples between blocks or none, fused experts, a bias of batch x heads.
FAMILIES = [("llama", {"tie_word_embeddings": True}), ("gemma3", {}), ("gpt2", {}), ("mixtral", {}), ("bloom", {})]


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_both_orders_give_the_same_bytes(family, changes, tmp_path):
    build(family, **changes).save_pretrained(tmp_path / "model")
    ids = some_ids(5, 24)  # micro-batches of 2, 2 and 1; longer than the sliding windows
    for dtype in ("float32", "bfloat16") if family == "gemma3" else ("float32",):
        expected, watch = batch_major(load_model(tmp_path / "model", dtype=dtype), ids, 2, position=3)
        streamed = StreamedModel(tmp_path / "model", dtype=dtype)
        distances = StateDistances(BLOCKS, position=3)
        found = sweep_by_block(streamed, ids, folder=tmp_path / dtype, micro_batch=2, distances=distances, say=quiet)
        assert torch.equal(found, expected), f"{family} in {dtype}: {(found - expected).abs().max()} nats"
        assert distances.to_json() == watch.to_json(), f"{family} in {dtype}: other distances"
        assert streamed.loads == [1] * BLOCKS, f"{family}: one sweep reads the blocks {streamed.loads} times"
    assert expected.std(dim=0).min() > 0.1, "all blocks weigh the same here: the test shows nothing"


def test_distances_alone_and_losses_alone(tmp_path):
    build("llama").save_pretrained(tmp_path / "model")
    model, streamed = (
        load_model(tmp_path / "model", dtype="float32"),
        StreamedModel(tmp_path / "model", dtype="float32"),
    )
    ids = some_ids(4, 12)
    expected, _ = batch_major(model, ids, 2)
    watch = StateDistances(BLOCKS)
    for batch in ids.split(2):
        dense_states(model, batch, watch)
    distances = StateDistances(BLOCKS)
    given = {"micro_batch": 2, "say": quiet}
    assert sweep_by_block(streamed, ids, folder=tmp_path / "a", losses=False, distances=distances, **given) is None
    assert distances.to_json() == watch.to_json(), "distances without losses differ from the dense forward's"
    assert torch.equal(sweep_by_block(streamed, ids, folder=tmp_path / "b", **given), expected)
    # Micro-batches of another size are other shapes for the kernels: equal to rounding.
    other = sweep_by_block(streamed, ids, folder=tmp_path / "c", micro_batch=3, say=quiet)
    assert ((other - expected).abs().max() / 11).item() < 1e-5
    with pytest.raises(RegrowError, match="computes nothing"):
        sweep_by_block(streamed, ids, folder=tmp_path / "d", micro_batch=2, losses=False)


def test_a_folder_of_another_sweep_and_a_disk_too_small_are_refused(tmp_path):
    build("llama").save_pretrained(tmp_path / "model")
    streamed = StreamedModel(tmp_path / "model", dtype="float32")
    ids = some_ids(2, 8)
    sweep_by_block(streamed, ids, folder=tmp_path / "states", micro_batch=2, say=quiet)
    with pytest.raises(RegrowError, match=r"another sweep \(micro-batch, sequences, shape differ\)"):
        sweep_by_block(streamed, some_ids(3, 8), folder=tmp_path / "states", micro_batch=3, say=quiet)
    with pytest.raises(RegrowError, match=r"another sweep \(config, dtype differ\)"):
        other = StreamedModel(tmp_path / "model", dtype="bfloat16")
        sweep_by_block(other, ids, folder=tmp_path / "states", micro_batch=2, say=quiet)
    free = os.statvfs(tmp_path)
    rows = 2 + 2 * free.f_bavail * free.f_frsize // (BLOCKS * 2**20 * 32 * 4)
    # As many sequences as would not fit; they are views of one, so that they take no memory here.
    with pytest.raises(RegrowError, match=r"no space for the states between blocks .*GB needed"):
        sweep_by_block(
            streamed, _Long(ids[:1, :1].expand(rows, 2**20)), folder=tmp_path / "more", micro_batch=2, say=quiet
        )


def test_a_weight_that_is_not_a_number_is_refused_when_its_block_is_loaded(tmp_path):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    streamed = StreamedModel(tmp_path / "model", dtype="float32")
    with pytest.raises(RegrowError, match=r"model\.layers\.2\.mlp\.down_proj\.weight has values that are not finite"):
        sweep_by_block(streamed, some_ids(1, 8), folder=tmp_path / "states", micro_batch=1, say=quiet)
    assert streamed.loads == [1, 1, 0, 0, 0, 0], "not at the block that holds it"


def test_a_loss_that_is_not_a_number_is_refused(tmp_path):
    model = build("llama")
    with torch.no_grad():
        for part in (model.model.layers[2].mlp.up_proj, model.model.layers[2].mlp.down_proj):
            part.weight.fill_(3e38)  # finite itself: what it makes is not
    model.save_pretrained(tmp_path / "model")
    streamed = StreamedModel(tmp_path / "model", dtype="float32")
    with pytest.raises(RegrowError, match=r"losses without blocks \[0, 1, 3, 4, 5, 6\] are not numbers.*float32"):
        sweep_by_block(streamed, some_ids(1, 8), folder=tmp_path / "states", micro_batch=1, say=quiet)


@pytest.fixture(scope="module")
def measured() -> dict:
    """What the processes of sweeping.py found."""
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.importance.sweeping"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=here,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_any_instant_it_goes_on_to_the_same_bytes(measured):
    kills = measured["kills"]
    assert len(kills) > 20, f"only {len(kills)} instants were tried"
    for kill in kills:
        assert kill["killed"], f"{kill}: was not killed"
        assert kill["same"], f"killed before file operation {kill['instant']}: another result"
        expected = [0] * kill["first"] + [1] * (FEW - kill["first"])
        assert kill["loads"] == expected, f"went on from block {kill['first']}, and read blocks {kill['loads']} times"
    assert {kill["first"] for kill in kills} == set(range(FEW + 1)), "not every block was met"


def test_the_states_on_disk_are_those_that_were_foretold(measured):
    for case in measured["peaks"]:
        assert case["peak"] == case["foretold"], f"{case}: the peak of the files is not what SweepShape says"


def test_memory_grows_with_the_block_and_not_with_the_model(measured):
    block, memory = measured["block"], measured["memory"]
    assert block > 16e6, "blocks too small to tell"
    by_block = (memory["24"]["by block"] - memory["6"]["by block"]) / block
    whole = (memory["24"]["whole"] - memory["6"]["whole"]) / block
    assert by_block < 2, f"18 blocks more took {by_block:.1f} blocks more memory"
    assert whole > 10, f"the model loaded whole took {whole:.1f} blocks more: the measure shows nothing"


def test_under_a_limit_that_the_whole_model_breaks_the_sweep_by_block_works(measured):
    limited = measured["limited"]
    assert limited["whole"] != 0, "the whole model fits under the limit: nothing is shown"
    assert limited["by block"] == 0, "the sweep by block broke the limit"


class _Long(torch.Tensor):
    """Sequences of which the numbers are not asked."""

    def tolist(self):
        return list(self.shape)
