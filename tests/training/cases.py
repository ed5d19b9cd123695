"""The cases that real engines are asked for, by the number of processes: those of every run of the tests, and others.

ZeRO 1 and 3 stand for 2 and 0 where a case is the same at every stage; slow tests ask all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

CASES = {
    2: [
        *(f"parity-{stage}-fp32" for stage in range(4)),
        *(f"parity-{stage}-bf16" for stage in (1, 2, 3)),
        "within-1-fp32",
        "masked-1-fp32",
        *(f"resume-{stage}-bf16" for stage in (0, 1, 3)),
        *(f"export-{stage}-bf16" for stage in (1, 3)),
        "split-1-fp32",
        "recomputed-1-fp32",
        "signs-1-fp32",
        "sums-1-bf16",
        "compiled-2-bf16",
        "uncompilable-1-fp32",
        "precise-3-bf16",
        *("stopped_gradient-3-bf16", "stopped_gradient-0-fp32", "stopped_loss-1-bf16"),
        "no_target-1-fp32",
        *("skipped_spike-1-bf16", "skipped_gradient-0-bf16"),
        "worn_out-3-bf16",
        "slowed-2-fp32",
        "unreached-3-bf16",
        *(f"kept-{stage}-bf16" for stage in (0, 1)),
        "passed_over-1-fp32",
        "routed-0-fp32",
        *(f"taught-{stage}-fp32" for stage in (1, 3)),
        "taught-1-bf16",
        "taught_split-3-fp32",
        "taught_within-1-fp32",
        "recalled-1-fp32",
        "resume_taught-0-bf16",
        *(f"lora_parity-{stage}-fp32" for stage in (1, 3)),
        "lora_resume-0-bf16",
        *(f"lora_export-{case}" for case in ("1-fp32", "0-bf16")),
        *(f"written-{stage}-bf16" for stage in range(4)),
        "written_lora-1-bf16",
        "beside-1-bf16",
    ],
    1: [*(f"parity-{stage}-fp32" for stage in range(4)), "taken_up-0-bf16"],
}
SLOW = {
    2: [
        *(
            "parity-0-bf16",
            "within-3-fp32",
            "no_target-0-fp32",
            "no_target-3-fp32",
            "passed_over-0-fp32",
        ),
        *("resume-2-bf16", "resume-0-fp32", "resume_with_all-1-bf16", "export-2-bf16"),
        *("recomputed-3-fp32", "routed-3-fp32", "recalled-3-fp32"),
        *(
            "compiled-0-bf16",
            "compiled-3-fp32",
            "compiled_within-1-fp32",
            "taught_compiled-1-fp32",
            "lora_compiled-1-bf16",
        ),
        *(f"taken_up-{stage}-bf16" for stage in range(4)),
        *(f"{what}-{stage}-bf16" for what in ("precise", "unreached") for stage in (0, 1, 2)),
        *(f"stopped_loss-{stage}-bf16" for stage in (0, 2, 3)),
        *(f"kept-{stage}-bf16" for stage in (2, 3)),
        *(f"stopped_gradient-{case}" for case in ("0-bf16", "1-bf16", "2-bf16", "1-fp32", "2-fp32", "3-fp32")),
        *(f"skipped_spike-{case}" for case in ("0-bf16", "0-fp32", "1-fp32", "2-bf16", "2-fp32", "3-bf16", "3-fp32")),
        *(
            f"skipped_gradient-{case}"
            for case in ("0-fp32", "1-bf16", "1-fp32", "2-bf16", "2-fp32", "3-bf16", "3-fp32")
        ),
        *(f"skipped_loss-{stage}-bf16" for stage in range(4)),
        *("taught-0-fp32", "taught-2-fp32", "taught_split-1-fp32", "resume_taught-3-bf16"),
        *("lora_parity-0-fp32", "lora_parity-2-fp32", *(f"lora_resume-{stage}-bf16" for stage in (1, 2, 3))),
        "slowed-1-fp32",
        *("lora_recomputed-1-fp32", "lora_export-3-bf16"),
    ],
    1: ["taken_up-1-bf16"],
    4: [*(f"parity-{stage}-fp32" for stage in (1, 2, 3)), "written-1-bf16", "taken_up-2-bf16", "taken_up-3-bf16"],
}


def each(form: str, values: Iterable[Any], processes: int = 2) -> list[Any]:
    """The values of a test's parameter, ``slow`` where the case that ``form`` makes of one is."""
    slow = SLOW.get(processes, ())
    return [pytest.param(value, marks=[pytest.mark.slow] * (form.format(value) in slow)) for value in values]
