"""Uncertainty: what another draw of calibration sequences would have said.

The sequences are drawn again with replacement, many times (the bootstrap; Efron and Tibshirani 1993, chapters 6 and
13), the same draw for all blocks, so that what a hard sequence does to every block cancels in their differences.
What comes out is what these sequences can tell of others like them; it says nothing of other text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.importance.cut import Cut
from pipeline.importance.selection import choose_blocks, order_blocks
from pipeline.model.loss import perplexity_of

RESAMPLES = 1000
LEVEL = 0.95


def resampled_means(values: torch.Tensor, resamples: int = RESAMPLES, seed: int = 0) -> torch.Tensor:
    """Means over resampled sequences: ``values`` (blocks, S) -> (resamples, blocks) fp64.

    Raises RegrowError when there are fewer than two sequences: one says nothing of how they differ.
    """
    sequences = values.shape[1]
    if sequences < 2:
        raise RegrowError(f"{sequences} calibration sequence: an interval needs two at least; raise score.sequences")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(sequences, (resamples, sequences), generator=generator)
    counts = torch.zeros(resamples, sequences, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts @ values.double().T / sequences


def intervals(
    values: Sequence[Sequence[float]],
    *,
    transform: Callable[[float], float] = float,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[list[float]]:
    """For each block the percentile interval [low, high] of its mean over sequences.

    ``values`` (blocks, S): ``sequence_losses`` or ``sequence_scores`` of an entry of scores.json. ``transform`` is
    put on both ends: math.exp makes perplexities of mean losses.
    """
    means = resampled_means(torch.tensor(values, dtype=torch.float64), resamples, seed)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return [[transform(end) for end in block] for block in means.quantile(ends, dim=0).T.tolist()]


def stability(
    values: Sequence[Sequence[float]],
    cut: Cut,
    *,
    higher_is: str = "more important",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """How far the set of blocks that a cut takes depends on which sequences were drawn. ``values`` as in ``intervals``.

    - ``removed``: the set that all sequences give.
    - ``agreement``: the share of that set that a resample's set has too, mean over resamples (1: always the same).
    - ``same_set``: the share of resamples that give exactly that set.
    - ``chances``: for each block the share of resamples that remove it.
    - ``unsettled``: pairs [removed, kept] of free blocks whose paired difference of means is not told from zero at
      ``level``, nearest first. The choice between them is noise.
    - ``settled``: there are none.
    - ``sequences_needed``: how many sequences would settle the hardest pair, if its mean difference and its spread
      stay as they are. Of the order of magnitude alone, since the difference is itself uncertain; None where two
      blocks do not differ at all.

    Raises RegrowError as ``choose_blocks`` does, and on fewer than two sequences.
    """
    table = torch.tensor(values, dtype=torch.float64)
    total, sequences = table.shape

    def chosen(means: Sequence[float]) -> list[int]:
        return choose_blocks(order_blocks(means, higher_is), cut)

    resampled = [chosen(means) for means in resampled_means(table, resamples, seed).tolist()]
    removed = chosen(table.mean(dim=1).tolist())
    common = [len(set(removed) & set(other)) for other in resampled]
    kept = [block for block in cut.free(total) if block not in removed]
    pairs = _sequences_to_settle(table, removed, kept, level)
    hardest = max((needed for needed, _ in pairs), default=0)
    return {
        "removed": removed,
        "agreement": sum(common) / (len(common) * len(removed)),
        "same_set": sum(count == len(removed) for count in common) / len(common),
        "chances": [sum(block in other for other in resampled) / resamples for block in range(total)],
        "unsettled": [pair for needed, pair in sorted(pairs, reverse=True) if needed > sequences],
        "settled": hardest <= sequences,
        "sequences": sequences,
        "sequences_needed": None if math.isinf(hardest) else max(2, hardest),
    }


def _sequences_to_settle(
    table: torch.Tensor, removed: list[int], kept: list[int], level: float
) -> list[tuple[float, list[int]]]:
    """For each pair [removed, kept] the sequences that would tell its blocks apart at ``level``, before the pair.

    (z x deviation / difference) squared, of the paired differences of ``table`` (blocks, S) fp64; infinite where the
    blocks are equal in every sequence: no number of them tells the two apart.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    pairs = []
    for gone in removed:
        for stays in kept:
            difference = table[stays] - table[gone]
            mean, deviation = abs(difference.mean().item()), difference.std().item()
            needed = math.ceil((z * deviation / mean) ** 2) if mean else math.inf
            pairs.append((needed, [gone, stays]))
    return pairs


def near_noise(values: Sequence[Sequence[float]], order: Sequence[int], *, level: float = LEVEL) -> list[list[int]]:
    """Neighbours in the order whose means are not told apart by these sequences at ``level`` (paired, normal)."""
    table = torch.tensor(values, dtype=torch.float64)
    sequences = table.shape[1]
    if sequences < 2:
        raise RegrowError(f"{sequences} calibration sequence: a spread needs two at least; raise score.sequences")
    z = NormalDist().inv_cdf((1 + level) / 2)
    noisy = []
    for first, second in pairwise(order):
        difference = table[second] - table[first]
        if abs(difference.mean().item()) <= z * difference.std().item() / math.sqrt(sequences):
            noisy.append([first, second])
    return noisy


def add_uncertainty(entry: dict[str, Any]) -> None:
    """Add ``interval`` and ``noise_pairs`` to an entry that has values for two sequences or more."""
    values = sequence_values(entry)
    if values is None:
        return
    # Perplexities are exp of a mean loss, and so are the ends of their intervals.
    transform = perplexity_of if "sequence_losses" in entry else float
    entry["interval"] = intervals(values, transform=transform)
    entry["noise_pairs"] = near_noise(values, entry["order"])


def sequence_values(entry: Mapping[str, Any]) -> list[list[float]] | None:
    """What an entry has for each block and each of at least two sequences (blocks, S), or None."""
    values = entry.get("sequence_losses") or entry.get("sequence_scores")
    return values if values and len(values[0]) > 1 else None
