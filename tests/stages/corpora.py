"""Corpora for the stage data, and what it said and gives of them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.config import load_config
from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.files import read_json
from pipeline.inputs import Inputs
from pipeline.run import Run


def records(texts: list[str], domain: str = "RedPajamaWikipedia") -> list[dict[str, Any]]:
    return [{"text": text, "meta": {"redpajama_set_name": domain}} for text in texts]


def write(path: Path, documents: list[dict[str, Any]]) -> Path:
    """A shard of jsonl.zst, jsonl or parquet, by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents), path, row_group_size=20)
    elif path.suffix == ".zst":
        write_jsonl_zst(path, documents)
    else:
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def cut(path: Path) -> None:
    """Take the last third of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def manifest(folder: Path, name: str = "tiny") -> dict[str, Any]:
    return read_json(folder / "runs" / name / "data" / "manifest.json")


def record(folder: Path, name: str = "tiny") -> dict[str, Any]:
    return read_json(folder / "runs" / name / "data" / "stage.json")["result"]


def rows_of(config: Path, *overrides: str, count: int = 96) -> list[tuple]:
    """The first rows of a run whose stage data is done."""
    loaded = load_config(config, list(overrides))
    run = Run(loaded.run.folder / loaded.run.name)
    rows = islice(Inputs(loaded, run).stream(), count)
    return [(row.index, row.lane, row.cursor, row.input_ids.tolist(), row.cu_seqlens.tolist()) for row in rows]
