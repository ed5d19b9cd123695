"""The sweep over many sequences, kept as it goes: all blocks for one micro-batch, then the next micro-batch.

The micro-batches are dealt to the processes. What one of them gives is written as soon as it is known, so that a
killed sweep goes on where it was, and is read back in the order of the sequences, so that the sums do not depend on
who computed what. Memory does not grow with the number of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.distances import StateDistances
from pipeline.importance.kept import Kept
from pipeline.importance.sweep import Window, dense_states, removal_losses
from pipeline.model.blocks import find_blocks
from pipeline.shown import shown
from pipeline.world import World


@dataclass(frozen=True)
class Wanted:
    """What a sweep is to give: the ``losses`` of removing each block and each of ``windows``, and the distances, where
    ``position``, the token that some of them look at, is a number."""

    losses: bool = True
    windows: Sequence[Window] = ()
    position: int | None = None

    def distances(self, blocks: int) -> StateDistances | None:
        """What adds the distances up, still empty; None where they are not wanted."""
        return None if self.position is None else StateDistances(blocks, self.position)


def sweep_by_batch(
    model: PreTrainedModel,
    sequences: torch.Tensor,
    wanted: Wanted,
    *,
    kept: Kept,
    micro_batch: int,
    world: World,
    say: Callable[[str], None],
) -> tuple[torch.Tensor | None, StateDistances | None]:
    """What removing each block costs, and how far the blocks carry their states, over ``sequences`` (S, T) int64.

    Returns, in every process, summed losses (L + windows + 1, S) fp64 as ``removal_losses`` gives them, and the
    distances, or None where they are not wanted. Every micro-batch is computed in the same shapes by whichever process
    has it, so that the number of processes changes no bit. What ``kept`` holds of an earlier start is taken as done.
    """
    groups = sequences.split(micro_batch)
    done = kept.names("batch-")
    todo = [number for number in range(len(groups)) if _name(number) not in done]
    left = sum(len(groups[number]) for number in todo)
    if done:
        say(f"{len(sequences) - left} of {len(sequences)} sequences were scored before")
    blocks = len(find_blocks(model))
    for count, number in enumerate(shown(todo[world.rank :: world.size], "sweep"), start=1):
        distances = wanted.distances(blocks)
        found: dict[str, Any] = {}
        if wanted.losses:
            found["losses"] = removal_losses(model, groups[number], windows=wanted.windows, watch=distances).tolist()
        elif distances is not None:
            dense_states(model, groups[number], distances)
        if distances is not None:
            found["distances"] = distances.to_json()
        kept.put(_name(number), found)
        say(f"sequence {min(count * world.size * micro_batch, left)} of {left}")
    kept.meet()
    return _read_back(kept, len(groups), blocks, wanted)


def own_share(sequences: torch.Tensor, micro_batch: int, world: World) -> list[torch.Tensor]:
    """This process's micro-batches of ``sequences``: a run of neighbours, so that in rank order they are all of them.

    The micro-batches are the same for every number of processes. Raises RegrowError where ``micro_batch`` is no number
    from 1 on.
    """
    require_micro_batch(micro_batch)
    groups = sequences.split(micro_batch)
    first, last = (len(groups) * rank // world.size for rank in (world.rank, world.rank + 1))
    return list(groups[first:last])


def require_micro_batch(micro_batch: object) -> None:
    """RegrowError unless this is a number of sequences that a forward can take."""
    if not isinstance(micro_batch, int) or micro_batch < 1:
        raise RegrowError(f"micro_batch {micro_batch!r}: a whole number of sequences is wanted, 1 or more")


def _read_back(
    kept: Kept, groups: int, blocks: int, wanted: Wanted
) -> tuple[torch.Tensor | None, StateDistances | None]:
    """All micro-batches in order, one in memory at a time."""
    columns = []
    distances = wanted.distances(blocks)
    for number in range(groups):
        found = kept.get(_name(number))
        if wanted.losses:
            columns.append(torch.tensor(found["losses"], dtype=torch.float64))
        if distances is not None:
            distances.add(StateDistances.from_json(found["distances"]))
    return torch.cat(columns, dim=1) if wanted.losses else None, distances


def _name(number: int) -> str:
    return f"batch-{number:05d}"
