"""Choosing: from scores to the blocks that go, also where the model must run to know them.

A cut says how much goes, a way how the blocks of it are found. ``choose`` follows scores alone; ``Removals`` runs the
dense model for the rounds of greedy removal, for a budget of perplexity and for linear maps. A notebook calls either::

    removals = Removals(model, Text(sequences, micro_batch=1), Cut(perplexity=20))
    removed = removals.choose(Way("ppl"), score_blocks(model, sequences)).removed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.criteria import CONTROLS, CRITERIA
from pipeline.errors import RegrowError
from pipeline.importance.batch_major import own_share
from pipeline.importance.controls import control_blocks, control_order
from pipeline.importance.criteria import Text
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import Round, greedy_rounds
from pipeline.importance.kept import Kept
from pipeline.importance.linear import RIDGE, split_for_maps
from pipeline.importance.maps import fit_runs
from pipeline.importance.perplexities import Maps, Perplexities
from pipeline.importance.selection import choose_blocks, choose_window, choose_within
from pipeline.model.blocks import check_indices
from pipeline.model.describe import Sizes
from pipeline.model.ids import require_ids
from pipeline.model.replacement import removed_runs
from pipeline.world import ALONE, World

#: The entries of scores.json by criterion.
Entries = Mapping[str, Mapping[str, Any]]


#: How the blocks of a cut can be found.
SELECTIONS = ("one-shot", "contiguous", "greedy", "control", "given")


@dataclass(frozen=True)
class Way:
    """How the blocks of a cut are found.

    ``by`` is a criterion or a control. ``selection``: ``one-shot`` (the first blocks of its order), ``contiguous``
    (its best window), ``greedy`` (one by one, scored again by ppl after each), ``control``, or ``given`` where the
    blocks were named or ``order``, all blocks with the least important first, is followed. ``seed`` is that of the
    control ``random``.

    >>> way = Way("block_influence", "contiguous")
    """

    by: str = "ppl"
    selection: str = "one-shot"
    seed: int = 0
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise RegrowError(f"selection {self.selection!r}: not known; known are {', '.join(SELECTIONS)}")
        known = {"given": (self.by,), "control": CONTROLS}.get(self.selection, CRITERIA)
        if self.by not in known:
            raise RegrowError(f"{self.selection} by {self.by!r}: not known; known are {', '.join(known)}")


@dataclass(frozen=True)
class Choice:
    """The blocks that go, sorted, and the rounds of greedy removal where it chose them."""

    removed: list[int]
    rounds: list[Round] | None = None


def choose(way: Way, cut: Cut, entries: Entries, sizes: Sizes) -> list[int]:
    """The blocks that go from a model of such ``sizes``, by scores alone; sorted.

    >>> choose(Way("tail", "control"), Cut(remove=2, protect_first=2, protect_last=1), scores, Sizes.of(model))
    [5, 6]

    Raises RegrowError when the cut is impossible, or when the model must be run to know: greedily, or within a
    perplexity.
    """
    total = len(sizes.blocks)
    if cut.blocks is not None:
        return check_indices(cut.blocks, total)
    if way.selection == "greedy":
        raise RegrowError("greedy selection scores again after each removal: ask Removals, which runs the model")
    counted = cut.taking(cut.count(sizes))
    if way.order is None and way.by in CONTROLS:
        return control_blocks(way.by, total, counted, seed=way.seed)
    if way.selection == "contiguous":
        return choose_window(entries[way.by]["windows"], counted)
    return choose_blocks(followed_order(way, entries, total), counted)


def followed_order(way: Way, entries: Entries, total: int) -> Sequence[int]:
    """The order of all blocks that one-shot removal follows, least important first."""
    if way.order is not None:
        return way.order
    return control_order(way.by, total, way.seed) if way.by in CONTROLS else entries[way.by]["order"]


class Removals:
    """What can be asked of a dense model before blocks are removed. Every process makes one and asks the same.

    >>> cut, text = Cut(remove=2, protect_first=2, protect_last=1), Text(torch.cat(batches), micro_batch=2)
    >>> removals = Removals(model, text, cut, say=lambda line: None)
    >>> len(removals.choose(Way(selection="greedy"), scores).removed)
    2

    ``text`` holds the calibration sequences, on which greedy rounds and budgets are judged, and the sequences of linear
    maps; ``held_out`` are ids (N, T) int64 that perplexities are measured on too. Every process of ``world`` is given
    the same, does its share, and gets the same answers. What is known is kept in ``folder``, from where the same
    questions go on after a kill; None keeps nothing. ``say`` gets a line as each thing is known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        text: Text,
        cut: Cut,
        *,
        held_out: torch.Tensor | None = None,
        ridge: float = RIDGE,
        world: World = ALONE,
        folder: Path | None = None,
        say: Callable[[str], None] = print,
    ):
        if held_out is not None:
            require_ids(held_out, "held_out")
        self.model, self.text, self.cut, self.held_out = model, text, cut, held_out
        self.ridge, self.world, self.say = ridge, world, say
        self.sizes, self._kept = Sizes.of(model), Kept(folder, world)
        self._share = own_share(text.sequences, text.micro_batch, world)
        texts = {"calibration": text.sequences, "held_out": held_out}
        self.perplexities = Perplexities(model, texts, text.micro_batch, kept=self._kept, world=world)

    def choose(self, way: Way, entries: Entries) -> Choice:
        """The blocks of the cut that a way finds, from the entries of the criteria that were scored.

        Raises RegrowError as ``choose`` does, and when a perplexity lets no block go.
        """
        if way.selection == "greedy":
            rounds = self.greedy(self.cut)
            if not rounds:
                raise RegrowError(
                    f"perplexity {self.cut.perplexity:g}: without any one block that of the calibration sequences is "
                    "above it; raise it",
                    about="perplexity",
                )
            return Choice(sorted(one.removed for one in rounds), rounds)
        if self.cut.perplexity is not None:
            order = followed_order(way, entries, len(self.sizes.blocks))
            return Choice(choose_within(order, self.cut, self._on_calibration))
        return Choice(choose(way, self.cut, entries, self.sizes))

    def greedy(self, cut: Cut) -> list[Round]:
        """The rounds of greedy removal that a cut takes; earlier ones are not repeated."""
        kept: list[dict[str, Any]] = self._kept.known("greedy", [])
        rounds = [_round(one) for one in kept]
        budget = cut.perplexity
        if budget is None:
            known = rounds[: cut.count(self.sizes)]
            if len(known) == cut.count(self.sizes):
                return known
        else:
            known = list(takewhile(lambda one: one.perplexity <= budget, rounds))
            if len(known) < len(rounds):
                return known
        done = [one.removed for one in rounds]
        self.say(f"greedy removal: every round tries each block that is left, on {len(self.text.sequences)} sequences")
        for one in greedy_rounds(self.model, self._share, cut, done=done, world=self.world):
            rounds.append(one)
            if self.world.rank == 0:
                self._kept.put("greedy", [asdict(each) for each in rounds])
            self.say(f"greedy round {len(rounds)}: block {one.removed} goes, perplexity {one.perplexity:.2f}")
        return rounds

    def maps(self, removed: Sequence[int]) -> tuple[Maps, int]:
        """A linear map for every run of removed blocks but one that begins at block 0, and the tokens fitted on."""
        sequences = self.text.sequences if self.text.maps is None else self.text.maps()
        fit, _ = split_for_maps(sequences, self.text.micro_batch, self.world.rank, self.world.size)
        runs = sum(run[0] > 0 for run in removed_runs(removed))
        self.say(f"fitting linear maps for {runs} runs of blocks")
        maps = fit_runs(self.model, fit, removed, self.ridge, self.world)
        tokens = sum(self.world.gather(sum(batch.numel() for batch in fit)))
        self.say(f"linear maps for {runs} runs of blocks, fitted on {tokens:,} tokens")
        return maps, tokens

    def replaced(self, removed: Sequence[int]) -> tuple[Maps, dict[str, Any]]:
        """The maps that take the removed runs' places, and what prune.json says of them.

        Raises RegrowError where no block is left before any of them, and as ``fit_maps`` does.
        """
        if removed[0] == 0 and len(removed_runs(removed)) == 1:
            raise RegrowError(
                "linear maps: every removed block lies at the start, where no block is left to fold a map into; "
                "protect block 0, or remove them without maps",
                about="linear",
            )
        maps, tokens = self.maps(removed)
        runs = [list(run) for run in removed_runs(removed) if run[0] in maps]
        with_map = self.perplexities(removed, maps)
        return maps, {
            "runs": [{"blocks": run, "folded_into": run[0] - 1} for run in runs],
            "tokens": tokens,
            "perplexity": {"without_map": self.perplexities(removed), "with_map": with_map},
        }

    def _on_calibration(self, removed: list[int]) -> float:
        value = self.perplexities(removed)["calibration"]
        reached = math.inf if value is None else value
        self.say(f"without {len(removed)} blocks: perplexity {reached:.2f}, budget {self.cut.perplexity:.2f}")
        return reached


def _round(plain: Mapping[str, Any]) -> Round:
    """A round as JSON kept it: the keys of its candidates were numbers."""
    return Round(plain["removed"], plain["dense"], {int(block): value for block, value in plain["candidates"].items()})
