"""The layout that the tests' checkpoints are written in: for the programs under torchrun, and for what judges them."""

from __future__ import annotations

from pipeline.training.checkpoint import Layout

LAYOUT = Layout(
    processes=2,
    micro_batch=2,
    zero_stage=1,
    threads=1,
    dtype="bfloat16",
    device="cpu",
    gradient_checkpointing="none",
    compiled=False,
)
