"""Healing: before training, what removed blocks left behind is closed in by least squares, border by border.

A border is a kept block behind which blocks are gone: what it hands on stands where the dense model had the state
behind the removed run. Its last product, the MLP's output projection, is fitted so that the block hands on that state,
given the states of the pruned model as far as it is healed; the healed states then go on to the next border. No
parameter is new. Where the first blocks are gone, the first kept one is a border too: its input is another, and the
state that it gave is what it is to give again. The blocks between borders stay as they are: fitting them too, each to
the dense state in its own place, took twice the time and won nothing that holds (SmolLM2-135M on C4: perplexity 97.3
and not 97.5 without 6 of its 30 blocks, 286 and not 276 without 13).

Dense and pruned states of all tokens stand on the CPU in fp32, 2 x 4 x d bytes for each token of this process. The
models stay on the CPU as they are stored; what is outside the dense model's blocks is moved to the device, and one
block at a time, a copy in fp32. Fits are fp64 (regression.py), and rounded once to the weights' dtype; what goes on are
the states of rounded weights. Part of the text is kept from the fits to judge them: what does not come nearer to the
dense states there is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks
from pipeline.model.outputs import logits_alone
from pipeline.model.replacement import output_projection
from pipeline.model.structure import require_separate_blocks
from pipeline.model.walking import block_arguments
from pipeline.training.healed import HealedBlock, Progress
from pipeline.training.regression import Regression, shares
from pipeline.world import ALONE, World


@dataclass(frozen=True)
class Border:
    """A kept block whose output is to become a dense state.

    ``position`` is its place in the pruned model, ``block`` in the dense one; the state wanted is what leaves the dense
    model's block ``reaches`` - 1. ``removed`` are the dense blocks between.
    """

    position: int
    block: int
    reaches: int

    @property
    def removed(self) -> list[int]:
        """The dense blocks that are gone behind it."""
        return list(range(self.block + 1, self.reaches))


@dataclass(frozen=True)
class Text:
    """This process's share of the sequences, as batches of ids (B, T) int64: to fit on, and to judge the fits by."""

    fit: list[torch.Tensor]
    judged: list[torch.Tensor]


def find_borders(kept: Sequence[int], total: int) -> list[Border]:
    """The borders of a model that keeps the blocks ``kept``, in order, of ``total``."""
    behind = [*kept[1:], total]
    blocks = [Border(position, block, behind[position]) for position, block in enumerate(kept)]
    return [one for one in blocks if one.removed or (one.position == 0 and one.block > 0)]


def find_layers(pruned: PreTrainedModel, borders: Sequence[Border], say: Callable[[str], None]) -> dict[int, str]:
    """For each border's position the name, in its block, of the layer that can be fitted; what has none is said.

    Raises RegrowError where there are borders, and none has a layer.
    """
    blocks, found, refusal = find_blocks(pruned), {}, ""
    for border in borders:
        try:
            layer = output_projection(pruned, border.position)
        except RegrowError as error:
            refusal = str(error)
            say(f"not healed: {refusal}")
            continue
        block = blocks[border.position]
        found[border.position] = next(name for name, module in block.named_modules() if module is layer)
    if borders and not found:
        raise RegrowError(f"train.heal: none of the {len(borders)} borders can be healed; set it to none. {refusal}")
    return found


@torch.no_grad()
def heal(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    kept: Sequence[int],
    text: Text,
    *,
    ridge: float,
    progress: Progress | None = None,
    world: World = ALONE,
    say: Callable[[str], None] = print,
) -> list[HealedBlock]:
    """Fit the borders of ``pruned`` in place, and say of each what was reached.

    ``pruned`` has the blocks ``kept`` of ``dense``, whose indices they are; both are on the CPU, and computed with on
    ``world.device``. ``ridge`` is relative to the mean square of a layer's inputs. What ``progress`` knows is not
    fitted again. Every process of ``world`` calls this with its share of the text and gets the same weights.

    Raises RegrowError as ``find_layers`` does, without text to fit on or to judge by, and when a state is not finite.
    """
    if any(sum(world.gather(len(batches))) == 0 for batches in (text.fit, text.judged)):
        raise RegrowError("healing: no sequence to fit on, or none to judge by; raise train.healing.sequences")
    borders = {one.position: one for one in find_borders(kept, len(find_blocks(dense)))}
    layers = find_layers(pruned, list(borders.values()), say)
    walk, healed = _Walk(dense, [*text.fit, *text.judged], world.device), []
    blocks = find_blocks(pruned)
    with logits_alone(dense):
        reached = 0
        # Behind the last layer nobody asks for a state.
        for position, index in enumerate(kept[: 1 + max(layers, default=-1)]):
            reaches = [*kept[1:], walk.total][position]
            for through in range(reached, reaches):
                walk.dense_through(through)
            reached = reaches
            if position in layers:
                one = _Fit(walk, blocks[position], index, layers[position], len(text.fit), world)
                healed.append(one.healed(borders[position], ridge, progress))
                say(healed[-1].told())
            walk.pruned_through(blocks[position], index)
    return healed


class _Walk:
    """The states of all batches as they go through both models; each batch's (B, T, d) fp32 on the CPU."""

    def __init__(self, dense: PreTrainedModel, batches: Sequence[torch.Tensor], device: torch.device):
        self.model, self.blocks, self.batches, self.device = dense, find_blocks(dense), batches, device
        self.total = len(self.blocks)
        self._returns = require_separate_blocks(dense, self.blocks) or 0
        own = list(self.blocks)
        del self.blocks[:]
        dense.to(device=device, dtype=torch.float32)
        self.blocks.extend(own)
        self.dense: list[torch.Tensor | None] = [None] * len(batches)
        self.pruned: list[torch.Tensor | None] = [None] * len(batches)

    def dense_through(self, index: int) -> None:
        """All dense states through block ``index`` of the dense model."""
        block = self.on_device(self.blocks[index])
        for number, state in enumerate(self.dense):
            self.dense[number] = self.through(block, index, number, state).cpu()

    def pruned_through(self, own: nn.Module, index: int) -> None:
        """All pruned states through a block of the pruned model that was block ``index``."""
        block = self.on_device(own)
        for number, state in enumerate(self.pruned):
            self.pruned[number] = self.through(block, index, number, state).cpu()

    def on_device(self, block: nn.Module) -> nn.Module:
        """A copy of the block, in fp32 and on the device."""
        return deepcopy(block).to(device=self.device, dtype=torch.float32)

    def through(self, block: nn.Module, index: int, number: int, state: torch.Tensor | None) -> torch.Tensor:
        """A batch's state behind a block in the place of the dense model's block ``index``; None enters the model."""
        ids = self.batches[number].to(self.device)
        first, args, kwargs = block_arguments(self.model, self.blocks, index, ids, self._returns)
        output = block(first if state is None else state.to(self.device), *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


class _Fit:
    """One layer of one block of the pruned model, before it is fitted and afterwards."""

    def __init__(self, walk: _Walk, block: nn.Module, index: int, name: str, fitted: int, world: World):
        self.walk, self.block, self.index, self.name, self.world = walk, block, index, name, world
        self.fit = range(fitted)
        self.judged = range(fitted, len(walk.batches))

    def healed(self, border: Border, ridge: float, progress: Progress | None) -> HealedBlock:
        """Fit the layer, keep what comes nearer; or take what ``progress`` knows of it."""
        layer = self.block.get_submodule(self.name)
        known = self.world.broadcast(progress.known(border.position)) if progress is not None else None
        if known is not None:
            progress.restore(border.position, layer, known)
            return known
        before = self.error()
        changed = self.regression(layer)
        stored = {name: parameter.clone() for name, parameter in layer.named_parameters(recurse=False)}
        _change(layer, *changed.solve(ridge))
        after = self.error()
        better = after < before
        if not better:
            for name, value in stored.items():
                layer.get_parameter(name).copy_(value)
        found = HealedBlock(border.block, border.removed, self.name, changed.tokens, before, after, better)
        if progress is not None and self.world.rank == 0:
            progress.keep(border.position, layer, found)
        return found

    def regression(self, layer: nn.Module) -> Regression:
        """The sums of all tokens to fit on."""
        outputs, inputs = _shape(layer)
        sums = Regression(inputs, outputs, bias=layer.bias is not None, device=self.walk.device)
        for entering, given, wanted in self._tokens(self.fit):
            sums.add(entering, wanted - given, wanted)
        sums.meet(self.world)
        return sums

    def error(self) -> float:
        """How far the block's states are from those wanted, on the text that fits are judged by: mean |r| / |t|."""
        found = torch.zeros(2, dtype=torch.float64)
        for _, given, wanted in self._tokens(self.judged):
            missed = shares(wanted - given, wanted).double()
            found += torch.stack([missed.sum(), missed.new_tensor(len(missed))]).cpu()
        total, count = self.world.sum(found).tolist()
        error = total / count
        if not error < float("inf"):
            raise RegrowError(f"healing: the states behind block {self.index} are not finite; look at its weights")
        return error

    def _tokens(self, numbers: range) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each batch what enters the layer (N, m), what the block gives, and what is wanted, both (N, d)."""
        block, seen = self.walk.on_device(self.block), []
        block.get_submodule(self.name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for number in numbers:
            given = self.walk.through(block, self.index, number, self.walk.pruned[number])
            wanted = self.walk.dense[number].to(self.walk.device)
            yield seen.pop().flatten(0, -2), given.flatten(0, 1), wanted.flatten(0, 1)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a Linear, or of GPT-2's Conv1D, which keeps its weight as (in, out)."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, nn.Linear) else (columns, rows)


def _change(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Add to a layer's weight and bias in fp64, and round once to what they are stored in."""
    changes: Mapping[str, torch.Tensor | None] = {
        "weight": weight if isinstance(layer, nn.Linear) else weight.T,
        "bias": bias,
    }
    for name, change in changes.items():
        if change is not None:
            own = layer.get_parameter(name)
            own.copy_(own.double() + change.to(own.device))
