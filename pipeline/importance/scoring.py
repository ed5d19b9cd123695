"""Every criterion behind one call: the library face of scoring.

The criteria, each with its formula and its paper, are described in the module that computes it: ``ppl`` in ppl.py,
those between the states in distances.py, ``linear`` in linear.py, ``magnitude`` and ``taylor`` in weights.py. PPL and
all distances come out of one sweep; distances without PPL cost one dense forward; ``linear`` runs the dense model
once more, ``taylor`` once forward and backward, and ``magnitude`` reads the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.criteria import CRITERIA
from pipeline.importance.distances import DISTANCES, StateDistances
from pipeline.importance.linear import RIDGE, TOKENS_PER_INPUT, linear_entry
from pipeline.importance.ppl import TIE, summarise, windows_of
from pipeline.importance.sweep import Window, dense_states, removal_losses
from pipeline.importance.uncertainty import intervals, near_noise
from pipeline.importance.weights import magnitude_entry, taylor_entry
from pipeline.model.blocks import find_blocks
from pipeline.model.loss import perplexity_of
from pipeline.model.structure import require_separate_blocks
from pipeline.run import RegrowError
from pipeline.world import ALONE, World

#: Those that need no text.
WITHOUT_TEXT = {"magnitude"}
#: Those that need the loss of a token, and so one before it.
WITH_TARGETS = {"ppl", "taylor"}
#: ``linear`` is judged on one sequence of so many, and fitted on the others.
HELD_OUT = 4


def score_blocks(
    model: nn.Module,
    batches: Iterable[torch.Tensor] | torch.Tensor = (),
    criteria: Iterable[str] | str = ("ppl",),
    *,
    position: int = -1,
    ppl_lengths: Sequence[int] = (),
    linear_lengths: Sequence[int] = (),
    ridge: float = RIDGE,
    norm_power: float = 1,
    weight_reduction: str = "sum",
    block_reduction: str = "sum",
    world: World = ALONE,
) -> dict[str, dict[str, Any]]:
    """Score every block of a model: criterion -> its entry of scores.json, in the order asked for.

    Each entry has ``scores`` (one for each block), ``order`` (least important first) and ``higher_is``; those with
    values for each sequence also ``interval``, the 95% bootstrap interval of each score, and ``noise_pairs``,
    neighbours in the order that the sequences do not tell apart, when there are two sequences or more; the rest stands
    with the criterion. ``batches`` are ids (B, T) int64 without padding, T the same in all, or one such tensor;
    ``magnitude`` needs none. One criterion may be named alone.
    The model is left in evaluation mode, and without hooks.

    ``position`` is the token of the criteria that look at one; ``ppl_lengths`` and ``linear_lengths`` are those of the
    windows of ``ppl`` and ``linear`` beside single blocks. ``ridge`` is that of ``linear``, which is fitted on three of
    four sequences and judged on the fourth. The reductions are those of weights.py. ``batches`` are those of this
    process, and every process of ``world`` gets the entries of all, the sequences in rank order.

    Raises RegrowError on an unknown criterion, on no batch where one is needed, on batches of several lengths or of
    what is no id of the model, on a model whose blocks cannot be left out, or when a score is not a number.
    """
    asked = [criteria] if isinstance(criteria, str) else list(dict.fromkeys(criteria))
    unknown = sorted(set(asked) - set(CRITERIA))
    if unknown:
        raise RegrowError(f"criteria {unknown}: not known; known are: {', '.join(CRITERIA)}")
    batches = [batches] if isinstance(batches, torch.Tensor) else list(batches)
    if set(asked) - WITHOUT_TEXT:
        _precision(model)
        batches = checked_batches(model, batches, shortest=2 if set(asked) & WITH_TARGETS else 1)
    require_separate_blocks(model, find_blocks(model))

    made: dict[str, dict[str, Any]] = {}
    if "ppl" in asked or set(asked) & set(DISTANCES):
        made |= _swept(model, batches, asked, position, ppl_lengths, TIE[_precision(model)], world)
    if "linear" in asked:
        fit, held_out = split_for_maps(torch.cat(batches), len(batches[0]))
        made["linear"] = linear_entry(model, fit, held_out, lengths=linear_lengths, ridge=ridge, world=world)
    reductions = {"norm_power": norm_power, "weight_reduction": weight_reduction, "block_reduction": block_reduction}
    if "magnitude" in asked:
        made["magnitude"] = magnitude_entry(model, **reductions)
    if "taylor" in asked:
        made["taylor"] = taylor_entry(model, batches, **reductions, world=world)
    for entry in made.values():
        add_uncertainty(entry)
    return {name: made[name] for name in asked}


def checked_batches(model: nn.Module, batches: Sequence[torch.Tensor], shortest: int = 2) -> list[torch.Tensor]:
    """The batches as ids (B, T) int64; ``shortest`` is the least T.

    Raises RegrowError on no batch, on batches of another form or of several lengths, and on ids that the model has no
    embedding for.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    for number, batch in enumerate(batches):
        name = f"calibration batch {number}"
        if not isinstance(batch, torch.Tensor) or batch.ndim != 2 or batch.is_floating_point() or batch.is_complex():
            found = (
                f"{tuple(batch.shape)} of {batch.dtype}" if isinstance(batch, torch.Tensor) else type(batch).__name__
            )
            raise RegrowError(f"{name}: ids (sequences, tokens) of int64 are wanted, got {found}")
        if not len(batch) or batch.shape[1] < shortest:
            raise RegrowError(
                f"{name}: has {len(batch)} sequences of {batch.shape[1]} tokens; one of {shortest} at least is wanted"
            )
        low, high = int(batch.min()), int(batch.max())
        if low < 0 or high >= rows:
            raise RegrowError(f"{name}: ids from {low} to {high}, and the model has embeddings for 0 to {rows - 1}; "
                              "is this its tokenizer?")  # fmt: skip
    lengths = sorted({batch.shape[1] for batch in batches})
    if len(lengths) != 1:
        raise RegrowError(f"calibration batches: one length is wanted, got {lengths or 'no batch'}")
    return [batch.long() for batch in batches]


def sequences_for_maps(width: int, length: int) -> int:
    """Sequences of ``length`` tokens that linear maps of ``width`` x ``width`` take, those that judge them included."""
    fit = math.ceil(TOKENS_PER_INPUT * width / length)
    return math.ceil(fit * HELD_OUT / (HELD_OUT - 1))


def split_for_maps(
    sequences: torch.Tensor, micro_batch: int, rank: int = 0, world: int = 1
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Batches to fit linear maps on, and those to judge them by, every fourth of ``sequences`` (N, T).

    Of both this process's share: a run of neighbours, so that in rank order they are the sequences in their order.
    """
    judged = torch.arange(len(sequences)) % HELD_OUT == HELD_OUT - 1
    shares = (rows.tensor_split(world)[rank] for rows in (sequences[~judged], sequences[judged]))
    fit, judge = ([batch for batch in share.split(micro_batch) if len(batch)] for share in shares)
    return fit, judge


def sweep_entries(
    asked: Iterable[str],
    losses: torch.Tensor | None,
    distances: StateDistances | None,
    targets: int,
    tie: float,
    windows: Sequence[Window] = (),
) -> dict[str, dict[str, Any]]:
    """Entries of what a sweep gave, of those asked for: ``losses`` (L + windows + 1, S) fp64, in sums over ``targets``
    tokens.

    ``tie`` is the difference of mean losses (nats) below which the order of two blocks is rounding.
    """
    made = {} if losses is None else {"ppl": summarise(losses, targets, tie, windows)}
    made |= {} if distances is None else distances.entries()
    return {name: made[name] for name in asked if name in made}


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


def _precision(model: nn.Module) -> str:
    """The dtype of the model's weights; RegrowError where they are of none that losses are computed in."""
    name = str(next(model.parameters()).dtype).removeprefix("torch.")
    if name not in TIE:
        raise RegrowError(f"the model's weights are {name}; it is scored in one of {', '.join(TIE)}")
    return name


def _swept(
    model: nn.Module,
    batches: list[torch.Tensor],
    asked: list[str],
    position: int,
    lengths: Sequence[int],
    tie: float,
    world: World,
) -> dict[str, dict[str, Any]]:
    """The entries of PPL and of the distances that are asked for, from one pass."""
    total = len(find_blocks(model))
    windows = windows_of(total, lengths)
    distances = StateDistances(total, position) if set(asked) & set(DISTANCES) else None
    losses = []
    for batch in batches:
        if "ppl" in asked:
            losses.append(removal_losses(model, batch, windows=windows, watch=distances))
        else:
            dense_states(model, batch, distances)
    shares = world.gather((losses, distances))
    losses = [batch for share, _ in shares for batch in share]
    distances = shares[0][1]
    for _, other in shares[1:] if distances is not None else ():
        distances.add(other)
    whole = torch.cat(losses, dim=1) if losses else None
    return sweep_entries(asked, whole, distances, batches[0].shape[1] - 1, tie, windows)
