"""Cases that only a GPU can show: how often a step waits for it, and what is left on it when an engine is closed."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import torch

from tests import ROOT
from tests.training.kit import Case, Position, new_engine, rate, share, text, train_steps


def reads(case: Case) -> dict[str, Any]:
    """Waits for the device in a step of 4 micro-batches and in one of 8, behind one that warms up."""
    found = {}
    for accumulation in (4, 8):
        batch = 2 * accumulation * case.world.size
        engine = new_engine(case, 2, batch)
        steps = train_steps(engine, share(text(3 * batch), case.world), Position(), steps=3, rate=rate)
        next(steps)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            next(steps)
        torch.cuda.set_sync_debug_mode("default")
        found[accumulation] = [_place(wait) for wait in waits if "synchroniz" in str(wait.message)]
        engine.close()
    return found


def _place(wait: warnings.WarningMessage) -> str:
    """File and line of a wait: of ours from the project's root, of others from their package."""
    parts = Path(wait.filename).parts
    ours = Path(wait.filename).is_relative_to(ROOT)
    return "/".join(Path(wait.filename).relative_to(ROOT).parts if ours else parts[-2:]) + f":{wait.lineno}"


def closed(case: Case) -> dict[str, Any]:
    """Bytes on the device before an engine is made, while it is there, and when two of them are closed."""
    before, during = torch.cuda.memory_allocated(), []
    for _ in range(2):
        engine = new_engine(case, 2)
        next(train_steps(engine, share(text(8), case.world), Position(), steps=1, rate=rate))
        during.append(torch.cuda.memory_allocated())
        engine.close()
        del engine
        gc.collect()
    return {"before": before, "during": during, "after": torch.cuda.memory_allocated()}
