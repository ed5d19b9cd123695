"""Cases of the gradient: how exact its sums are, where it is not finite, who gets none, and what a router adds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.training.kit import (
    BATCH,
    LAYOUT,
    LENGTH,
    RECIPE,
    STEPS,
    World,
    difference,
    new_engine,
    new_model,
    rate,
    text,
    train,
    weights,
)

# isort: split
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from pipeline.errors import RegrowError
from pipeline.model.loss import next_token_losses
from pipeline.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from pipeline.training.engine import Engine, decay_groups
from pipeline.training.export import load_trained
from pipeline.training.loop import Position
from pipeline.training.reach import TOKENS

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


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in tensors.values()])


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def precise(world: World, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """Errors of the reduced gradient and of the updated weights, with other rows on each process.

    The gradient is held against each process's own micro-batches, summed in fp32 and then over processes in fp64; the
    weights against plain AdamW in fp32 that is given the engine's own gradients. And what bf16 would give instead, in
    each of the three places: between micro-batches, between processes, in the weights.
    """
    data, batch = text(4 * BATCH * STEPS), 4 * BATCH
    engine = new_engine(world, zero_stage, dtype, 2, batch, clip=0.0)
    start, taken = flat(masters(engine)), record_gradients(engine)
    train(engine, data, world, 2, STEPS)

    model = new_model(dtype)
    with engine.precision():
        model = model.float() if engine.autocast else model
    sums, coarse = (
        {name: torch.zeros(value.shape, dtype=kept) for name, value in model.named_parameters()}
        for kept in (torch.float32, torch.bfloat16)
    )
    for rows in data[:batch][world.rank :: world.size].split(2):
        model.zero_grad()
        with engine.precision():
            logits = model(rows).logits
        (next_token_losses(logits, rows).sum() / (batch * (LENGTH - 1))).backward()
        for name, value in model.named_parameters():
            sums[name] += value.grad.float()
            coarse[name] += value.grad.bfloat16()
    own = flat(sums)
    total, accumulated, reduced = (world.sum(part) for part in (own.clone(), flat(coarse), own.bfloat16()))

    plain = new_model(dtype).float()
    optimizer = torch.optim.AdamW(
        decay_groups(plain, RECIPE.weight_decay, RECIPE.no_decay),
        lr=1.0,
        betas=RECIPE.betas,
        eps=RECIPE.eps,
    )
    for step, gradients in enumerate(taken):
        for name, value in plain.named_parameters():
            value.grad = gradients[name]
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    moved = flat(dict(plain.named_parameters())).detach() - start
    ends = masters(engine)
    return {
        "gradient": relative_error(flat(taken[0]), total),
        "accumulated_in_bf16": relative_error(accumulated, total),
        "reduced_in_bf16": relative_error(reduced.double(), total),
        "weights": relative_error(flat(ends) - start, moved),
        "weights_in_bf16": relative_error((start + moved).bfloat16().double() - start, moved),
        "dtypes": sorted({str(value.dtype) for value in (*ends.values(), *moments(engine).values())}),
    }


class Spoil(torch.autograd.Function):
    """Leaves values as they are; the gradient that comes back is infinite in one place, as from an overflow."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor) -> torch.Tensor:
        return states.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0, 0] = float("inf")
        return gradient


@contextlib.contextmanager
def spoiled(engine: Engine, spoil: Any) -> Iterator[None]:
    """The states before the head go through ``spoil``."""
    hook = engine.model.model.norm.register_forward_hook(lambda module, given, states: spoil(states))
    yield
    hook.remove()


@contextlib.contextmanager
def listening(lines: list[str]) -> Iterator[None]:
    """Within it what DeepSpeed's logger lets through is put into ``lines``."""
    from deepspeed.utils import logger

    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def stopped(world: World, zero_stage: int, dtype: torch.dtype, spoil: Any) -> dict[str, Any]:
    """Step 2 goes wrong on rank 1 alone: what every rank says, and what has moved since step 1."""
    engine, data, position, message = new_engine(world, zero_stage, dtype, 2), text(BATCH * STEPS), Position(), ""
    untrained = weights(engine)
    train(engine, data, world, 2, 1, position)

    def state() -> tuple[Tensors, ...]:
        return weights(engine), masters(engine), moments(engine)

    before, place = state(), (position.step, position.tokens, dict(position.cursors))
    beside: list[str] = []
    with spoiled(engine, spoil) if world.rank == 1 else contextlib.nullcontext(), listening(beside):
        try:
            train(engine, data, world, 2, STEPS, position)
        except RegrowError as error:
            message = str(error)
    moved = [name for old, new in zip(before, state(), strict=True) for name in old if not old[name].equal(new[name])]
    return {
        "messages": world.gather(message),
        "beside": world.gather(beside),
        "moved": world.gather(moved),
        "compared": [len(part) for part in before],
        "position": world.gather(place == (position.step, position.tokens, position.cursors)),
        "trained": difference(untrained, before[0]) if world.rank == 0 else None,
    }


def with_tower(dtype: torch.dtype) -> Any:
    """The small Llama and a layer beside it that text does not reach; its weights are far from zero."""
    model = new_model(dtype)
    model.tower = torch.nn.Linear(64, 300, dtype=dtype)
    return model


def unreached(world: World, folder: Path, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """Parameters that get no gradient: after updates that would decay them, and behind a checkpoint."""
    changes, root = {"weight_decay": 1.0, "no_decay": ()}, folder / f"unreached-{zero_stage}"
    engine = new_engine(world, zero_stage, dtype, 2, model=with_tower(dtype), **changes)
    before = weights(engine)
    train(engine, text(BATCH * STEPS), world, 2, STEPS)
    state = {"step": STEPS, "layout": asdict(LAYOUT)}
    save_checkpoint(root, engine, world, step=STEPS, state=state, keep=1)
    again = new_engine(world, zero_stage, dtype, 2, model=with_tower(dtype), **changes)
    load_checkpoint(newest_checkpoint(root, LAYOUT)[0], again, world)
    after, loaded = weights(engine), weights(again)
    if world.rank != 0:
        return {}
    return {
        "all": sorted(before),
        "unreached": sorted(engine.unreached),
        "moved": [name for name in before if not before[name].equal(after[name])],
        "lost": [name for name in after if not after[name].equal(loaded[name])],
    }


def balanced(family: str) -> Any:
    """A mixture of experts in bf16 whose router is kept in fp32, with a bias that balances experts and has no gradient:
    a parameter of Ernie, a buffer of DeepSeek. Both are no bf16 numbers."""
    shape = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
    }
    configs = {
        "ernie": Ernie4_5_MoeConfig(
            **shape, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=0
        ),
        "deepseek": DeepseekV3Config(
            **shape,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=0,
            kv_lora_rank=16,
            q_lora_rank=16,
            v_head_dim=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
        ),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[family]).bfloat16()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if name == "weight" and "Router" in type(module).__name__:
                parameter.data = torch.randn(parameter.shape)
            if name == "e_score_correction_bias":
                parameter.data = torch.linspace(0.1, 0.9, parameter.numel()).view_as(parameter)
        for name, buffer in module._buffers.items():
            if name == "e_score_correction_bias":
                module._buffers[name] = torch.linspace(0.1, 0.9, buffer.numel()).view_as(buffer)
    return model


def kept(world: World, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """What an export has of a router in fp32 and its bias, after updates of the rest in bf16."""
    found: dict[str, Any] = {}
    for family in ("ernie", "deepseek"):
        engine = new_engine(world, zero_stage, dtype, 2, model=balanced(family))
        train(engine, text(BATCH * STEPS), world, 2, STEPS)
        trained, pruned, export = engine.weights(), balanced(family).state_dict(), balanced(family)
        if world.rank != 0:
            continue
        load_trained(export, trained, engine.unreached)
        after = export.state_dict()
        found[family] = {
            "narrowed": engine.narrowed,
            "biases": {name: after[name].equal(pruned[name]) for name in after if name.endswith("correction_bias")},
            "dtypes": [name for name in after if after[name].dtype != pruned[name].dtype],
            "moved": [name for name in after if not after[name].equal(pruned[name])],
            "rounded": [name for name in after if after[name].equal(after[name].to(dtype).to(after[name].dtype))],
        }
    return found


def passed_over(world: World, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """An expert that the probe's row is sent to and the batch is not, on a process that reduces nothing (as alone)."""
    model = new_model(dtype)
    model.expert = torch.nn.Linear(64, 64, bias=False)
    model.model.norm.register_forward_hook(
        lambda module, given, states: states + model.expert(states) if states.shape[1] == TOKENS else states
    )
    engine = new_engine(world, zero_stage, dtype, 4, model=model, weight_decay=1.0)
    engine.engine.enable_backward_allreduce = zero_stage != 0
    before = weights(engine)
    train(engine, text(BATCH), world, 4, 1)
    after = weights(engine)
    if world.rank != 0:
        return {}
    kept = after["expert.weight"] / before["expert.weight"]
    return {"unreached": sorted(engine.unreached), "kept": [float(kept.min()), float(kept.max())], "rate": rate(0)}


def routed(world: World, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    """A mixture of experts whose config asks for the router's loss: one gradient, beside plain torch's.

    The reference adds the loss of each micro-batch as the processes split the batch: rows 0 and 2, 4 and 6, 1 and 3,
    5 and 7.
    """

    def experts() -> Any:
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            initializer_range=0.2,
            router_aux_loss_coef=0.5,
            output_router_logits=True,
        )
        return MixtralForCausalLM(config).to(dtype)

    model, rows = experts(), text(BATCH)
    tokens = next_token_losses(model(rows).logits, rows).mean()
    tokens.backward(retain_graph=True)
    alone = flat({name: value.grad.clone() for name, value in model.named_parameters()})
    auxiliary = torch.stack([model(rows[[first, first + 2]]).aux_loss for first in (0, 4, 1, 5)]).mean()
    (0.5 * auxiliary).backward()
    wanted = flat({name: value.grad for name, value in model.named_parameters()})
    errors, steps = [], []
    for recompute in (False, True):
        engine = new_engine(world, zero_stage, dtype, 2, model=experts(), clip=0.0, gradient_checkpointing=recompute)
        taken = record_gradients(engine)
        steps += train(engine, rows, world, 2, 1)
        errors.append(relative_error(flat(taken[0]), wanted))
    return {
        "errors": errors,
        "of_the_tokens_alone": relative_error(alone, wanted),
        "steps": steps,
        "losses": [float(tokens), float(auxiliary)],
    }


#: By name: called with the world, a ZeRO stage and a dtype.
CASES: dict[str, Callable[[World, int, torch.dtype], dict[str, Any]]] = {
    "precise": precise,
    "stopped_gradient": partial(stopped, spoil=Spoil.apply),
    "stopped_loss": partial(stopped, spoil=lambda states: states * float("nan")),
    "passed_over": passed_over,
    "kept": kept,
    "routed": routed,
}
