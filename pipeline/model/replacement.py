"""Linear replacement: a linear map takes the place of a removed run of blocks, folded into weights that are there.

The last block that is kept before the run computes h = r + y: r is what passes by its MLP, y the MLP's output. With a
matrix M (d, d) fitted so that r + M y comes near to what the run returned, M goes into the MLP's output projection,
whose weight W becomes M W and its bias b becomes M b. The model stays a plain one of fewer blocks.

Source: ReplaceMe (arXiv 2505.02819). The fit is not made here: forward hooks on ``output_projection`` see y.

The form holds only where the projection's output is added to the residual as it is. That is tried, not assumed: with
y replaced by zeros and by noise, the block's output must move by the noise. Blocks with a norm behind their MLP
(Gemma 2 and 3, OLMo 2) or behind the sum, or with a factor on it, and mixtures of experts are refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.blocks import check_indices, find_blocks, remove_blocks
from pipeline.model.hooks import input_device
from pipeline.model.outputs import logits_alone
from pipeline.model.structure import BlockOutput, module_tree

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D

#: Largest part of the noise that may be lost between the projection and the block's output, by dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
#: In the names of a block's modules.
EXPERTS = re.compile(r"expert|moe|router", re.IGNORECASE)
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def removed_runs(removed: Sequence[int]) -> list[range]:
    """The removed blocks as runs without gaps, in order: [3, 4, 7] is range(3, 5), range(7, 8)."""
    runs = groupby(enumerate(sorted(removed)), key=lambda pair: pair[1] - pair[0])
    found = [[index for _, index in run] for _, run in runs]
    return [range(run[0], run[-1] + 1) for run in found]


@torch.no_grad()
def output_projection(model: PreTrainedModel, index: int) -> nn.Linear | Conv1D:
    """The module (Linear, or GPT-2's Conv1D) whose output, the MLP's, block ``index`` adds to its residual.

    The model is run on a few tokens to find it and to try that the form r + y holds.

    Raises RegrowError with the reason where a linear map of that output cannot be folded.
    """
    blocks = find_blocks(model)
    if not 0 <= index < len(blocks):
        raise RegrowError(f"block {index}: the model has blocks 0 to {len(blocks) - 1}")
    block = blocks[index]
    refusal = f"{type(model).__name__}, block {index}: no linear map can be folded into it"
    experts = [name for name, _ in block.named_modules() if EXPERTS.search(name)]
    if experts:
        raise RegrowError(f"{refusal}, its MLP is a mixture of experts ({experts[0]}) without one output projection")
    name, projection = _last_projection(model, block, refusal)
    if ATTENTION.search(name):
        raise RegrowError(f"{refusal}, the last projection that it runs, {name}, is its attention's")
    if not projection.weight.is_floating_point() or projection.weight.dtype not in TOLERANCE:
        raise RegrowError(f"{refusal}, {name} holds {projection.weight.dtype} values (quantised?)")
    weights = {id(parameter) for parameter in projection.parameters()}
    others = [
        other
        for other, module in model.named_modules()
        if module is not projection and any(id(parameter) in weights for parameter in module.parameters(recurse=False))
    ]
    if others:
        raise RegrowError(f"{refusal}, the weights of {name} are tied to those of {others[0]}")

    seen: dict[str, torch.Tensor] = {}
    _run_block(model, block, projection, seen, None)
    generator = torch.Generator().manual_seed(0)
    projected = seen["projected"]
    silent = _run_block(model, block, projection, {}, torch.zeros_like(projected))
    # As large as the residual of its token: smaller noise would be lost when the two are added in half precision.
    size = silent.float().pow(2).mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-3).view(*projected.shape[:-1], 1)
    noise = (torch.randn(projected.shape, generator=generator).to(size) * size).to(projected)
    moved = (_run_block(model, block, projection, {}, noise) - silent).float().view_as(noise) / size
    lost = float((moved - noise.float() / size).norm() / (noise.float() / size).norm())
    if not lost <= TOLERANCE[projection.weight.dtype]:
        norms = [child for child, module in block.named_children() if "norm" in type(module).__name__.lower()]
        raise RegrowError(
            f"{refusal}, what {name} returns is not added to the residual as it is (a norm or a factor behind it; the "
            f"block's norms: {', '.join(norms) or 'none'})"
        )
    return projection


def _last_projection(model: PreTrainedModel, block: nn.Module, refusal: str) -> tuple[str, nn.Linear | Conv1D]:
    """The last linear layer as wide as the hidden state that the block runs, with its name in the block."""
    from transformers.pytorch_utils import Conv1D

    ran: list[tuple[str, int]] = []
    linear = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    handles = [
        part.register_forward_hook(lambda module, args, output, name=name: ran.append((name, output.shape[-1])))
        for name, part in linear.items()
    ]
    try:
        width = _run_block(model, block, None, {}, None).shape[-1]
    finally:
        for handle in handles:
            handle.remove()
    wide = [name for name, size in ran if size == width]
    if not wide:
        raise RegrowError(f"{refusal}, it runs no linear layer as wide as the hidden state: {module_tree(block)}")
    return wide[-1], linear[wide[-1]]


def _run_block(
    model: PreTrainedModel,
    block: nn.Module,
    projection: nn.Module | None,
    seen: dict[str, torch.Tensor],
    instead: torch.Tensor | None,
) -> torch.Tensor:
    """A block's output (1, tokens, d) in the model, in evaluation mode; ``instead`` stands in for the projection's."""

    def project(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        # Copies: some blocks add to this tensor in place (Falcon).
        seen["projected"] = output.clone()
        return None if instead is None else instead.clone()

    def leave(module: nn.Module, args: tuple, output: BlockOutput) -> None:
        seen["left"] = (output[0] if isinstance(output, tuple) else output).clone()

    modes = [(module, module.training) for module in model.modules()]
    handles = [block.register_forward_hook(leave)]
    handles += [projection.register_forward_hook(project)] if projection is not None else []
    try:
        model.eval()
        with logits_alone(model):
            model(torch.arange(4, device=input_device(model)).unsqueeze(0), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return seen["left"]


def _check_matrix(projection: nn.Linear | Conv1D, matrix: torch.Tensor, index: int) -> None:
    width = projection.out_features if isinstance(projection, nn.Linear) else projection.nf
    if matrix.shape != (width, width) or not matrix.is_floating_point():
        raise RegrowError(
            f"linear map for block {index}: expected real numbers of shape ({width}, {width}), got "
            f"{str(matrix.dtype).removeprefix('torch.')} of shape {tuple(matrix.shape)}"
        )
    if not matrix.isfinite().all():
        raise RegrowError(f"linear map for block {index}: not every entry is a finite number; fit it again")


@torch.no_grad()
def _fold(projection: nn.Linear | Conv1D, matrix: torch.Tensor) -> None:
    """Put the map into the projection's weights: products are made in fp64 and stored in the weights' dtype."""
    weight = projection.weight
    mapped = matrix.to(weight.device, torch.float64)
    if isinstance(projection, nn.Linear):
        weight.copy_(mapped @ weight.double())
    else:  # Conv1D keeps its weight as (in, out)
        weight.copy_(weight.double() @ mapped.T)
    if projection.bias is not None:
        projection.bias.copy_(mapped @ projection.bias.double())


@contextlib.contextmanager
def mapped_outputs(model: PreTrainedModel, matrices: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Within the context each map of ``replace_blocks`` acts on the MLP's output before its run; no weight changes.

    With the runs skipped (``skip_blocks``) the model computes what it would with the maps folded in.
    """

    def mapping(matrix: torch.Tensor) -> Any:
        def move(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            return (output.float() @ matrix.to(output.device, torch.float32).T).to(output.dtype)

        return move

    projections = {first: output_projection(model, first - 1) for first in matrices}
    handles = [projections[first].register_forward_hook(mapping(matrix)) for first, matrix in matrices.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replace_blocks(
    model: PreTrainedModel, removed: Sequence[int], matrices: Mapping[int, torch.Tensor]
) -> PreTrainedModel:
    """Remove the blocks ``removed`` in place, with a linear map for each run whose first block ``matrices`` names.

    >>> smaller = replace_blocks(model, [3, 4], fit_maps(model, batches, [3, 4]))
    >>> smaller.config.regrow["linear"]
    [{'blocks': [3, 4], 'folded_into': 2}]

    ``matrices[first]`` (d, d), as ``fit_maps`` gives it, acts on the output of the MLP in block first - 1, which
    computes r + M y then. Runs that are not named are removed without one. ``config.regrow`` gets the list ``linear``:
    for each map the blocks of the first dense model that it stands for, and the block that it was folded into.

    Raises RegrowError, before anything is changed, where a map cannot be folded or blocks cannot be removed.
    """
    total = len(find_blocks(model))
    runs = {run[0]: run for run in removed_runs(check_indices(removed, total))}
    unknown = sorted(set(matrices) - set(runs))
    if unknown:
        raise RegrowError(f"linear replacement: no run of removed blocks begins at {unknown}; runs: {sorted(runs)}")
    if 0 in matrices:
        raise RegrowError("linear replacement: no block is kept before block 0, so there is nowhere to fold a map into")
    projections = {first: output_projection(model, first - 1) for first in matrices}
    for first, matrix in matrices.items():
        _check_matrix(projections[first], matrix, first - 1)
    config = model.config.get_text_config()
    before = getattr(config, "regrow", None) or {"kept_blocks": list(range(total))}
    original = before["kept_blocks"]
    remove_blocks(model, removed)
    for first, matrix in matrices.items():
        _fold(projections[first], matrix)
    done = [
        {"blocks": [original[index] for index in runs[first]], "folded_into": original[first - 1]}
        for first in sorted(matrices)
    ]
    config.regrow = {**config.regrow, "linear": [*before.get("linear", []), *done]}
    return model
