"""The library face: every criterion from one call, on models of several families, in one process and in several."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pipeline.criteria import CRITERIA
from pipeline.errors import RegrowError
from pipeline.importance.criteria import Settings
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.linear import linear_entry
from pipeline.importance.ppl import perplexity_without
from pipeline.importance.scoring import score_blocks
from pipeline.importance.selection import choose_blocks, choose_window
from pipeline.importance.sweep import removal_losses
from pipeline.importance.uncertainty import add_uncertainty
from pipeline.importance.weights import magnitude_entry, taylor_entry
from pipeline.model.blocks import find_blocks
from tests.families import BLOCKS, VOCABULARY, build


def text(rows: int, length: int = 16) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "neox"])
def test_every_criterion_has_its_entry_and_nothing_is_left_behind(family):
    model, batches = build(family), text(24).split(5)
    entries = score_blocks(model, batches, CRITERIA, Settings(position=3, linear_lengths=(2,)))
    assert list(entries) == list(CRITERIA)
    for name, entry in entries.items():
        assert len(entry["scores"]) == BLOCKS and all(map(math.isfinite, entry["scores"])), name
        assert entry["order"] == sorted(range(BLOCKS), key=entry["scores"].__getitem__), name
        assert entry["higher_is"] == "more important" and ("interval" in entry) == (name not in {"magnitude", "taylor"})
        for score, (low, high) in zip(entry["scores"], entry.get("interval", []), strict=False):
            assert low <= score <= high, f"{name}: the score lies outside its interval"
        assert choose_blocks(entry["order"], Cut(remove=3, protect_first=2, protect_last=1)) == [2, 3, 4]
    assert (
        entries["angular_last"]["position"] == 3
        and len(choose_window(entries["angular_last"]["windows"], Cut(remove=2, protect_first=0, protect_last=0))) == 2
    )
    assert json.loads(json.dumps(entries)) == entries, "an entry is not plain JSON"
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__), "left behind"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_gives_what_the_parts_give_for_any_batches():
    model, ids = build("llama"), text(24)
    whole, pieces = (score_blocks(model, batches, CRITERIA) for batches in ([ids], ids.split(1)))
    for name in CRITERIA:
        assert whole[name]["scores"] == pytest.approx(pieces[name]["scores"], rel=1e-3), name
    expected = (removal_losses(model, ids).sum(dim=1) / (24 * 15)).exp().tolist()
    assert [*whole["ppl"]["scores"], whole["ppl"]["dense"]] == pytest.approx(expected, rel=1e-9)
    assert whole["taylor"] == taylor_entry(model, [ids]) and whole["magnitude"] == magnitude_entry(find_blocks(model))
    judged = torch.arange(24) % 4 == 3
    linear = linear_entry(model, [ids[~judged]], [ids[judged]])
    assert whole["linear"]["scores"] == pytest.approx(linear["scores"], rel=1e-4)
    alone = score_blocks(model, [ids], ["euclidean", "angular_mean"])
    assert list(alone) == ["euclidean", "angular_mean"]
    assert alone["euclidean"]["scores"] == pytest.approx(whole["euclidean"]["scores"], rel=1e-3)


def test_what_cannot_be_scored_is_refused():
    model, ids = build("llama"), text(4)
    with pytest.raises(RegrowError, match=r"one length are wanted, got 15, 16 tokens; cut them: batches = \[ids"):
        score_blocks(model, [ids, ids[:, :15]])
    with pytest.raises(RegrowError, match="no batch"):
        score_blocks(model, [])
    with pytest.raises(RegrowError, match=r"\['fisher'\]: not known; known are: ppl, block_influence"):
        score_blocks(model, [ids], ["ppl", "fisher"])
    for nothing in ([], (), iter([])):
        with pytest.raises(RegrowError, match="criteria: none is named; known are: ppl"):
            score_blocks(model, [ids], nothing)
    with pytest.raises(RegrowError, match=r"48 tokens .* at least 256 are needed"):
        score_blocks(model, [ids], ["linear"])
    assert len(score_blocks(model, criteria=["magnitude"])["magnitude"]["scores"]) == BLOCKS, "weights need no text"
    assert "interval" not in score_blocks(model, [ids[:1]])["ppl"], "one sequence has no interval"


def test_what_stands_for_batches_and_criteria_is_taken_as_meant():
    model, ids = build("llama"), text(4)
    expected = score_blocks(model, [ids], ["ppl"])
    assert score_blocks(model, ids, "ppl") == expected, "one tensor, one name"
    assert score_blocks(model, (batch for batch in [ids]), iter(["ppl"])) == expected, "generators"
    assert score_blocks(model, ids.int()) == expected, "ids of another integer"
    assert score_blocks(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}) == expected, "a tokenizer's"
    with pytest.raises(RegrowError, match=r'an order is wanted, scores\["ppl"\]\["order"\]'):
        choose_blocks(expected["ppl"], Cut(remove=2))
    with pytest.raises(RegrowError, match=r"cut 2: a Cut is wanted, such as Cut\(remove=9\)"):
        choose_blocks(expected["ppl"]["order"], 2)
    half = score_blocks(build("llama").double(), ids, ["ppl", "angular_last"])
    assert half["ppl"]["scores"] == pytest.approx(expected["ppl"]["scores"], rel=1e-5)
    assert half["ppl"]["tie_tolerance"] == 1e-5, "token losses are fp32 in any model"
    one_token = score_blocks(model, ids[:, :1], "block_influence")["block_influence"]
    assert all(map(math.isfinite, one_token["scores"])), "a distance needs no target"


@pytest.mark.parametrize(
    ("batches", "criteria", "words"),
    [
        ([text(2).float()], "ppl", r"batch 0: ids .* are wanted, got \(2, 16\) of torch\.float32"),
        ([text(2), text(2)[None]], "ppl", r"batch 1: ids .* are wanted, got \(1, 2, 16\) of torch\.int64"),
        (["some text"], "ppl", r"batch 0: ids are wanted, got a text; batches = \[tokenizer\(text"),
        ([text(2)[:, :1]], "ppl", r"batch 0: has 2 sequences of 1 tokens; one of 2 at least"),
        ([text(2)[:, :1]], "taylor", r"batch 0: has 2 sequences of 1 tokens; one of 2 at least"),
        ([text(2), text(2)[:0]], "ppl", r"batch 1: has 0 sequences of 16 tokens"),
        ([text(2)[:, :0]], "euclidean", r"batch 0: has 2 sequences of 0 tokens; one of 1 at least"),
        ([text(2) + VOCABULARY], "ppl", r"batch 0: ids from \d+ to \d+, and the model has embeddings for 0 to 199"),
        ([text(2) - VOCABULARY], "ppl", r"batch 0: ids from -\d+ to -\d+, and the model has embeddings for 0 to 199"),
    ],
)
def test_batches_that_are_no_ids_are_refused_before_any_work(batches, criteria, words):
    model = build("llama")
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda *_: pytest.fail("a block ran"))
    with pytest.raises(RegrowError, match=words) as error:
        score_blocks(model, batches, criteria)
    assert "\n" not in str(error.value)


def test_perplexities_beyond_fp64_are_said_to_be_so():
    """Logits so large that the mean loss is above 709 nats, where exp leaves fp64."""
    model, ids = build("llama"), text(2)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    with pytest.raises(RegrowError, match=r"ppl: without blocks \[.*'none'\] the mean loss is up to [\d,]+"):
        score_blocks(model, ids)
    with pytest.raises(RegrowError, match=r"greedy selection: without any further block .* beyond fp64"):
        next(greedy_rounds(model, [ids], Cut(remove=1, protect_first=0, protect_last=0)))
    assert perplexity_without(model, [ids], [2]) == math.inf
    entry = {"sequence_losses": [[1.0, 2.0], [700.0, 800.0]], "order": [0, 1]}
    add_uncertainty(entry)
    assert entry["interval"][1][1] == math.inf


def test_one_two_and_four_processes_agree(by_processes):
    """Sequences divided over processes, sums over gloo: the same scores, order, intervals and greedy rounds."""
    one = by_processes[1]
    for number, other in ((2, by_processes[2]), (4, by_processes[4])):
        assert list(one["entries"]) == list(other["entries"])
        for name, entry in one["entries"].items():
            found = other["entries"][name]
            assert found["scores"] == pytest.approx(entry["scores"], rel=1e-5), f"{name} in {number} processes"
            assert found["order"] == entry["order"], f"{name} in {number} processes"
            assert torch.tensor(found.get("interval", [])).shape == torch.tensor(entry.get("interval", [])).shape
        assert other["greedy"] == one["greedy"] and other["without"] == pytest.approx(one["without"], rel=1e-6)
