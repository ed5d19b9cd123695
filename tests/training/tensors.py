"""What an engine holds, as tensors: gradients, the weights that updates are made to, moments."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from pipeline.training.engine import Engine

Tensors = dict[str, torch.Tensor]


def trained(engine: Engine) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, value) for name, value in engine.model.named_parameters() if value.requires_grad]


def record_gradients(engine: Engine) -> list[Tensors]:
    """A list that gets, at each update, the gradients of the global batch as the optimizer is given them, in full."""
    seen, step = [], engine.optimizer.step

    def recording(*arguments: Any, **named: Any) -> Any:
        full = (lambda value: value.grad) if engine.zero_stage == 0 else safe_get_full_grad
        seen.append({name: full(value).detach().float().clone() for name, value in trained(engine)})
        return step(*arguments, **named)

    engine.optimizer.step = recording
    return seen


def masters(engine: Engine) -> Tensors:
    """The fp32 weights that updates are made to, in full."""
    full = (lambda value: value) if engine.zero_stage == 0 else safe_get_full_fp32_param
    return {name: full(value).detach().clone() for name, value in trained(engine)}


def moments(engine: Engine) -> Tensors:
    """AdamW's two moments, of what this process keeps of them."""
    inner = engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer
    states = enumerate(inner.state.values())
    return {f"{key} {at}": state[key].clone() for at, state in states for key in ("exp_avg", "exp_avg_sq")}


def counts(engine: Engine) -> Tensors:
    """AdamW's own count of steps, of what this process keeps of it."""
    inner = engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer
    return {f"step {at}": torch.as_tensor(state["step"]).clone() for at, state in enumerate(inner.state.values())}


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in tensors.values()])


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
