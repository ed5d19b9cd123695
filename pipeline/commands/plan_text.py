"""The plan for people: the values of plan.py as lines for a terminal."""

from __future__ import annotations

import os
from typing import Any

from pipeline.commands.plan_lines import corpus_lines, disk_lines, whole_lines
from pipeline.files import of_bytes


def plan_text(plan: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    blocks, parameters, training, flops = plan["blocks"], plan["parameters"], plan["training"], plan["flops"]
    scoring = plan["scoring"]
    share = parameters["pruned"] / parameters["dense"]
    lines = [
        f"plan of {plan['run']}: {plan['model']['path']}, by {os.path.relpath(plan['model']['architecture'])}",
        "",
        f"blocks       {blocks['dense']} -> {blocks['pruned']}, {blocks['removed']} removed",
        f"parameters   {parameters['dense']:,} -> {parameters['pruned']:,} ({share:.1%})",
        *_untrained(parameters),
        f"tokens       {training['tokens']:,} in {training['steps']:,} steps of {training['tokens_per_step']:,}",
        f"batch        {training['global_batch']} rows of {training['row_length']} tokens = micro-batch "
        f"{training['micro_batch']} x accumulation {training['accumulation']} x {training['processes']} processes",
        f"FLOPs        {flops['per_token']:.4g} a token, {flops['total']:.4g} in all "
        f"(palm: {_formula('adapters' in parameters)} without the input embedding)",
        "",
        f"scoring      {scoring['loop']}: weights {of_bytes(scoring['weights'])}; on a device "
        f"{of_bytes(scoring['batch_major'])} batch-major, or {of_bytes(scoring['block_major'])} block-major with "
        f"{of_bytes(scoring['states'])} of states on disk",
        "",
        "memory per GPU in GB, estimated; * is this config's ZeRO stage",
    ]
    items = [name for name in plan["memory"][0] if name != "zero_stage"]
    lines.append("  ZeRO" + "".join(f"{name:>14}" for name in items))
    for row in plan["memory"]:
        mark = "*" if row["zero_stage"] == training["zero_stage"] else " "
        lines.append(f"{mark} {row['zero_stage']:>4}" + "".join(f"{row[name] / 1e9:14.1f}" for name in items))
    lines += _time_lines(plan)
    lines += whole_lines(plan)
    lines += disk_lines(plan["disks"])
    lines += corpus_lines(plan["corpus"], training["steps"] * training["tokens_per_step"])
    if plan["notes"] or plan["not_checked"]:
        lines += ["", *(f"note: {note}" for note in plan["notes"])]
        lines += [f"not checked: {line}" for line in plan["not_checked"]]
    return "\n".join(lines) + "\n"


def _time_lines(plan: dict[str, Any]) -> list[str]:
    """Training at each share of the peak, with dollars where an hour has a price."""
    gpu, training, priced = plan["gpu"], plan["training"], plan["price"] is not None
    lines = ["", f"time of training on {gpu['name']} ({gpu['peak_flops'] / 1e12:.1f} TFLOP/s, dense bf16)"]
    days = f"days on {training['processes']}"
    lines.append(f"{'MFU':>6}{'tokens/s/GPU':>16}{'GPU-hours':>14}{days:>14}{'dollars':>14}"[: 64 if priced else 50])
    for row in plan["time"]:
        speed, hours = row["tokens_per_second_per_gpu"], row["gpu_hours"]
        dollars = f"{row['dollars']:>14,.2f}" if priced else ""
        lines.append(f"{row['mfu']:>6.0%}{speed:>16,.0f}{_hours(hours):>14}{row['days']:>14,.2f}{dollars}")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.{0 if hours >= 10 else 2}f}"


def _formula(lora: bool) -> str:
    """What a model's own FLOPs are, with the first words on its parameters."""
    return "4 N + 6 A + 12 L d T, A of adapters, N of the others" if lora else "6 N + 12 L d T, N"


def _untrained(parameters: dict[str, int]) -> list[str]:
    """A line on what is not trained: what text does not reach, or all but adapters."""
    if "adapters" in parameters:
        return [f"trained      {parameters['adapters']:,} of adapters (LoRA); the others are frozen"]
    apart = parameters["pruned"] - parameters["trained"]
    if not apart:
        return []
    return [f"trained      {parameters['trained']:,} of them; {apart:,} see no text, and stay as they are"]
