"""Cases of adapters: DeepSpeed's steps beside those of peft and torch alone, resumes with dropout, merged exports."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline.model.lora import Lora
from pipeline.training.adapters import add_adapters, merge_adapters, save_adapters
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.engine import Engine
from pipeline.training.loop import Position, train_steps
from pipeline.training.restoring import load_checkpoint
from pipeline.training.saving import Checkpoints
from tests.training.kit import BATCH, PEAK, STEPS, Case, difference, new_engine, new_model, rate, share, text, train
from tests.training.layout import LAYOUT
from tests.training.parity import plain_loop

LORA = Lora(8, 16.0, 0.0, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
#: So much that a draw which is not the same shows.
DROPPING = replace(LORA, dropout=0.5)


def adapted(case: Case, lora: Lora) -> Any:
    """The small Llama with adapters of one seed, whose B is no longer zero, so that A learns from the first step."""
    model = new_model(case.dtype)
    add_adapters(model, lora, seed=3)
    generator = torch.Generator().manual_seed(4)
    for name, value in model.named_parameters():
        if ".lora_B." in name:
            value.data.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    return model


def engine_of(case: Case, lora: Lora, **options: Any) -> Engine:
    return new_engine(case, 2, model=adapted(case, lora), **options)


def lora_parity(case: Case) -> dict[str, Any]:
    """Three steps by the engine beside three of a PeftModel under torch's AdamW in fp32, from the same values."""
    data, engine = text(BATCH * STEPS), engine_of(case, LORA)
    before = {name: value.detach().clone().float() for name, value in adapted(case, LORA).named_parameters()}
    steps = train(engine, data, STEPS)
    weights = engine.weights()
    parameters = engine.parameters
    engine.close()
    if weights is None:
        return {}
    named = {"r": LORA.rank, "lora_alpha": LORA.alpha, "lora_dropout": 0.0, "target_modules": list(LORA.targets)}
    reference = get_peft_model(new_model(case.dtype).float(), LoraConfig(task_type="CAUSAL_LM", **named))
    held = dict(reference.base_model.model.named_parameters())
    for name, value in before.items():
        held[name].data.copy_(value)
    losses, norms = plain_loop(reference, data, BATCH)
    after = {name: value.detach() for name, value in held.items() if value.requires_grad}
    return {
        "steps": steps,
        "losses": losses,
        "norms": norms,
        "difference": difference(weights, after),
        "moved": difference(after, {name: before[name] for name in after}),
        "parameters": [parameters, sum(value.numel() for value in after.values())],
    }


def lora_resume(case: Case, **options: Any) -> dict[str, Any]:
    """Four steps with dropout straight on; and two, a checkpoint, a fresh engine, and two more."""
    data, root = text(BATCH * 4), case.folder / "-".join(["lora", str(case.zero_stage), *options])
    straight = engine_of(case, DROPPING, **options)
    torch.manual_seed(5 + case.world.rank)
    whole = train(straight, data, 4)

    first, position = engine_of(case, DROPPING, **options), Position()
    torch.manual_seed(5 + case.world.rank)
    train(first, data, 2, position)
    checkpoints = Checkpoints(root, first, LAYOUT)
    checkpoints.save(2, {"step": position.step, "tokens": position.tokens})
    checkpoints.wait()

    torch.manual_seed(99)
    second = engine_of(case, DROPPING, **options)
    checkpoint, state = newest_checkpoint(root, LAYOUT, case.world)
    load_checkpoint(checkpoint, second, case.world)
    position = Position(state["step"], state["tokens"])
    rows = share(data, case.world, 2 * BATCH)
    rest = [asdict(step) for step in train_steps(second, rows, position, steps=4, rate=rate)]
    ends = [straight.weights(), second.weights()]
    if case.world.rank != 0:
        return {}
    return {
        "equal": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        "whole": whole,
        "rest": rest,
        "trained": sorted({name.split(".")[-3] for name in ends[0]}),
        "parameters": first.parameters,
        "bytes": sum(path.stat().st_size for path in checkpoint.iterdir()),
    }


def lora_recomputed(case: Case) -> dict[str, Any]:
    """Losses and norms with dropout, with each kind of gradient checkpointing, and without dropout."""
    found = {}
    for recompute in ("none", "selective", "full"):
        engine = engine_of(case, DROPPING, gradient_checkpointing=recompute)
        torch.manual_seed(5 + case.world.rank)
        found[recompute] = [[step["loss"], step["grad_norm"]] for step in train(engine, text(BATCH * STEPS), STEPS)]
        engine.close()
    engine = engine_of(case, LORA)
    found["without dropout"] = [[step["loss"], step["grad_norm"]] for step in train(engine, text(BATCH * STEPS), STEPS)]
    return found


def lora_compiled(case: Case) -> dict[str, Any]:
    """A resume with dropout inside of compiled blocks that recompute selectively."""
    return lora_resume(case, compile_blocks=True, gradient_checkpointing="selective")


def lora_export(case: Case) -> dict[str, Any]:
    """Logits of a trained engine, of its weights merged and loaded by transformers, and of peft's adapters."""
    data, merged = text(BATCH * STEPS), case.folder / f"merged-{case.zero_stage}-{case.dtype}"
    engine = engine_of(case, DROPPING, learning_rate=10 * PEAK)
    train(engine, data, STEPS)
    engine.engine.eval()
    with torch.no_grad(), engine.precision():
        logits = engine.engine(data[:4], use_cache=False).logits.float()
    weights = engine.weights()
    if weights is None:
        return {}
    plain = new_model(case.dtype)
    merge_adapters(plain, weights, DROPPING)
    plain.save_pretrained(merged)
    save_adapters(merged / "adapter", new_model(case.dtype), weights, DROPPING)
    base = new_model(case.dtype).state_dict()
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=case.dtype).eval()
        again = loaded(data[:4], use_cache=False).logits.float()
        beside = PeftModel.from_pretrained(new_model(case.dtype), merged / "adapter").eval()
        by_peft = beside(data[:4], use_cache=False).logits.float()
        untrained = new_model(case.dtype).eval()(data[:4], use_cache=False).logits.float()
    kept = [name for name, value in loaded.state_dict().items() if torch.equal(value, base[name])]
    return {
        "merged": float((logits - again).abs().max()),
        "by peft": float((logits - by_peft).abs().max()),
        "trained": float((logits - untrained).abs().max()),
        "largest": float(logits.abs().max()),
        "kept": sorted({name.split(".")[-2] for name in kept}),
    }
