"""The least config, writing one, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import (
    ConfigError,
    load_config,
)

LEAST = """\
run: {name: try}
model: {path: some/model}
data:
  sources:
    - path: first
      files: a/**
    - path: second
prune:
  remove: 6
train:
  tokens: 37e9
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        load_config(path, overrides)
    return str(refusal.value)
