"""The sweep for a model that is larger than the device: all sequences through one block, then through the next.

It is the sweep of sweep.py with its loops exchanged. Entering block j are, for every sequence, the dense state and the
states of the variants without one of the blocks before j. They stand in files, and go through the device one
micro-batch after another, each with all its variants; a block's weights are read once for all of them. The shapes that
a block sees are those of the batch-major order, so that on a CPU the losses are the same to the bit.

Killed at any instant and started again, each micro-batch goes on from its last finished block (shelf.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import RegrowError
from pipeline.files import hash_json, require_space
from pipeline.importance.distances import StateDistances
from pipeline.importance.footprint import SweepShape
from pipeline.importance.shelf import Shelf
from pipeline.importance.sweep import summed_losses
from pipeline.model.outputs import logits_alone
from pipeline.model.streaming import StreamedModel
from pipeline.model.walking import block_arguments

#: Share of a device's memory that weights may take in the batch-major order; the rest is for states and logits.
ROOM = 0.8


@torch.no_grad()
def sweep_by_block(
    streamed: StreamedModel,
    sequences: torch.Tensor,
    *,
    folder: Path,
    micro_batch: int,
    losses: bool = True,
    distances: StateDistances | None = None,
    say: Callable[[str], None] = print,
) -> torch.Tensor | None:
    """Losses of removing each block and distances between the dense states, each block's weights read once.

    ``sequences`` (S, T) int64, of full length; in a run of several processes those of this one. Returns what
    ``removal_losses`` gives for them: (blocks + 1, S) fp64 on the CPU, in nats summed over the T - 1 targets, row j
    without block j, the last row dense; or None where ``losses`` is false. ``distances`` gets the sequences in their
    order, as if it had watched them in the batch-major order. ``micro_batch`` sequences, each with all its variants,
    are on the device at a time: up to (blocks + 1) x micro_batch states of T tokens.

    The states stand in ``folder``, which is this sweep's own. Started again, the sweep goes on from what stands there;
    when all is done the results stay there, for the caller to delete with the folder once they are kept elsewhere.
    ``say`` gets one line for each block.

    Raises RegrowError when the folder's disk is too small or holds another sweep, when a loss is not a number, and
    when something else than the hidden state goes from block to block.
    """
    if not losses and distances is None:
        raise RegrowError("a sweep without losses and without distances computes nothing; ask for one of them")
    model, total = streamed.model, len(streamed.blocks)
    batches = list(sequences.split(micro_batch))
    shelf = _shelf(streamed, sequences, batches, folder, losses, distances)
    done = min(shelf.entering(number) for number in range(len(batches)))
    if done:
        say(f"{done} of {total} blocks were done before")
    for index in range(done, total):
        waiting = [number for number in range(len(batches)) if shelf.entering(number) == index]
        if not waiting:
            continue
        with logits_alone(model), streamed.block(index) as block:
            for number in waiting:
                ids = batches[number].to(streamed.device)
                first, moved = _through(streamed, block, index, ids, shelf.states(number, index), shelf, losses)
                if index + 1 < total:
                    shelf.put(number, index + 1, moved)
                    continue
                found: dict[str, Any] = {"losses": None, "distances": None}
                if losses:
                    summed = summed_losses(model, streamed.blocks, moved, ids, bool(shelf.returns), range(total + 1))
                    found["losses"] = summed.tolist()
                if distances is not None:
                    between = (shelf.dense(number, at) for at in range(1, total))
                    found["distances"] = _watched([first, *between, moved[: len(ids)]], distances.position)
                shelf.finish(number, found)
        say(f"block {index + 1} of {total}: {len(sequences)} sequences went through it")
    results = [shelf.result(number) for number in range(len(batches))]
    if distances is not None:
        for watched in (each for result in results for each in result["distances"]):
            distances.add(StateDistances.from_json(watched))
    return torch.cat([torch.tensor(one["losses"], dtype=torch.float64) for one in results], dim=1) if losses else None


def _through(
    streamed: StreamedModel,
    block: nn.Module,
    index: int,
    ids: torch.Tensor,
    states: torch.Tensor | None,
    shelf: Shelf,
    variants: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro-batch through one block: what enters the first block (B, T, d), and what leaves this one.

    ``states`` is what enters, ((1 + variants) x B, T, d), None at the first block; what leaves has B rows more, where
    ``variants`` are wanted: those without this block, last.
    """
    times = 1 if states is None else len(states) // len(ids)
    first, args, kwargs = block_arguments(streamed.model, streamed.blocks, index, ids.repeat(times, 1), shelf.returns)
    wide = first if states is None else states.to(streamed.device)
    output = block(wide, *args, **kwargs)
    moved = output[0] if isinstance(output, tuple) else output
    if index == 0:
        shelf.note_form(len(output) if isinstance(output, tuple) else 0, moved)
    moved = torch.cat([moved, wide[: len(ids)]]) if variants else moved
    return first[: len(ids)], moved


def _watched(between: list[torch.Tensor], position: int) -> list[dict[str, Any]]:
    """The distances of each sequence by itself, as JSON: added one by one they are what one watcher adds up."""
    found = []
    for sequence in range(len(between[0])):
        watcher = StateDistances(len(between) - 1, position)
        for index, state in enumerate(between):
            watcher(index, state[sequence : sequence + 1].to(between[0].device))
        found.append(watcher.to_json())
    return found


def _shelf(
    streamed: StreamedModel,
    sequences: torch.Tensor,
    batches: list[torch.Tensor],
    folder: Path,
    losses: bool,
    distances: StateDistances | None,
) -> Shelf:
    """Where the states stand: empty, or as an earlier start of the same sweep left it."""
    total, keep = len(streamed.blocks), distances is not None
    rows = [len(batch) for batch in batches]
    what = {
        "sequences": hash_json(sequences.tolist()),
        "shape": list(sequences.shape),
        "micro-batch": rows[0],
        "losses": losses,
        "position": distances.position if distances is not None else None,
        **streamed.identity(),
    }
    shelf = Shelf(folder, what, rows, sequences.shape[1], total, variants=losses, keep_dense=keep)
    space = SweepShape(
        blocks=total,
        sequences=len(sequences),
        length=sequences.shape[1],
        width=streamed.model.config.get_text_config().hidden_size,
        value_bytes=streamed.dtype.itemsize,
        micro_batch=rows[0],
        losses=losses,
        distances=keep,
    ).states()
    require_space(folder, max(0, space - shelf.bytes()), "the states between blocks (score by block)")
    return shelf
