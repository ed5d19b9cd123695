"""Comparison: what the pruned, untrained model is worth, for each way of choosing which blocks go.

A criterion that does not beat the controls, on text that it was not computed from, has shown nothing. So the sets of
every scored criterion, of contiguous and greedy selection and of the controls are measured by the same perplexity, on
the calibration sequences and on held-out rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from pipeline.criteria import CONTROLS
from pipeline.errors import RegrowError
from pipeline.importance.choosing import Entries, Removals, Way
from pipeline.importance.controls import control_blocks
from pipeline.importance.cut import Cut
from pipeline.importance.perplexities import ByText, Maps, RowLosses
from pipeline.importance.selection import choose_blocks, choose_window

#: Criteria whose best window is compared beside their single blocks: those that peers choose windows by.
BY_WINDOW = ("ppl", "block_influence", "angular_last", "angular_mean", "linear")


class ComparedSet(TypedDict):
    """A set of blocks, the way that chose it, and whether linear maps stand in their place."""

    by: str
    selection: str
    linear_map: bool
    remove: int
    blocks: list[int]


class MeasuredSet(ComparedSet):
    """That set with what the model is worth without it: by text, and by each of its rows."""

    perplexity: ByText
    row_losses: RowLosses


def compare_ways(
    removals: Removals,
    entries: Entries,
    way: Way,
    removed: list[int],
    maps: Maps | None = None,
    *,
    shares: Sequence[float] = (),
    greedy: bool = False,
) -> dict[str, Any]:
    """comparison.json: the perplexity of every way of choosing, and of the set ``removed`` that ``way`` chose, at as
    many blocks and at each of the ``shares``; with ``greedy`` of greedy and one-shot removal at every number.

    >>> cut, text = Cut(remove=2, protect_first=2, protect_last=1), Text(torch.cat(batches), micro_batch=2)
    >>> removals = Removals(model, text, cut, say=lambda line: None)
    >>> [one["by"] for one in compare_ways(removals, scores, Way("ppl"), [3, 4])["sets"]][-3:]
    ['tail', 'random', 'uniform']

    ``maps`` stand in for the removed blocks, where there are some. Raises RegrowError when the model itself has no
    perplexity.
    """
    total, cut, planned = len(removals.sizes.blocks), removals.cut, len(removed)
    counts = sorted({planned} | {int(share * total) for share in shares})
    if "linear" in entries and str(planned) not in entries["linear"]["windows"]:
        removals.say(f"linear was not fitted for windows of {planned} blocks: its window is not compared")
    sets = list(compared_sets(entries, total, counts, cut, seed=way.seed))
    if greedy:
        sets += _greedy_sets(removals, entries, counts)
    own = _named(way.by, way.selection, removed)
    if not any(all(one[key] == own[key] for key in ("by", "selection", "remove")) for one in sets):
        sets.append(own)
    measured = measured_sets(removals, sets)
    measured += _with_maps(removals, measured, planned)
    if maps and not any(one["linear_map"] and one["blocks"] == removed for one in measured):
        measured.append(_measured(removals, {**own, "linear_map": True}, maps))
    calibration, held_out = removals.text.sequences, removals.held_out
    return {
        "protected": cut.protected(total),
        "planned": planned,
        "removals": counts,
        "shares": [count / total for count in counts],
        "calibration": {"sequences": len(calibration), "length": calibration.shape[1]},
        "held_out": None if held_out is None else {"rows": len(held_out), "length": held_out.shape[1]},
        "dense": removals.perplexities([]),
        "dense_row_losses": removals.perplexities.row_losses([]),
        "sets": measured,
    }


def compared_sets(
    entries: Entries, total: int, counts: Sequence[int], cut: Cut, *, seed: int = 0
) -> Iterator[ComparedSet]:
    """The sets of every criterion, best window and control, for each count of blocks, under the cut's protect rule.

    A count that the protect rule does not allow is left out, and so are windows of ppl and linear whose length was not
    scored.
    """
    for taking in [cut.taking(count) for count in counts if 0 < count <= cut.most(total)]:
        for name, entry in entries.items():
            yield _named(name, "one-shot", choose_blocks(entry["order"], taking))
        for name in BY_WINDOW:
            windows = entries.get(name, {}).get("windows")
            if windows is not None and not (isinstance(windows, Mapping) and str(taking.remove) not in windows):
                yield _named(name, "contiguous", choose_window(windows, taking))
        for control in CONTROLS:
            yield _named(control, "control", control_blocks(control, total, taking, seed=seed))


def measured_sets(removals: Removals, sets: Sequence[ComparedSet]) -> list[MeasuredSet]:
    """The sets with their perplexities. Raises RegrowError when the model itself has none."""
    if not removals.perplexities.dense_is_finite():
        raise RegrowError("the dense model's perplexity is not a finite number: removals cannot be compared with it")
    removals.say(f"comparing {len(sets)} sets of blocks by the perplexity without them")
    measured: list[MeasuredSet] = []
    for count, one in enumerate(sets, start=1):
        measured.append(_measured(removals, one))
        found = measured[-1]["perplexity"]
        values = ", ".join(f"{text} {value:.2f}" for text, value in found.items() if value is not None)
        removals.say(
            f"comparison {count} of {len(sets)}: {one['remove']} blocks by {one['by']}, {one['selection']}: {values}"
        )
    return measured


def _measured(removals: Removals, one: ComparedSet, maps: Maps | None = None) -> MeasuredSet:
    """The set with its perplexities, with ``maps`` in its place."""
    asked = one["blocks"], maps
    known = removals.perplexities
    return {**one, "perplexity": known(*asked), "row_losses": known.row_losses(*asked)}


def _named(by: str, selection: str, blocks: list[int]) -> ComparedSet:
    return {"by": by, "selection": selection, "linear_map": False, "remove": len(blocks), "blocks": blocks}


def _greedy_sets(removals: Removals, entries: Entries, counts: Sequence[int]) -> Iterator[ComparedSet]:
    """Greedy removal at every number of blocks, and one-shot removal where it is not compared anyway."""
    cut, most = removals.cut, removals.cut.most(len(removals.sizes.blocks))
    gone = [one.removed for one in removals.greedy(cut.taking(most))] if most else []
    for remove in range(1, most + 1):
        yield _named("ppl", "greedy", sorted(gone[:remove]))
        if "ppl" in entries and remove not in counts:
            yield _named("ppl", "one-shot", choose_blocks(entries["ppl"]["order"], cut.taking(remove)))


def _with_maps(removals: Removals, measured: Sequence[MeasuredSet], planned: int) -> list[MeasuredSet]:
    """The window that linear chose at the planned count, with its map in its place."""
    chosen = [
        one
        for one in measured
        if (one["by"], one["selection"], one["remove"]) == ("linear", "contiguous", planned) and one["blocks"][0] > 0
    ]
    return [
        _measured(
            removals,
            {**_named("linear", "contiguous", one["blocks"]), "linear_map": True},
            removals.maps(one["blocks"])[0],
        )
        for one in chosen
    ]
