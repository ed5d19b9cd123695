"""A run that has begun, to be looked at."""

from __future__ import annotations

import pytest

from pipeline.config import dump_config, load_config
from pipeline.files import write_atomic
from pipeline.run import Run
from tests.records import stage_record


@pytest.fixture
def run(tiny_config, tmp_path) -> Run:
    run = Run(tmp_path / "runs" / "tiny")
    write_atomic(run.folder / "config.yaml", dump_config(load_config(tiny_config)))
    run.finish("data", stage_record(finished="2026-11-22T04:00:00+0000", seconds=1.25))
    return run
