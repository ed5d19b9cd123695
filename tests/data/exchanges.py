"""Instruction data for tests: a form, records of Alpaca's shape, and shards of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.instructions import Form
from pipeline.data.shards import Shard
from tests.data.corpora import shard

FORM = Form("instruction", "input", "output", "Q: {instruction}\nA:\n", "Q: {instruction} ({input})\nA:\n")


def records(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Instructions of a few words, a third of them with an input; each response names its record's number."""
    draw = random.Random(seed)
    words = [
        "the",
        "house",
        "stands",
        "near",
        "river",
        "add",
        "two",
        "numbers",
        "write",
        "a",
        "poem",
        "list",
        "three",
        "cities",
    ]

    def some(least: int, most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(least, most)))

    return [
        {
            "instruction": some(2, 6),
            "input": some(1, 4) if number % 3 == 0 else "",
            "output": f"{number}: {some(1, 12)}",
        }
        for number in range(count)
    ]


def write_records(path: Path, wanted: Sequence[dict[str, Any]]) -> Shard:
    """A jsonl or parquet shard of these records, as a listing has it; ``path`` says which by its ending."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(wanted)), path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in wanted))
    return shard(path, text_key=FORM)
