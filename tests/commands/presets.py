"""The published presets, and plans of them."""

from __future__ import annotations

from pipeline.commands.plan import plan
from pipeline.config import load_config
from tests import ROOT

PRESETS = ROOT / "configs" / "vicuna-7b"


def preset(size: str, *overrides: str) -> dict:
    return plan(load_config(PRESETS / f"{size}.yaml", overrides))
