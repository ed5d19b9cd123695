"""Made-up arms: runs whose figures are those of ``made_up``, changed where a test says so."""

from __future__ import annotations

import math
from typing import Any

from pipeline.reporting.arms import Arm
from pipeline.reporting.records import Records
from tests.reporting.made_up import made_up_inputs

TEXT = "c" * 64
VALUES = {"train.init": "pruned", "model.dtype": "bfloat16", "run.name": "x", "prune.remove": 9, "train.tokens": 122880}


def arm(name: str, worse: float = 1.0, **more: Any) -> Arm:
    """An arm whose regrown model has ``worse`` times the made-up perplexity, row by row, and weights of its own.

    ``more``: ``inputs`` of Records, and fields of Arm.
    """
    inputs = made_up_inputs() | {"name": name} | more.pop("inputs", {})
    regrown = inputs["results"]["models"]["regrown"]
    judged = regrown["perplexity"]["held_out"]
    regrown["sha256"] = f"{name:x<64}"
    judged["value"] *= worse
    judged["stderr"] *= worse
    # A little more for one row and less for the next: the mean ratio is as asked.
    shifts = [math.log(worse) + (0.1, -0.1)[number % 2] * (worse != 1.0) for number in range(80)]
    judged["row_losses"] = [loss + shift for loss, shift in zip(judged["row_losses"], shifts, strict=True)]
    fields = {
        "values": VALUES | {"run.name": name},
        "encoding": "e",
        "in_training": {"text": TEXT, "length": 256, "attention": None},
        "steps": 60,
        "flops": 7.57e13,
        "hours": 0.06,
        "device": "CPU",
    }
    return Arm(name, Records(**inputs), **(fields | more))


def line(step: int, sha256: str, value: float = 30.0, name: str = "held_out", **more: Any) -> dict[str, Any]:
    """A line of curve.jsonl that judged an export on 16 rows."""
    entry = {
        "value": value,
        "stderr": 1.0,
        "rows": 16,
        "length": 256,
        "stride": 256,
        "bos": "document",
        "tokens": 4080,
        "text": {"sha256": TEXT},
        "row_losses": [math.log(value) + shift / 10 for shift in range(-8, 8)],
    }
    return {
        "step": step,
        "tokens": step * 2048,
        "sha256": sha256,
        "perplexity": {name: entry | more},
        "tasks": {},
    }


def asked_on(rows: int, factor: float = 1.0):
    """Lines of held_out.jsonl."""
    return [
        {
            "step": step,
            "tokens": step * 2048,
            "held_out_perplexity": factor * value,
            "held_out_stderr": 1.0,
            "rows": rows,
        }
        for step, value in ((0, 70.0), (30, 35.0), (60, 24.0))
    ]
