"""Every criterion behind one call: the library face of scoring, which stage score uses too.

What a criterion needs and how it is made stands in criteria.py, its formula in the module that computes it. All that
the sweep gives comes out of one pass; the rest is made one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.criteria import CRITERIA
from pipeline.errors import RegrowError
from pipeline.importance.batch_major import Wanted, own_share, require_micro_batch, sweep_by_batch
from pipeline.importance.block_major import sweep_by_block
from pipeline.importance.criteria import (
    DEFAULTS,
    FROM_MODEL,
    FROM_VARIANTS,
    FROM_WEIGHTS,
    NEEDS,
    SWEPT,
    Settings,
    Text,
)
from pipeline.importance.distances import StateDistances
from pipeline.importance.kept import Kept
from pipeline.importance.linear import find_projections
from pipeline.importance.ppl import TIE, windows_of
from pipeline.importance.sweep import Window
from pipeline.importance.uncertainty import add_uncertainty
from pipeline.model.blocks import find_blocks
from pipeline.model.head import require_causal_head
from pipeline.model.ids import Batches, id_batches, require_ids
from pipeline.model.streaming import StreamedModel
from pipeline.model.structure import require_separate_blocks
from pipeline.shown import bars
from pipeline.world import ALONE, World


def silent(line: str) -> None:
    """What scoring says goes nowhere."""


def score_blocks(
    model: PreTrainedModel,
    batches: Batches = (),
    criteria: Iterable[str] | str = ("ppl",),
    settings: Settings = DEFAULTS,
    *,
    maps: Callable[[], torch.Tensor] | None = None,
    world: World = ALONE,
    folder: Path | None = None,
    progress: bool | Callable[[str], None] = True,
) -> dict[str, dict[str, Any]]:
    """Score every block of a model: criterion -> its entry of scores.json, in the order asked for.

    >>> scores = score_blocks(model, batches, ["ppl", "block_influence"])
    >>> list(scores), len(scores["ppl"]["scores"]), sorted(scores["ppl"]["order"])
    (['ppl', 'block_influence'], 8, [0, 1, 2, 3, 4, 5, 6, 7])

    Each entry has ``scores`` (one for each block), ``order`` (least important first) and ``higher_is``; those with
    values for each sequence also ``interval``, the 95% bootstrap interval of each score, and ``noise_pairs``,
    neighbours in the order that the sequences do not tell apart, when there are two sequences or more; the rest stands
    with the criterion. ``batches`` are ids (B, T) int64 without padding, T the same in all: one such tensor, several,
    what a tokenizer returns (``Batches``); a forward takes as many sequences as the first has, on the model's device,
    wherever they lie. ``magnitude`` needs none. One criterion may be named alone. ``linear`` is fitted on three of four
    sequences and judged on the fourth, of ``batches`` or of what ``maps`` gives. The model is left in evaluation mode,
    and without hooks.

    ``progress`` is a bar on a terminal and in a notebook, None where it is False; or a function that is told a line as
    each thing is known. Every process of ``world`` is given the same, does its share, and gets the same entries. What
    is known is kept in ``folder``, from where the same call goes on after a kill; None keeps nothing.

    Raises RegrowError on an unknown criterion, on what is no batches (``id_batches``), on batches of several lengths,
    on a model whose blocks cannot be left out, or when a score is not a number.
    """
    with bars(progress is True and world.rank == 0):
        say = progress if callable(progress) else silent
        return _scored(model, batches, _asked(criteria), settings, maps, world, Kept(folder, world), say)


def _scored(
    model: PreTrainedModel,
    batches: Batches,
    asked: Sequence[str],
    settings: Settings,
    maps: Callable[[], torch.Tensor] | None,
    world: World,
    kept: Kept,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    text: Text | None = None
    if any(NEEDS[name] != "weights" for name in asked):
        text = _text(model, batches, asked, maps)
        _precision(model)
    blocks = find_blocks(model)
    require_separate_blocks(model, blocks)
    if _need(asked, "maps"):
        # Refused now, not after hours of the sweep.
        find_projections(model, [(start, 1) for start in range(len(blocks))])
    entries: dict[str, dict[str, Any]] = {}
    if text is not None and _need(asked, *SWEPT):
        windows = windows_of(len(blocks), settings.ppl_lengths)
        losses, distances = sweep_by_batch(
            model,
            text.sequences,
            Wanted(_need(asked, "variants"), windows, settings.position if _need(asked, "states") else None),
            kept=kept,
            micro_batch=text.micro_batch,
            world=world,
            say=say,
        )
        targets = text.sequences.shape[1] - 1
        entries = sweep_entries(asked, losses, distances, targets, TIE[_precision(model)], windows)
    made = {name: partial(FROM_WEIGHTS[name], blocks, settings) for name in asked if name in FROM_WEIGHTS}
    if text is not None:
        made |= {name: partial(FROM_MODEL[name], model, text, settings, world) for name in asked if name in FROM_MODEL}
    return _finished(asked, entries, made, kept, say)


def score_streamed(
    streamed: StreamedModel,
    sequences: torch.Tensor,
    criteria: Iterable[str] | str = ("ppl",),
    settings: Settings = DEFAULTS,
    *,
    micro_batch: int = 1,
    world: World = ALONE,
    folder: Path,
    say: Callable[[str], None] = silent,
) -> dict[str, dict[str, Any]]:
    """The same, to the bit on a CPU, with one block on the device at a time: for models larger than the device.

    ``sequences`` (S, T) int64. ``folder`` holds the states between the blocks, in states-*, until the caller deletes
    them. Raises RegrowError on what needs the whole model on the device: ``linear``, ``taylor`` and windows of ``ppl``.
    """
    asked = _asked(criteria)
    require_ids(sequences, "sequences")
    require_micro_batch(micro_batch)
    kept = Kept(folder, world)
    whole = [f"score.criteria {name}" for name in sorted(asked) if NEEDS[name] in ("maps", "gradients")]
    whole += ["score.ppl_n"] * bool(settings.ppl_lengths)
    if whole:
        raise RegrowError(
            f"{' and '.join(whole)}: needs the whole model on the device, and block-major order holds one block; leave "
            "it out, or set score.loop=batch-major on a device that is large enough"
        )
    entries: dict[str, dict[str, Any]] = {}
    if _need(asked, *SWEPT):
        own = own_share(sequences, micro_batch, world)
        share = torch.cat(own) if own else sequences[:0]
        distances = StateDistances(len(streamed.blocks), settings.position) if _need(asked, "states") else None
        losses = None
        if len(share):
            losses = sweep_by_block(
                streamed,
                share,
                folder=folder / f"states-{world.rank}-of-{world.size}",
                micro_batch=micro_batch,
                losses=_need(asked, "variants"),
                distances=distances,
                say=say,
            )
        found = [item for item in world.gather((losses, distances, len(share))) if item[2]]
        losses = torch.cat([item[0] for item in found], dim=1) if _need(asked, "variants") else None
        distances = found[0][1]
        for _, other, _ in found[1:] if distances is not None else ():
            distances.add(other)
        tie = TIE[str(streamed.dtype).removeprefix("torch.")]
        entries = sweep_entries(asked, losses, distances, sequences.shape[1] - 1, tie)
    made = {name: partial(_from_loaded, streamed, name, settings) for name in asked if name in FROM_WEIGHTS}
    return _finished(asked, entries, made, kept, say)


def _from_loaded(streamed: StreamedModel, name: str, settings: Settings) -> dict[str, Any]:
    return FROM_WEIGHTS[name](_loaded(streamed), settings)


def _loaded(streamed: StreamedModel) -> Iterator[nn.Module]:
    for index in range(len(streamed.blocks)):
        with streamed.block(index) as block:
            yield block


def _asked(criteria: Iterable[str] | str) -> list[str]:
    asked = [criteria] if isinstance(criteria, str) else list(dict.fromkeys(criteria))
    if not asked:
        raise RegrowError(f"criteria: none is named; known are: {', '.join(CRITERIA)}")
    unknown = sorted(set(asked) - set(CRITERIA))
    if unknown:
        raise RegrowError(f"criteria {unknown}: not known; known are: {', '.join(CRITERIA)}")
    return asked


def _need(asked: Sequence[str], *kinds: str) -> bool:
    """Whether one of the criteria is made of one of these kinds."""
    return any(NEEDS[name] in kinds for name in asked)


def _text(
    model: PreTrainedModel,
    batches: Batches,
    asked: Sequence[str],
    maps: Callable[[], torch.Tensor] | None,
) -> Text:
    # The loss of a token needs one before it.
    losses = _need(asked, "variants", "gradients")
    found = id_batches(model, batches, shortest=2 if losses else 1, one_length=True)
    if losses:
        require_causal_head(model)
    return Text(torch.cat(found), len(found[0]), maps)


def _finished(
    asked: Sequence[str],
    swept: dict[str, dict[str, Any]],
    made: Mapping[str, Callable[[], dict[str, Any]]],
    kept: Kept,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The entries in the order asked for, with what the sequences say of their uncertainty: those of the sweep, and
    those that are ``made`` now, once."""
    entries = dict(swept)
    for name in (name for name in asked if name in made):
        say(f"{name}: begun")
        entries[name] = kept.once(name, made[name])
        say(f"{name}: scored")
    for entry in entries.values():
        add_uncertainty(entry)
    return {name: entries[name] for name in asked}


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
    made = {} if distances is None else distances.entries()
    if losses is not None:
        made |= {name: FROM_VARIANTS[name](losses, targets, tie, windows) for name in asked if name in FROM_VARIANTS}
    return {name: made[name] for name in asked if name in made}


def _precision(model: PreTrainedModel) -> str:
    """The dtype of the model's weights; RegrowError where they are of none that losses are computed in."""
    name = str(next(model.parameters()).dtype).removeprefix("torch.")
    if name not in TIE:
        raise RegrowError(f"the model's weights are {name}; it is scored in one of {', '.join(TIE)}")
    return name
