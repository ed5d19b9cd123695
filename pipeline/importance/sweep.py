"""The sweep: the loss of removing each block, for all blocks in one pass over the model.

Leaving out one block at a time costs L forwards of L - 1 blocks. Here a growing batch goes through the model once:
what enters block j is the dense state together with the states of the variants whose removed block came before j;
block j runs on all of them at once; the variant without block j is the dense state, unchanged. Every block's weights
are touched once and half of the work is gone. A window of n neighbours is one more such variant: it leaves the dense
states before its first block and comes back behind its last. The model's own forward does everything around the
blocks (embeddings, masks, rotary embeddings, final norm, head), so that any decoder whose blocks can be found is
scored as it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.arguments import arguments_for_twice, hooks_on, repeated
from pipeline.model.blocks import find_blocks, replaced_forward, skip_blocks
from pipeline.model.files import not_finite
from pipeline.model.hooks import input_device
from pipeline.model.loss import next_token_losses
from pipeline.model.outputs import logits_alone
from pipeline.model.structure import BlockOutput
from pipeline.model.walking import run_without_head, take_hidden

#: Logits are made for so many rows at a time: they are the largest tensor of the sweep.
HEAD_ROWS = 8

#: Called with j and the dense state (B, T, d) that enters block j; last with L and what leaves the last block, before
#: the final norm. The state is a view of a larger tensor: whoever keeps it takes a copy.
Watch = Callable[[int, torch.Tensor], None]

#: A window of neighbours: its first block, and how many there are. A block alone is (block, 1).
Window = tuple[int, int]


@torch.no_grad()
def removal_losses(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    blocks: Sequence[int] | None = None,
    windows: Sequence[Window] = (),
    without: Sequence[int] = (),
    watch: Watch | None = None,
) -> torch.Tensor:
    """Summed token losses of each sequence, without each block and with all of them.

    ``input_ids`` (B, T) int64, all of full length (no padding). Returns (L + 1, B) fp64 on the CPU, in nats summed
    over the T - 1 targets: row j is the model without block j, the last row the dense model. Losses are fp32 for each
    token, summed in fp64 for each sequence. The peak is (L + 1) x B sequences in one block.

    ``windows`` of neighbours that go together have a row each, in their order, before the dense one; they add as many
    sequences to the peak.

    ``without`` are blocks that are gone already: the dense model is then the one without them. ``blocks`` are those
    to leave out in turn, in rising order, default all that are left; the result has one row for each, and the last.
    ``watch`` sees the dense state between the blocks as they are computed.

    Raises RegrowError when a loss is not a number, when ``blocks`` names one that is gone or is not there, and on
    windows that do not lie in the model or come together with ``without``.

    Source: the PPL criterion of Shortened LLM (arXiv 2402.02834, section 3.2): exp of the mean loss without a block.
    """
    model.eval()
    every = find_blocks(model)
    running = {index: block for index, block in enumerate(every) if index not in set(without)}
    tried = list(running) if blocks is None else list(blocks)
    if tried != sorted(set(tried) & running.keys()):
        raise RegrowError(f"blocks {tried} to leave out: wanted are some of {list(running)}, in rising order")
    check_windows(windows, len(every))
    if windows and without:
        raise RegrowError(f"windows are left out of the whole model, and blocks {list(without)} are gone from it")
    input_ids = input_ids.to(input_device(model))
    asked = [*((block, 1) for block in tried), *windows]
    # In the order in which they come back among the dense states: by their last block.
    returning = sorted(range(len(asked)), key=lambda number: (sum(asked[number]), number))
    names = [*(_name(*asked[number]) for number in returning), len(every)]
    with logits_alone(model), skip_blocks(model, without):
        states, as_tuple = _final_states(model, running, [asked[number] for number in returning], input_ids, watch)
        losses = summed_losses(model, running.values(), states, input_ids, as_tuple, names)
    return losses[[*sorted(range(len(asked)), key=returning.__getitem__), len(asked)]]


@torch.no_grad()
def dense_states(model: PreTrainedModel, input_ids: torch.Tensor, watch: Watch) -> None:
    """Show ``watch`` the dense state between all blocks, in one forward of the decoder and without a loss."""
    model.eval()
    running = dict(enumerate(find_blocks(model)))
    with logits_alone(model):
        _final_states(model, running, [], input_ids.to(input_device(model)), watch)


def check_windows(windows: Sequence[Window], total: int) -> None:
    """RegrowError unless every window lies in a model of ``total`` blocks and leaves one of them."""
    for start, length in windows:
        if not (start >= 0 and 1 <= length < total and start + length <= total):
            raise RegrowError(
                f"window of {length} blocks from {start}: the model has blocks 0 to {total - 1}, and one must stay"
            )


def _name(start: int, length: int) -> int | str:
    return start if length == 1 else f"{start} to {start + length - 1}"


def _final_states(
    model: PreTrainedModel,
    running: dict[int, nn.Module],
    tried: Sequence[Window],
    input_ids: torch.Tensor,
    watch: Watch | None,
) -> tuple[torch.Tensor, bool]:
    """States behind the last block, before the final norm, and whether the blocks of this model return tuples.

    States: ((1 + variants) x B, T, d); the dense one first, then those of ``tried``, which rise by their last block.
    """
    batch = len(input_ids)
    index_of = {block: index for index, block in running.items()}
    last, behind_all = max(running), len(find_blocks(model))
    twice = arguments_for_twice(model, running, input_ids) if len(tried) else {}
    longer = {start for start, length in tried if length > 1}
    variants: list[torch.Tensor] = []

    def widen(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Put the variants behind the dense state, and every other per-sequence argument beside them."""
        hidden, args, kwargs = take_hidden(args, kwargs)
        if hidden.shape[0] != batch:
            raise RegrowError(f"{type(block).__name__} got {hidden.shape[0]} rows for {batch} sequences; not supported")
        if watch is not None:
            watch(index_of[block], hidden.to(input_ids.device))
        times = 1 + len(variants)
        # A view of the whole batch: what is held for longer than this block is a copy.
        entering[index_of[block]] = hidden.clone() if index_of[block] in longer else hidden
        if not variants:
            return (hidden, *args), kwargs
        doubled_args, doubled_kwargs = twice[block]
        name = f"{type(block).__name__}: argument"
        # A dispatched model's blocks lie on several devices: what skipped some of them comes from an earlier one.
        wide = torch.cat([hidden, *(variant.to(hidden.device) for variant in variants)])
        return (wide, *repeated(args, doubled_args, times, name)), repeated(kwargs, doubled_kwargs, times, name)

    def narrow(block: nn.Module, args: tuple, output: BlockOutput) -> BlockOutput:
        """Keep the variants, add those whose window ends here, and hand the dense state back to the model."""
        hidden = output[0] if isinstance(output, tuple) else output
        dense, *moved = hidden.split(batch)
        behind = index_of[block] + 1
        variants[:] = [*moved, *(entering[start] for start, length in tried if start + length == behind)]
        wanted = {start for start, length in tried if start + length > behind}
        for start in entering.keys() - wanted:
            del entering[start]
        if index_of[block] == last:
            if watch is not None:
                watch(behind_all, dense.to(input_ids.device))
            leaving.append(dense)
            tuples.append(isinstance(output, tuple))
        return (dense, *output[1:]) if isinstance(output, tuple) else dense

    entering: dict[int, torch.Tensor] = {}
    leaving: list[torch.Tensor] = []
    tuples: list[bool] = []
    with hooks_on(running.values(), before=widen, after=narrow):
        run_without_head(model, input_ids)
    return torch.cat([*leaving, *(variant.to(leaving[0].device) for variant in variants)]), tuples[0]


def summed_losses(
    model: PreTrainedModel,
    blocks: Iterable[nn.Module],
    states: torch.Tensor,
    input_ids: torch.Tensor,
    as_tuple: bool,
    names: Sequence[int | str],
) -> torch.Tensor:
    """The losses of final states, the dense ones first: (``names``, B) fp64 on the CPU, the dense row last.

    ``names`` are the blocks that are left out, or words for windows of them, and last the number of blocks, for the
    dense model. Raises RegrowError with them when a loss is not a number.
    """
    sums = []
    for state in states.split(max(1, HEAD_ROWS // len(input_ids)) * len(input_ids)):
        targets = input_ids.repeat(len(state) // len(input_ids), 1)
        losses = next_token_losses(_logits(model, blocks, state, targets, as_tuple), targets)
        sums.append(losses.double().sum(dim=1).cpu())
    losses = torch.cat(sums).view(len(names), len(input_ids)).roll(-1, dims=0)
    rows = losses.isnan().any(dim=1).nonzero().flatten().tolist()
    if rows:
        broken = not_finite(model.named_parameters())
        cause = f"{broken} has values that are not finite" if broken else "score again in float32"
        raise RegrowError(
            f"losses without blocks {[names[row] for row in rows]} are not numbers (block {names[-1]} stands for the "
            f"dense model); {cause}",
            about=None if broken else "scoring",
        )
    return losses


def _logits(
    model: PreTrainedModel, blocks: Iterable[nn.Module], state: torch.Tensor, input_ids: torch.Tensor, as_tuple: bool
) -> torch.Tensor:
    """What the model's own final norm and head make of a state (rows, T, d): its logits (rows, T, vocabulary)."""

    def deliver(*args: object, **kwargs: object) -> BlockOutput:
        return (state,) if as_tuple else state

    # No block runs: each hands on the state, and so does the last.
    with replaced_forward(blocks, deliver):
        return model(input_ids, use_cache=False).logits
