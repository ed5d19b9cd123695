"""Criteria from weights and gradients: magnitude and Taylor, as Shortened LLM (arXiv 2402.02834) defines them.

Both score each weight tensor W of a block from one value s for each of its entries, and the block from its tensors:

- ``magnitude``: s = W.
- ``taylor``: s = W x dL/dW, the first term of what the loss changes by when the entry becomes zero (LLM-Pruner, arXiv
  2305.11627). L is the mean loss of all target tokens: gradients are summed with their signs over all sequences and
  all processes, and only then made absolute.

A tensor's score is the reduction (sum, mean, max, prod) of |s|^p over its rows, each row (an output of the projection)
summed first, as Shortened LLM does it; a vector's entries are its rows. A block's score is the reduction of those of
its tensors: in Llama q, k, v, o, gate, up, down and the two norms. Biases are left out, and so is what lies outside
the blocks. The paper's Mag+ and Taylor+ are these scores under the protect rule of selection, which keeps the first
four and the last two blocks: the scores alone call block 0 the least important one of most Llamas.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.selection import order_blocks
from pipeline.model.blocks import find_blocks
from pipeline.model.loss import next_token_losses
from pipeline.model.outputs import logits_alone
from pipeline.shown import shown
from pipeline.world import ALONE, World

REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.max,
    "prod": torch.prod,
}


def magnitude_entry(
    blocks: Iterable[nn.Module], *, norm_power: float = 1, weight_reduction: str = "sum", block_reduction: str = "sum"
) -> dict[str, Any]:
    """The entry of scores.json of ``magnitude`` from all of a model's ``blocks`` one after the other: each may have
    lost its weights when the next one comes. The reductions are sum, mean, max or prod.

    ``weight_scores`` holds for each block its tensors' scores by name. Raises RegrowError on an unknown reduction, or
    on a score that is not a finite number.
    """
    tensors = ({name: weight.detach() for name, weight in block_weights(block).items()} for block in blocks)
    return _entry(tensors, norm_power, weight_reduction, block_reduction)


def taylor_entry(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    *,
    norm_power: float = 1,
    weight_reduction: str = "sum",
    block_reduction: str = "sum",
    world: World = ALONE,
) -> dict[str, Any]:
    """The entry of scores.json of ``taylor``, from one forward and one backward pass over ``batches``.

    ``batches`` are ids (B, T) int64 without padding, those of this process. The peak is the model,
    one batch's activations, its gradients, and their sum in fp32. Raises RegrowError as ``magnitude_entry`` does, and
    on a model in fp16, whose gradients would vanish.
    """
    weights = [block_weights(block) for block in find_blocks(model)]
    gradients = iter(mean_gradients(model, [weight for block in weights for weight in block.values()], batches, world))
    # In the gradients' place: beside them there is no room for as much again.
    products = ({name: next(gradients).mul_(weight.detach()) for name, weight in block.items()} for block in weights)
    return _entry(products, norm_power, weight_reduction, block_reduction)


def block_weights(block: nn.Module) -> dict[str, nn.Parameter]:
    """A block's parameters by name, without its biases."""
    return {name: parameter for name, parameter in block.named_parameters() if not name.endswith("bias")}


def mean_gradients(
    model: PreTrainedModel,
    weights: list[nn.Parameter],
    batches: Iterable[torch.Tensor],
    world: World = ALONE,
) -> list[torch.Tensor]:
    """The gradient of the mean token loss over all batches of all processes, fp32, one tensor for each weight.

    Every process gets the same sums. Nothing is left in ``.grad``.
    Raises RegrowError on a model in fp16.
    """
    if any(weight.dtype == torch.float16 for weight in weights):
        raise RegrowError("gradients in float16 vanish below 6e-8; load the model in bfloat16 or float32")
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    targets = torch.zeros(1, dtype=torch.float64, device=weights[0].device)
    model.eval()
    with logits_alone(model), torch.enable_grad(), _differentiable(weights):
        for batch in shown(list(batches), "gradients"):
            batch = batch.to(weights[0].device)
            losses = next_token_losses(model(batch, use_cache=False).logits, batch)
            targets += losses.numel()
            # A weight that the batch did not go through (an expert) has no gradient.
            for total, gradient in zip(
                sums, torch.autograd.grad(losses.sum(), weights, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    total += gradient
    for total in (*sums, targets):
        world.sum(total)
    if not targets:
        raise RegrowError("no batch: gradients need one sequence at least")
    for total in sums:
        total /= targets.item()
    return sums


@contextlib.contextmanager
def _differentiable(weights: list[nn.Parameter]) -> Iterator[None]:
    """Within the context the weights take gradients; afterwards those that took none before take none again."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _entry(
    blocks: Iterable[dict[str, torch.Tensor]], norm_power: float, weight_reduction: str, block_reduction: str
) -> dict[str, Any]:
    unknown = {weight_reduction, block_reduction} - REDUCTIONS.keys()
    if unknown:
        raise RegrowError(f"reduction {', '.join(sorted(unknown))}: known are {', '.join(REDUCTIONS)}")
    over_rows, over_tensors = REDUCTIONS[weight_reduction], REDUCTIONS[block_reduction]
    details = [
        {name: over_rows(_row_sums(values.double().abs().pow(norm_power))).item() for name, values in block.items()}
        for block in blocks
    ]
    scores = [over_tensors(torch.tensor(list(block.values()), dtype=torch.float64)).item() for block in details]
    products = [block.values() for block in details if weight_reduction == "prod"]
    if any(score in (0.0, math.inf) for block in products for score in block):
        raise RegrowError("weight_reduction prod: a product over a tensor's rows leaves fp64's range; take another")
    return {
        "scores": scores,
        "order": order_blocks(scores),
        "higher_is": "more important",
        "norm_power": norm_power,
        "weight_reduction": weight_reduction,
        "block_reduction": block_reduction,
        "weight_scores": details,
    }


def _row_sums(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).sum(dim=1) if values.ndim > 1 else values
