"""DeepSpeed as it is loaded: what it prints by itself, and what stays silent."""

from __future__ import annotations

import logging

from pipeline.training.library import load_deepspeed


def test_it_is_loaded_once_and_quiet(caplog):
    from deepspeed.utils import logger

    first, second = load_deepspeed(), load_deepspeed()
    assert first is second
    assert logger.level == logging.WARNING, "DeepSpeed tells of all that it does"
    overflow, other = (
        logging.LogRecord("DeepSpeed", logging.WARNING, "", 0, text, None, None) for text in ("OVERFLOW! ...", "else")
    )
    assert not all(f(overflow) if callable(f) else f.filter(overflow) for f in logger.filters)
    assert all(f(other) if callable(f) else f.filter(other) for f in logger.filters), "other warnings are lost"
    assert first.ops.__compatible_ops__ == {"deepspeed_shm_comm": False}, "an operation would be compiled on a CPU"
