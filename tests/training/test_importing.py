"""DeepSpeed as training imports it: what it says, and what it leaves alone."""

from __future__ import annotations

import logging

import torch

from pipeline.training.importing import import_deepspeed


def test_it_is_quiet_but_for_warnings_and_builds_nothing():
    compiled = torch.compile
    deepspeed = import_deepspeed()
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    from deepspeed.utils import logger

    listener = Listener()
    logger.addHandler(listener)
    for line in ("OVERFLOW! skipping step", "mind this"):
        logger.warning(line)
    logger.info("a detail")
    logger.removeHandler(listener)
    assert heard == ["mind this"]
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    assert torch.compile is compiled and deepspeed.runtime.compiler.compile is not None
