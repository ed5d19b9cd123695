"""DeepSpeed as it is imported here: quiet, quickly, and without what would need a compiler."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, without the operation that would be compiled on a CPU."""
    import deepspeed
    from deepspeed.utils import logger

    # It calls collectives by names that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

    logger.setLevel(logging.WARNING)
    logger.addFilter(_not_about_overflow)
    # The dict that DeepSpeed consults before it builds the operation; setting it first also skips probing compilers.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    _import_muon(deepspeed.runtime.compiler)
    return deepspeed


def _import_muon(compiler: Any) -> None:
    """Import DeepSpeed's Muon uncompiled: DeepSpeed imports it to look at any optimizer, and torch's compiler with it,
    which takes a second."""
    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiled


def _not_about_overflow(record: logging.LogRecord) -> bool:
    """DeepSpeed warns of gradients that are not finite; the loop stops there, and says what to do."""
    return "OVERFLOW" not in record.getMessage()
