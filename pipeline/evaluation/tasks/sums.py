"""Sums: an arithmetic task whose items are made here, seeded, so that a small model does a part of them.

Multiple choice comes back after blocks have been removed, arithmetic does not (pruning by depth takes what reasoning
stands on first): whoever looks at choices alone does not see it. Four sums are shown, the fifth is to be finished.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic

NAME, FILE = "sums", "sums.jsonl"
#: Reads the items that lie beside it: lm-eval takes paths of data from the working directory, and of code from where a
#: definition stands, which may be moved.
READER = "sums_data"
READING = f"""from pathlib import Path

from datasets import load_dataset


def load(**asked):
    return load_dataset("json", data_files={{"test": str(Path(__file__).with_name("{FILE}"))}})
"""
#: Items of each kind, sums that are shown before each, and what they are drawn from.
ITEMS, SHOWN, SEED = 50, 4, 0
#: By name: the largest first and second number, and the sign between them.
KINDS = {"ones": (9, 9, "+"), "tens and ones": (89, 9, "+"), "tens": (89, 89, "+"), "less": (19, 9, "-")}
#: Tokens of an answer; a line's end ends it.
TOKENS = 6


def items() -> list[dict[str, str]]:
    """Every item: its ``kind``, the ``text`` that is given, and the ``answer``."""
    draw = random.Random(SEED)
    made = []
    for _ in range(ITEMS):
        for kind, (first, second, sign) in KINDS.items():
            sums = [_sum(draw, first, second, sign) for _ in range(SHOWN + 1)]
            shown = "".join(f"{question} {answer}\n" for question, answer in sums[:SHOWN])
            question, answer = sums[SHOWN]
            made.append({"kind": kind, "text": shown + question, "answer": answer})
    return made


def _sum(draw: random.Random, first: int, second: int, sign: str) -> tuple[str, str]:
    one = draw.randint(1, first)
    other = draw.randint(1, min(second, one) if sign == "-" else second)
    return f"{one} {sign} {other} =", str(one - other if sign == "-" else one + other)


def write_items(folder: Path) -> None:
    """The items, one a line, and the code that reads them, to ``folder``."""
    write_atomic(folder / FILE, "".join(json.dumps(item) + "\n" for item in items()))
    write_atomic(folder / f"{READER}.py", READING)


def definition() -> dict[str, Any]:
    """The task as lm-eval reads it, but for ``custom_dataset``, the code that stands beside it."""
    return {
        "task": NAME,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": TOKENS, "do_sample": False},
        "filter_list": [
            {
                "name": "first number",
                "filter": [{"function": "regex", "regex_pattern": "(-?[0-9]+)"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
