"""The texts that scoring and pruning run on, from the config and the run's manifest.

Both stages must mean the same sequences: one draws them to score, the other to choose by, to fit and to compare.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.held_out import held_out_rows
from pipeline.data.samples import calibration_sequences
from pipeline.data.shards import read_manifest
from pipeline.importance.linear import sequences_for_maps
from pipeline.rows import row_encoder, shard_cache
from pipeline.run import Run, read_json


def draw_calibration(config: Config, run: Run, dense: Path) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The calibration sequences (S, T) int64, and where each came from."""
    return _draw(config, run, dense, config.score.sequences, config.score.seed)


def draw_for_maps(config: Config, run: Run, dense: Path, width: int) -> torch.Tensor:
    """Sequences for linear maps of ``width`` x ``width``: (N, T) int64, of which ``split_for_maps`` keeps a part to
    judge them by."""
    count = config.score.linear_sequences or sequences_for_maps(width, config.score.length)
    # Another draw than the calibration's.
    return _draw(config, run, dense, count, config.score.seed + 1)[0]


def draw_held_out(config: Config, run: Run, dense: Path) -> torch.Tensor | None:
    """The held-out rows that removals are compared on, or None where nothing is held out."""
    _, shards = read_manifest(read_json(run.stage("data") / "manifest.json"))
    if not shards:
        return None
    compare = config.prune.compare
    return held_out_rows(
        shards,
        row_encoder(config, dense),
        length=compare.length,
        bos=config.evaluate.perplexity.bos,
        rows=compare.rows,
        cache=shard_cache(config),
    )


def _draw(config: Config, run: Run, dense: Path, sequences: int, seed: int) -> tuple[torch.Tensor, list[Any]]:
    shards, _ = read_manifest(read_json(run.stage("data") / "manifest.json"))
    return calibration_sequences(
        shards,
        row_encoder(config, dense),
        sequences=sequences,
        length=config.score.length,
        bos=config.score.bos,
        seed=seed,
        cache=shard_cache(config),
    )
