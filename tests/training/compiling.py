"""Cases of compiled blocks: by torch's own compiler, as a GPU has them, here for the CPU.

What a case before has compiled would be taken again: each begins without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import config as inductor

from tests.training.kit import BATCH, Case, new_engine, text, train
from tests.training.parity import documents_alone, parity


def compiled(case: Case) -> dict[str, Any]:
    """Parity of compiled blocks."""
    torch._dynamo.reset()
    return parity(case, made={"compile_blocks": True})


def compiled_within(case: Case) -> dict[str, Any]:
    """Parity of compiled blocks that recompute selectively, with every document of a row alone."""
    torch._dynamo.reset()
    options = {"compile_blocks": True, "gradient_checkpointing": "selective"}
    return parity(case, documents_alone, made=options, within_documents=True)


def uncompilable(case: Case) -> dict[str, Any]:
    """Losses without compiling, and where the machine has no compiler; and what was said of it."""
    data, losses = text(BATCH), []
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        for compile_blocks in (False, True):
            torch._dynamo.reset()
            engine = new_engine(case, 2, compile_blocks=compile_blocks)
            losses.append([step["loss"] for step in train(engine, data, 1)])
    return {"losses": losses, "said": list(engine.compiled.news())}
