"""What scoring and choosing take, for a plan: memory of the sweep in both its orders, and the parts of their time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.commands.plan_time import Part, Shape
from pipeline.config import Config
from pipeline.criteria import CONTROLS
from pipeline.cuts import read_cut
from pipeline.importance.block_major import ROOM
from pipeline.importance.comparison import BY_WINDOW
from pipeline.importance.criteria import NEEDS
from pipeline.importance.footprint import SweepShape
from pipeline.importance.linear import sequences_for_maps
from pipeline.importance.ppl import windows_of
from pipeline.model.describe import Sizes

#: How much longer an fp64 operation takes than one of bf16: 989.4 against 67 TFLOP/s on an H100 SXM.
FP64 = 15


def scoring_memory(config: Config, model: nn.Module, sizes: Sizes, planned: int, device_bytes: float) -> dict[str, Any]:
    """What the sweep takes, in bytes, in both orders of its loops, and the order that ``auto`` takes on a device of
    ``device_bytes``.

    ``planned``: blocks that will go, as far as is known.
    """
    score, hf_config = config.score, model.config.get_text_config()
    needs = {NEEDS[name] for name in score.criteria}
    size, total, inside = getattr(torch, score.dtype).itemsize, len(sizes.blocks), sum(sizes.blocks)
    shape = SweepShape(
        blocks=total,
        sequences=score.sequences,
        length=score.length,
        width=hf_config.hidden_size,
        value_bytes=size,
        micro_batch=score.micro_batch,
        losses="variants" in needs,
        windows=len(windows_of(total, score.ppl_n)),
        distances="states" in needs,
    )
    device = shape.device(
        block_bytes=max(sizes.blocks) * size,
        outside_bytes=(sizes.whole - inside) * size,
        vocabulary=hf_config.vocab_size,
        intermediate=getattr(hf_config, "intermediate_size", None),
    )
    weights = sizes.whole * size
    extra = 0
    if "gradients" in needs:
        extra = inside * (4 + size)  # gradients of a micro-batch, and their sum in fp32
    if "maps" in needs:
        # Two fp64 matrices for each window.
        extra = max(extra, 2 * 8 * _linear_windows(config, total, planned) * hf_config.hidden_size**2)
    large = weights > ROOM * device_bytes
    return {
        "loop": score.loop if score.loop != "auto" else "block-major" if large else "batch-major",
        "weights": weights,
        "batch_major": weights + max(extra, device["chunk"] + device["logits"]),
        "block_major": sum(device.values()),
        "states": shape.states(),
    }


def scoring_parts(config: Config, shape: Shape, hidden: int, planned: int, processes: int) -> list[Part]:
    """The sweep and what other criteria need; ``hidden`` is the states' width."""
    score = config.score
    needs = {NEEDS[name] for name in score.criteria}
    tokens, flops = score.sequences * score.length, 0.0
    if "variants" in needs:
        flops += tokens * sweep_flops(shape, score.length, score.ppl_n)
    elif "states" in needs:
        flops += tokens * shape.blocks * shape.block(score.length)
    if "gradients" in needs:
        flops += 3 * tokens * shape.forward(score.length)
    if "maps" in needs:
        flops += _maps_flops(config, shape, hidden, _linear_windows(config, shape.blocks, planned))
    what = f"{score.sequences} sequences of {score.length} tokens by {', '.join(score.criteria)}"
    return [Part("score", what, flops, processes=processes)]


def sweep_flops(shape: Shape, length: int, windows: tuple[int, ...] = ()) -> float:
    """FLOPs of the sweep for a token of each sequence: block j runs on the dense state and on every variant whose
    blocks are gone before it, and each variant goes through the head."""
    total = shape.blocks
    blocks = sum((total - n) * (total - n + 1) // 2 for n in (1, *windows)) + total
    return blocks * shape.block(length) + (total + 1 + len(windows_of(total, windows))) * 2 * shape.outside


def pruning_parts(config: Config, dense: Shape, pruned: Shape, hidden: int, processes: int) -> list[Part]:
    """Choosing and comparing, where they run the model."""
    prune, score = config.prune, config.score
    if not prune.runs_model:
        return []
    calibration, held_out = score.sequences * score.length, prune.compare.rows * prune.compare.length
    rounds, words, flops = _rounds(config, dense.blocks), [], 0.0
    if prune.selection == "greedy" or (prune.compare.enabled and prune.compare.greedy):
        words.append(f"{rounds} greedy rounds")
        flops += calibration * sum(sweep_flops(_without(dense, gone), score.length) for gone in range(rounds))
    elif prune.perplexity is not None:
        words.append(f"up to {rounds} removals tried for prune.perplexity")
        flops += rounds * calibration * dense.forward(score.length)
    if prune.linear:
        words.append("linear maps")
        flops += _maps_flops(config, dense, hidden, 1)
    if prune.compare.enabled:
        sets = compared(config, dense.blocks)
        words.append(f"some {sets} sets of blocks compared on {calibration:,} and {held_out:,} tokens")
        each = calibration * pruned.forward(score.length) + held_out * pruned.forward(prune.compare.length)
        flops += sets * each
    return [Part("prune", "; ".join(words), flops, processes=processes)]


def compared(config: Config, total: int) -> int:
    """About how many sets of blocks stage prune compares in a model of ``total`` blocks, the dense model among them:
    every criterion, best window and control at every share."""
    prune, scored = config.prune, config.score.criteria
    counts = 1 + len(prune.compare.shares)
    windows = sum(name in scored for name in BY_WINDOW if name not in ("ppl", "linear"))
    sets = 1 + counts * (len(scored) + windows + len(CONTROLS))
    return sets + (2 * read_cut(config).most(total) if prune.compare.greedy else 0)


def _rounds(config: Config, total: int) -> int:
    """How often greedy removal, or a budget of perplexity, tries blocks at most."""
    cut, compare = read_cut(config), config.prune.compare
    if cut.perplexity is not None or (compare.enabled and compare.greedy) or cut.parameters is not None:
        return cut.most(total)
    return len(cut.blocks) if cut.blocks is not None else cut.count(total)


def _without(shape: Shape, gone: int) -> Shape:
    left = shape.blocks - gone
    return Shape(left, shape.inside * left // shape.blocks, shape.outside, shape.width, shape.value_bytes)


def _linear_windows(config: Config, total: int, planned: int) -> int:
    """Windows that linear maps are fitted for in scoring."""
    return sum(total - count for count in {1, *(config.score.linear_n or (planned,))} if count)


def _maps_flops(config: Config, shape: Shape, hidden: int, windows: int) -> float:
    """Of one dense pass over the sequences of maps, and of their two fp64 products a token and window."""
    score = config.score
    sequences = score.linear_sequences or sequences_for_maps(hidden, score.length)
    return sequences * score.length * (shape.forward(score.length) + FP64 * windows * 4 * hidden**2)
