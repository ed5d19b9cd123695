"""Losses: the one place where logits become token losses, for scoring, training and evaluation alike; and what a
mixture of experts' config says of the loss that training adds to them.

Logits are taken to fp32 before the softmax whatever the model's precision: in bf16 the rounding of a loss (1e-2) is
as large as the gaps between neighbouring blocks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.model.structure import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: The target that cross_entropy leaves out: no loss, no gradient.
NO_TARGET = -100
#: What is said where pruning takes all that could be balanced.
NO_ROUTER = (
    "no block with a router is left, so that there is no auxiliary loss: the pruned config.json has "
    "output_router_logits false, though the dense one asks for it"
)


def next_token_losses(
    logits: torch.Tensor, input_ids: torch.Tensor, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihood, in nats, of every token given those before it in its row.

    ``logits`` (rows, T, vocabulary), any floating dtype; ``input_ids`` (rows, T), int64. Returns (rows, T - 1) fp32:
    column t is the loss of token t + 1, so that the first token of a row is never a target. Where ``counted``
    (rows, T - 1), bool, is false the loss is zero and gives no gradient.
    """
    return token_losses(logits[:, :-1], next_tokens(input_ids, counted)[:, :-1])


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood, in nats, of the ``targets`` (rows, T) int64 by ``logits`` (rows, T, vocabulary): fp32
    (rows, T), zero without gradient where the target is NO_TARGET."""
    predicted = logits.float()
    losses = F.cross_entropy(predicted.reshape(-1, predicted.shape[-1]), targets.reshape(-1), reduction="none")
    return losses.view(targets.shape)


def loss_by_logits(logarithms: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The gradient (N, vocabulary) of each loss by its logits: probabilities, less one at the token that is ``wanted``
    (N, 1). ``logarithms``, their log-softmax in fp32, may be written over."""
    if torch.compiler.is_compiling():
        places = torch.arange(logarithms.shape[1], device=logarithms.device)
        return logarithms.exp() - (places == wanted).float()
    # In one axis, as its deterministic kernel wants it.
    gradient = logarithms.exp_()
    rows = torch.arange(len(wanted), device=wanted.device)
    less = gradient.new_full((1,), -1.0).expand(len(wanted))
    gradient.view(-1).scatter_add_(0, rows * gradient.shape[1] + wanted.squeeze(1), less)
    return gradient


@dataclass(frozen=True)
class ChunkLoss:
    """Losses (N,) fp32 of a chunk's logits (N, vocabulary) fp32 by its targets, and what their gradient is made of."""

    logits: torch.Tensor
    counted: torch.Tensor
    wanted: torch.Tensor
    logarithms: torch.Tensor
    losses: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, targets: torch.Tensor) -> ChunkLoss:
        """Of targets (N,) int64, which may be NO_TARGET."""
        counted = targets != NO_TARGET
        wanted = targets.masked_fill(~counted, 0)[:, None]
        logarithms = F.log_softmax(logits, dim=1)
        losses = -logarithms.gather(1, wanted).squeeze(1).masked_fill(~counted, 0.0)
        return cls(logits, counted, wanted, logarithms, losses)

    def gradient(self) -> torch.Tensor:
        """By the logits, of all positions; the logarithms may be written over."""
        return loss_by_logits(self.logarithms, self.wanted)

    def by_product(self, gradient: torch.Tensor, cap: float | None, factor: torch.Tensor) -> torch.Tensor:
        """A gradient by the logits, of the positions that count times ``factor`` (), made one by the product that the
        logits came from with the cap ``cap``; in place."""
        gradient *= (self.counted * factor)[:, None]
        if cap is not None:
            gradient *= 1 - (self.logits / cap).square()
        return gradient


def next_tokens(input_ids: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """What each position is to predict: the token behind it, (rows, T) int64, NO_TARGET at a row's end and where
    ``counted`` (rows, T - 1), bool, is false."""
    targets = torch.full_like(input_ids, NO_TARGET)
    following = input_ids[:, 1:]
    targets[:, :-1] = following if counted is None else following.masked_fill(~counted, NO_TARGET)
    return targets


def perplexity_of(loss: float) -> float:
    """exp of a mean loss (nats); infinite above 709, where fp64 ends and math.exp raises."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def document_targets(documents: Sequence[np.ndarray], length: int) -> torch.Tensor:
    """Which tokens of rows are targets, where each document is read alone: its first token is not.

    ``documents`` holds for each row where documents begin in it: cu_seqlens, int32, 0 ... ``length``. Returns
    (rows, length - 1) bool on the CPU, for ``counted`` above: column t is token t + 1.
    """
    counted = np.ones((len(documents), length), dtype=bool)
    for row, cu_seqlens in enumerate(documents):
        counted[row, cu_seqlens[:-1]] = False
    return torch.from_numpy(counted[:, 1:])


def router_coefficient(hf_config: PreTrainedConfig) -> float | None:
    """The factor of the router's auxiliary loss in training, where the model's config asks for that loss; else None.

    The load-balancing loss of Fedus et al. 2021 (Switch Transformers), eq. 4: it keeps a router from sending all
    tokens to a few experts. transformers adds it to its own loss under the same condition.
    """
    text = hf_config.get_text_config()
    return _stated_coefficient(text) if getattr(text, "output_router_logits", False) else None


def computes_router_loss(model: nn.Module) -> bool:
    """Whether the model's class makes an auxiliary loss in its forward: some families have the key in their config,
    and no such loss. ``model`` may be on the meta device."""
    return "aux_loss" in inspect.unwrap(type(model).forward).__code__.co_varnames


def has_router(model: nn.Module, removed: Collection[int] = ()) -> bool:
    """Whether a router is left in the model without the blocks ``removed``; true where its class does not say which
    modules are routers. ``model`` may be on the meta device."""
    kinds = tuple(_router_kinds(model))
    blocks = find_blocks(model) if removed else []
    gone = {part for number in removed for part in blocks[number].modules()}
    return not kinds or any(isinstance(module, kinds) for module in model.modules() if module not in gone)


def describe_router_loss(model: nn.Module, computed: bool, removed: Collection[int] = ()) -> str | None:
    """A sentence for people on the router's auxiliary loss of the model without the blocks ``removed``, which
    ``computed`` says whether its class makes; None where there is nothing to ask for."""
    stated = _stated_coefficient(model.config.get_text_config())
    if stated is None:
        return None
    asked = router_coefficient(model.config) is not None
    if not has_router(model, removed):
        return NO_ROUTER if asked else None
    if not computed:
        name = type(model).__name__
        return f"{name} computes no auxiliary loss for its router, though its config asks for one" if asked else None
    if not asked:
        return (
            f"the router's auxiliary loss (coefficient {stated:g}) is off: the model's config.json has "
            "output_router_logits false; set it to true there to train with it"
        )
    return f"the router's auxiliary loss is added, with coefficient {stated:g}: the model's config.json asks for it"


def _router_kinds(model: nn.Module) -> Iterator[type[nn.Module]]:
    """The classes of modules whose outputs transformers takes for router logits: a part of the model names them."""
    for module in model.modules():
        named = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", [])
        for kind in named if isinstance(named, list | tuple) else [named]:
            yield getattr(kind, "target_class", kind)


def _stated_coefficient(text_config: PreTrainedConfig) -> float | None:
    """By the names that transformers' families use: most of them, JetMoE, DBRX. Zero is none."""
    experts = getattr(text_config, "ffn_config", None)
    return (
        getattr(text_config, "router_aux_loss_coef", None)
        or getattr(text_config, "aux_loss_coef", None)
        or getattr(experts, "moe_loss_weight", None)
        or None
    )
