"""Cases of the gradient: how exact its sums are, who gets none, and what a router adds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from pipeline.model.loss import next_token_losses
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.export import load_trained
from pipeline.training.optimisation import decay_groups
from pipeline.training.reach import TOKENS
from pipeline.training.restoring import load_checkpoint
from pipeline.training.saving import Checkpoints
from tests.training.kit import (
    BATCH,
    LENGTH,
    RECIPE,
    STEPS,
    Case,
    new_engine,
    new_model,
    rate,
    text,
    train,
    weights,
)
from tests.training.layout import LAYOUT
from tests.training.tensors import flat, masters, moments, record_gradients, relative_error


def precise(case: Case) -> dict[str, Any]:
    """Errors of the reduced gradient and of the updated weights, with other rows on each process.

    The gradient is held against each process's own micro-batches, summed in fp32 and then over processes in fp64; the
    weights against plain AdamW in fp32 that is given the engine's own gradients. And what bf16 would give instead, in
    each of the three places: between micro-batches, between processes, in the weights.
    """
    data, batch = text(4 * BATCH * STEPS), 4 * BATCH
    engine = new_engine(case, 2, batch, clip=0.0)
    start, taken = flat(masters(engine)), record_gradients(engine)
    train(engine, data, STEPS)

    model = new_model(case.dtype)
    with engine.precision():
        model = model.float() if engine.autocast else model
    sums, coarse = (
        {name: torch.zeros(value.shape, dtype=kept) for name, value in model.named_parameters()}
        for kept in (torch.float32, torch.bfloat16)
    )
    for rows in data[:batch][case.world.rank :: case.world.size].split(2):
        model.zero_grad()
        with engine.precision():
            logits = model(rows).logits
        (next_token_losses(logits, rows).sum() / (batch * (LENGTH - 1))).backward()
        for name, value in model.named_parameters():
            sums[name] += value.grad.float()
            coarse[name] += value.grad.bfloat16()
    own = flat(sums)
    total, accumulated, reduced = (case.world.sum(part) for part in (own.clone(), flat(coarse), own.bfloat16()))

    plain = new_model(case.dtype).float()
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


def with_tower(dtype: torch.dtype) -> Any:
    """The small Llama and a layer beside it that text does not reach; its weights are far from zero."""
    model = new_model(dtype)
    model.tower = torch.nn.Linear(64, 300, dtype=dtype)
    return model


def unreached(case: Case) -> dict[str, Any]:
    """Parameters that get no gradient: after updates that would decay them, and behind a checkpoint."""
    changes, root = {"weight_decay": 1.0, "no_decay": ()}, case.folder / f"unreached-{case.zero_stage}"
    engine = new_engine(case, 2, model=with_tower(case.dtype), **changes)
    before = weights(engine)
    train(engine, text(BATCH * STEPS), STEPS)
    checkpoints = Checkpoints(root, engine, LAYOUT)
    checkpoints.save(STEPS, {"step": STEPS})
    checkpoints.wait()
    again = new_engine(case, 2, model=with_tower(case.dtype), **changes)
    load_checkpoint(newest_checkpoint(root, LAYOUT, case.world)[0], again, case.world)
    after, loaded = weights(engine), weights(again)
    if case.world.rank != 0:
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


def kept(case: Case) -> dict[str, Any]:
    """What an export has of a router in fp32 and its bias, after updates of the rest in bf16."""
    found: dict[str, Any] = {}
    for family in ("ernie", "deepseek"):
        engine = new_engine(case, 2, model=balanced(family))
        train(engine, text(BATCH * STEPS), STEPS)
        trained, pruned, export = engine.weights(), balanced(family).state_dict(), balanced(family)
        if case.world.rank != 0:
            continue
        load_trained(export, trained, engine.unreached)
        after = export.state_dict()
        found[family] = {
            "narrowed": engine.narrowed,
            "biases": {name: after[name].equal(pruned[name]) for name in after if name.endswith("correction_bias")},
            "dtypes": [name for name in after if after[name].dtype != pruned[name].dtype],
            "moved": [name for name in after if not after[name].equal(pruned[name])],
            "rounded": [name for name in after if after[name].equal(after[name].to(case.dtype).to(after[name].dtype))],
        }
    return found


def passed_over(case: Case) -> dict[str, Any]:
    """An expert that the probe's row is sent to and the batch is not, on a process that reduces nothing (as alone)."""
    model = new_model(case.dtype)
    model.expert = torch.nn.Linear(64, 64, bias=False)
    model.model.norm.register_forward_hook(
        lambda module, given, states: states + model.expert(states) if states.shape[1] == TOKENS else states
    )
    engine = new_engine(case, 4, model=model, weight_decay=1.0)
    engine.engine.enable_backward_allreduce = case.zero_stage != 0
    before = weights(engine)
    train(engine, text(BATCH), 1)
    after = weights(engine)
    if case.world.rank != 0:
        return {}
    kept = after["expert.weight"] / before["expert.weight"]
    return {"unreached": sorted(engine.unreached), "kept": [float(kept.min()), float(kept.max())], "rate": rate(0)}


def routed(case: Case) -> dict[str, Any]:
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
        return MixtralForCausalLM(config).to(case.dtype)

    model, rows = experts(), text(BATCH)
    tokens = next_token_losses(model(rows).logits, rows).mean()
    tokens.backward(retain_graph=True)
    alone = flat({name: value.grad.clone() for name, value in model.named_parameters()})
    auxiliary = torch.stack([model(rows[[first, first + 2]]).aux_loss for first in (0, 4, 1, 5)]).mean()
    (0.5 * auxiliary).backward()
    wanted = flat({name: value.grad for name, value in model.named_parameters()})
    errors, steps = [], []
    for recompute in ("none", "selective", "full"):
        engine = new_engine(case, 2, model=experts(), clip=0.0, gradient_checkpointing=recompute)
        taken = record_gradients(engine)
        steps += train(engine, rows, 1)
        errors.append(relative_error(flat(taken[0]), wanted))
    return {
        "errors": errors,
        "of_the_tokens_alone": relative_error(alone, wanted),
        "steps": steps,
        "losses": [float(tokens), float(auxiliary)],
    }
