"""Magnitude and Taylor scores against the formulas written out with torch's own backward pass."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import RegrowError
from pipeline.importance.weights import magnitude_entry, taylor_entry
from pipeline.model.blocks import find_blocks
from tests.families import VOCABULARY, build

REDUCE = {"sum": sum, "mean": lambda values: sum(values) / len(values), "max": max}


def text(rows: int = 4) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, 16), generator=torch.Generator().manual_seed(3))


def straightforward(values: dict[str, torch.Tensor], blocks: str, power: float, weight: str, block: str) -> list[float]:
    """Scores from one tensor for each name of the model's parameters; ``blocks`` is the list's name."""
    scores: dict[int, list[float]] = {}
    for name, tensor in values.items():
        if name.startswith(blocks) and name.endswith("weight"):
            rows = tensor.detach().double().abs() ** power
            rows = rows.sum(1) if rows.ndim > 1 else rows  # as Shortened LLM: a projection's inputs are summed first
            score = {"sum": rows.sum(), "mean": rows.mean(), "max": rows.max()}[weight].item()
            scores.setdefault(int(name.removeprefix(blocks).split(".")[1]), []).append(score)
    return [REDUCE[block](scores[index]) for index in sorted(scores)]


WAYS = [(1, "sum", "sum"), (2, "sum", "sum"), (1, "mean", "max"), (2, "max", "mean")]


@pytest.mark.parametrize(("power", "weight", "block"), WAYS)
@pytest.mark.parametrize(("family", "blocks"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_scores_equal_an_independent_computation(family, blocks, power, weight, block):
    model, ids = build(family), text()
    for parameter in model.parameters():
        parameter.grad = None
    logits = model(ids).logits[:, :-1]
    F.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1)).backward()
    products = {name: parameter * parameter.grad for name, parameter in model.named_parameters()}
    ways = {"norm_power": power, "weight_reduction": weight, "block_reduction": block}
    model.zero_grad()

    taylor = taylor_entry(model, [ids[:1], ids[1:]], **ways)
    expected = straightforward(products, blocks, power, weight, block)
    assert taylor["scores"] == pytest.approx(expected, rel=1e-3), "Taylor"
    magnitude = magnitude_entry(find_blocks(model), **ways)
    expected = straightforward(dict(model.named_parameters()), blocks, power, weight, block)
    assert magnitude["scores"] == pytest.approx(expected, rel=1e-6), "magnitude"
    for entry in (taylor, magnitude):
        assert entry["order"] == sorted(range(6), key=entry["scores"].__getitem__)
        assert {key: entry[key] for key in ways} == ways
        # Llama: q, k, v, o, gate, up, down and two norms. GPT-2: four projections and two norms, without biases.
        assert [len(names) for names in entry["weight_scores"]] == [9 if family == "llama" else 6] * 6
    assert all(parameter.grad is None for parameter in model.parameters()), "gradients were left in the model"


def test_signs_are_summed_before_they_are_lost():
    """Sequences that pull a weight both ways cancel; absolute values of single batches would add up."""
    model, ids = build("llama"), text(8)
    together = taylor_entry(model, ids.split(1))["scores"]
    apart = torch.tensor([taylor_entry(model, [row[None]])["scores"] for row in ids]).mean(dim=0).tolist()
    assert all(one < 0.9 * other for one, other in zip(together, apart, strict=True)), (together, apart)


def test_frozen_weights_are_scored_and_stay_frozen():
    model, ids = build("llama"), text()
    free = taylor_entry(model, [ids])["scores"]
    model.requires_grad_(False)
    assert taylor_entry(model, [ids])["scores"] == free
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_in_bf16_gradients_are_summed_in_fp32():
    model, ids = build("llama"), text(8)
    exact = taylor_entry(model, ids.split(1))["scores"]
    rounded = taylor_entry(model.bfloat16(), ids.split(1))["scores"]
    assert rounded == pytest.approx(exact, rel=0.1)


def test_what_cannot_be_scored_is_refused():
    model = build("llama")
    with pytest.raises(RegrowError, match="median: known are sum, mean, max, prod"):
        magnitude_entry(find_blocks(model), weight_reduction="median")
    with pytest.raises(RegrowError, match="a product over a tensor's rows leaves fp64"):
        magnitude_entry(find_blocks(model), norm_power=40, weight_reduction="prod")
    with pytest.raises(RegrowError, match="no batch"):
        taylor_entry(model, [])
    with pytest.raises(RegrowError, match="float16 vanish"):
        taylor_entry(build("llama").half(), [text()])
    with torch.no_grad():
        find_blocks(model)[3].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(RegrowError, match=r"blocks \[3\] are not numbers"):
        magnitude_entry(find_blocks(model))
    entry = magnitude_entry(find_blocks(build("llama")), weight_reduction="mean", block_reduction="prod")
    assert len(entry["scores"]) == 6
