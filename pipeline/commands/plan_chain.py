"""What a chain will cost: the plan of its first link, which is the largest, and what each link removes and trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pipeline.chain import chain_links
from pipeline.commands.plan import MFUS, PEAK, find_architecture, plan
from pipeline.commands.plan_text import plan_text
from pipeline.commands.plan_training import planned_teacher, training_flops
from pipeline.config import STAGES, Config
from pipeline.cuts import read_cut
from pipeline.launch import Place
from pipeline.model.describe import Sizes, as_trained, describe_folder
from pipeline.origins import lora_of
from pipeline.stages.chain import look_ahead, shapes


def plan_chain(config: Config, stages: Sequence[str] = STAGES, price: float | None = None) -> dict[str, Any]:
    """The plan as plain values (JSON-ready): ``first``, the plan of the first link, ``links``, and ``notes`` on those
    behind the first.

    ``stages`` are those that are checked, ``price`` is as in ``plan``. Raises ConfigError where the config states no
    chain, and RegrowError as ``plan`` does.
    """
    links = chain_links(config)
    first = plan(links[0], stages, price)
    folder, leave = find_architecture(links[0]).parent, config.model.trust_remote_code
    # The teacher of all links, where it is the dense model, is the first one's.
    teacher = planned_teacher(links[0], folder)
    begun = shapes(links, describe_folder(folder, leave))
    planned = [_link(link, model, teacher) for link, model in zip(links, begun, strict=False)]
    notes = look_ahead(links, describe_folder(folder, leave), Place(), elsewhere=True)
    if len(planned) < len(links):
        notes.append(
            f"{len(links)} links; those behind link {len(planned)} are not planned: what this model is like without so "
            "many blocks depends on which of them go"
        )
    return {"chain": config.run.name, "first": first, "links": planned, "notes": notes}


def _link(config: Config, model: PreTrainedModel, teacher: Path | None) -> dict[str, Any]:
    """What one link removes from ``model``, on the meta device, and what training what is left takes beside the
    ``teacher``, whose config.json that folder holds."""
    sizes = Sizes.of(model)
    removed = read_cut(config).planned(sizes)
    left = len(sizes.blocks) - len(removed)
    trained = as_trained(model, config.model.dtype, removed, lora_of(config))
    per_token = training_flops(config, model, trained, removed, teacher)
    total = per_token * config.steps * config.tokens_per_step
    return {
        "run": config.run.name,
        "blocks": {"before": len(sizes.blocks), "removed": len(removed), "left": left},
        "parameters": sizes.whole - sum(removed),
        "tokens": config.train.tokens,
        "steps": config.steps,
        "flops": total,
        "gpu_hours": total / (MFUS[1] * PEAK) / 3600,
    }


def chain_text(plan: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    links = plan["links"]
    hours = f"GPU-hours at {MFUS[1]:.0%}"
    lines = [
        f"chain {plan['chain']}: {len(links)} links; each scores anew what the one before it exported, removes its",
        "part, and trains on the rows behind that one's last, with a learning rate schedule of its own",
        "",
        f"{'run':<20}{'blocks':>10}{'parameters':>16}{'tokens':>18}{'steps':>10}{'FLOPs':>11}{hours:>20}",
    ]
    for link in links:
        blocks = f"{link['blocks']['before']} -> {link['blocks']['left']}"
        lines.append(
            f"{link['run']:<20}{blocks:>10}{link['parameters']:>16,}{link['tokens']:>18,}{link['steps']:>10,}"
            f"{link['flops']:>11.3g}{link['gpu_hours']:>20,.2f}"
        )
    tokens, steps, flops, spent = (
        sum(link[name] for link in links) for name in ("tokens", "steps", "flops", "gpu_hours")
    )
    lines.append(f"{'in all':<20}{'':>10}{'':>16}{tokens:>18,}{steps:>10,}{flops:>11.3g}{spent:>20,.2f}")
    if plan["first"]["price"] is not None:
        lines.append(f"training of all links: {spent * plan['first']['price']:,.2f} dollars")
    lines += ["", *(f"note: {note}" for note in plan["notes"])] if plan["notes"] else []
    return "\n".join([*lines, "", plan_text(plan["first"])])
