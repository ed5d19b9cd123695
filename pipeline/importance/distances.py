"""Distances between the dense states of a model: how far a run of blocks carries what goes through it.

With x_s the state that enters block s, a window of n blocks from ``start`` is judged by x_start and x_(start + n),
for every start and every n, the windows that end at the last block included. The last state is taken before the final
norm: behind it every token has another length and direction, and the last block would be judged by the norm. A block
alone is the window n = 1.

The states of one batch are held, never those of two; what is kept of a sequence is one number for each block, and the
sums over sequences of one number for each window.

Every measure is one function of such a pair and one row of ``MEASURES``; its formula and its paper stand in
``pipeline.criteria``. (short-transformers' relative magnitude puts y for y - x; that is not the paper's.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import RegrowError
from pipeline.importance.selection import order_blocks

#: So many values of the states are taken to fp32 at a time.
CHUNK = 2**24


@dataclass(frozen=True)
class Pair:
    """The states x that windows begin with and the one y that they all end with, as far as measures need them; fp32.

    ``chords`` |x/|x| - y/|y|| and ``lengths`` |y - x| are (starts, T), the norms ``before`` |x| too; ``after`` |y| is
    (T,). Angles come from the chord c: cos = 1 - c²/2 and arccos(cos) = 2 arcsin(c/2). Unlike a rounded cosine this is
    exact also where x and y hardly differ.
    """

    chords: torch.Tensor
    lengths: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    def angles(self) -> torch.Tensor:
        """Angles over pi, 0 to 1."""
        return 2 * torch.asin((self.chords / 2).clamp_max(1)) / torch.pi

    def ratios(self) -> torch.Tensor:
        """|y| / |x|; 1 where x is a state of zeros (a padding token's embedding), which nothing is longer than."""
        return torch.where(self.before > torch.finfo(torch.float32).tiny, self.after / self.before, 1)


#: What is measured of a pair, (starts, T), by criterion; the mean over tokens is taken of it ...
MEASURES: dict[str, Callable[[Pair], torch.Tensor]] = {
    "block_influence": lambda pair: pair.chords.square() / 2,
    "angular_last": Pair.angles,
    "angular_mean": Pair.angles,
    "relative_magnitude": lambda pair: pair.lengths / pair.after,
    "euclidean": lambda pair: pair.lengths,
    "euclidean_last": lambda pair: pair.lengths,
    "norm_ratio": Pair.ratios,
    "normalised_mse": lambda pair: (pair.lengths / pair.after).square(),
}
#: ... but for these, which look at one token.
AT_A_TOKEN = ("angular_last", "euclidean_last")
DISTANCES = tuple(MEASURES)


class StateDistances:
    """All distances of a model of ``blocks`` blocks, gathered by the sweep: hand it over as ``watch``.

    ``position`` is the token that the criteria of one token look at, counted as in a list: -1 is the last.

    ``sums`` holds for each criterion the sum over the sequences seen, (L + 1, L + 1) fp64 on the CPU: entry
    [start, end] belongs to the window of blocks start ... end - 1. ``sequences`` holds for each criterion a list for
    each sequence, in the order in which they came, of the L blocks alone.
    """

    def __init__(self, blocks: int, position: int = -1):
        self.blocks, self.position = blocks, position
        self.sums = {name: torch.zeros(blocks + 1, blocks + 1, dtype=torch.float64) for name in DISTANCES}
        self.sequences: dict[str, list[list[float]]] = {name: [] for name in DISTANCES}
        self._states: list[torch.Tensor] = []

    def __call__(self, index: int, state: torch.Tensor) -> None:
        """Keep a copy of what enters block ``index``; with the last state (B, T, d), add the batch and let it go."""
        if index == 0:
            self._states.clear()  # of a batch that was broken off
        self._states.append(state.detach().clone())
        if index < self.blocks:
            return
        for sequence in range(len(state)):
            states = torch.stack([held[sequence] for held in self._states])
            for name, values in distances_between(states, self.position).items():
                self.sums[name] += values
                self.sequences[name].append(values.diagonal(offset=1).tolist())
        self._states.clear()

    def add(self, other: StateDistances) -> None:
        """Add the sequences of another, after the own ones: those of another process, or of an earlier session."""
        for name in DISTANCES:
            self.sums[name] += other.sums[name]
            self.sequences[name] += other.sequences[name]

    def to_json(self) -> dict[str, Any]:
        """All that was gathered, as plain lists; numbers come back from JSON as they were, to the bit."""
        return {
            "blocks": self.blocks,
            "position": self.position,
            "sums": {name: values.tolist() for name, values in self.sums.items()},
            "sequences": self.sequences,
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> StateDistances:
        """What ``to_json`` gave."""
        made = cls(saved["blocks"], saved["position"])
        for name in DISTANCES:
            made.sums[name] = torch.tensor(saved["sums"][name], dtype=torch.float64)
            made.sequences[name] = list(saved["sequences"][name])
        return made

    def entries(self) -> dict[str, dict[str, Any]]:
        """The entry of scores.json of each criterion.

        ``scores`` are those of the blocks alone, means over the sequences, higher being more important; ``windows``
        has a list for each start, whose entry n - 1 belongs to the n blocks from there (the list is as long as there
        are blocks from there to the end); ``sequence_scores`` are (blocks, sequences). Raises RegrowError when no
        sequence was seen, or when a score is not a number.
        """
        made = {}
        for name, sums in self.sums.items():
            alone = self.sequences[name]
            if not alone:
                raise RegrowError("no sequence was seen: the distances have no mean")
            means = sums / len(alone)
            scores = means.diagonal(offset=1).tolist()
            made[name] = {
                "scores": scores,
                "order": order_blocks(scores),
                "higher_is": "more important",
                "windows": [means[start, start + 1 :].tolist() for start in range(self.blocks)],
                "sequence_scores": [list(block) for block in zip(*alone, strict=True)],
            } | ({"position": self.position} if name in AT_A_TOKEN else {})
        return made


def distances_between(states: torch.Tensor, position: int = -1) -> dict[str, torch.Tensor]:
    """Every distance between the states (L + 1, T, d) of one sequence: criterion -> (L + 1, L + 1) fp64 on the CPU.

    Entry [start, end] with start < end is filled, the others are zero. Norms are taken in fp32, means over tokens in
    fp64.
    """
    total, tokens, width = states.shape
    sums = {name: torch.zeros(total, total, dtype=torch.float64, device=states.device) for name in DISTANCES}
    for chunk in states.split(max(1, CHUNK // (total * width)), dim=1):
        for end, pair in enumerate(_pairs(chunk.float()), start=1):
            for name in DISTANCES:
                if name not in AT_A_TOKEN:
                    sums[name][:end, end] += MEASURES[name](pair).double().sum(dim=1)
    distances = {name: values / tokens for name, values in sums.items()}
    for end, pair in enumerate(_pairs(states[:, position, None].float()), start=1):
        for name in AT_A_TOKEN:
            distances[name][:end, end] = MEASURES[name](pair)[:, 0].double()
    return {name: values.cpu() for name, values in distances.items()}


def _pairs(states: torch.Tensor) -> Iterator[Pair]:
    """For each end 1 ... L, the pairs with all starts before it."""
    norms = torch.linalg.vector_norm(states, dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    units = states / norms[..., None]
    empty = ~states.any(dim=-1)
    for end in range(1, len(states)):
        chords = torch.linalg.vector_norm(units[:end] - units[end], dim=-1)
        # A state of zeros (a padding token's embedding) has no direction: cos 0 to any other.
        chords = chords.masked_fill(empty[:end] ^ empty[end], 2**0.5)
        lengths = torch.linalg.vector_norm(states[:end] - states[end], dim=-1)
        yield Pair(chords, lengths, norms[:end], norms[end])
