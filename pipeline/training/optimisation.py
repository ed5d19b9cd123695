"""AdamW as a run has it: its numbers, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float, no_decay: Iterable[str]) -> list[dict[str, Any]]:
    """Two AdamW groups: parameters with weight decay, and the kinds named in ``no_decay`` without it.

    Kinds: ``bias`` (names ending in bias), ``norm`` (other parameters of one axis), ``embedding`` (input embedding,
    and the head when it is tied to it).
    """
    kinds = set(no_decay)
    embedding = model.get_input_embeddings().weight if "embedding" in kinds else None

    def spared(name: str, parameter: nn.Parameter) -> bool:
        is_bias = name.endswith("bias")
        # Under ZeRO-3 a parameter is a shard; DeepSpeed keeps its real shape in ds_shape.
        axes = len(getattr(parameter, "ds_shape", parameter.shape))
        return (
            (is_bias and "bias" in kinds) or (axes == 1 and not is_bias and "norm" in kinds) or (parameter is embedding)
        )

    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in named if not spared(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if spared(n, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class Optimisation:
    """AdamW (Loshchilov & Hutter 2019) as a run has it. ``learning_rate`` is the peak; ``no_decay`` names kinds of
    parameters as ``decay_groups`` has them; ``clip`` is the largest global gradient norm, 0 for none."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    no_decay: tuple[str, ...]
    clip: float
