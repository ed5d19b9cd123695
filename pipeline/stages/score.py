"""Stage score: how much each block matters, from one sweep over the calibration sequences.

The sequences are divided over the processes; each one's losses are kept as soon as they are known, so that a killed
sweep goes on where it was, and the sums do not depend on who computed what.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.overlap import can_look_into, held_out_hashes
from pipeline.data.samples import calibration_sequences
from pipeline.data.shards import read_manifest
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.importance.ppl import TIE, summarise
from pipeline.importance.selection import write_block_order
from pipeline.importance.sweep import removal_losses
from pipeline.launch import World
from pipeline.model.load import load_model, model_files, resolve_model
from pipeline.model.structure import find_blocks, require_separate_blocks
from pipeline.run import Run, read_json, write_json

FORMAT = 1
UPSTREAM = ("data",)
LAUNCHED = True


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense model's files by their content."""
    folder = resolve_model(config.model.path, config.model.revision)
    return {f"model/{path.name}": run.hash_of(path) for path in model_files(folder)}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write score/scores.json, score/block_order.csv and score/calibration.json."""
    folder = run.stage("score")
    dense = resolve_model(config.model.path, config.model.revision)
    drawn = _draw(config, run, dense) if world.rank == 0 else None
    sequences, origins = world.from_first(drawn)
    model = load_model(
        dense, dtype=config.score.dtype, attention=config.model.attention, device=world.device,
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    require_separate_blocks(model, find_blocks(model))
    losses = _sweep(model, sequences, folder / "progress", world, say)
    targets = config.score.length - 1
    if world.rank == 0:
        scores = summarise(losses, targets, TIE[config.score.dtype])
        calibration = {
            "sequences": config.score.sequences, "length": config.score.length, "bos": config.score.bos,
            "dtype": config.score.dtype, "seed": config.score.seed, "targets": targets * config.score.sequences,
            "overlap": _overlap(run, origins),
        }  # fmt: skip
        write_json(folder / "calibration.json", {"origins": origins, "input_ids": sequences.tolist()})
        write_json(folder / "scores.json", {"blocks": len(losses) - 1, "criteria": {"ppl": scores},
                                            "calibration": calibration})  # fmt: skip
        write_block_order(folder / "block_order.csv", scores["order"])
        both = calibration["overlap"]
        held_out = "an unknown number" if both["held_out"] is None else both["held_out"]
        say(f"calibration documents: {both['training']} of {len(origins)} are also trained on, {held_out} held out")
        say(f"dense perplexity {scores['dense']:.2f}; least important first: {scores['order']}")
    return {"blocks": len(losses) - 1, "sequences": len(sequences)}


def _overlap(run: Run, origins: list[dict[str, Any]]) -> dict[str, int | None]:
    """Calibration sequences whose documents are trained on, and held out; None where held-out text is not here."""
    _, held_out = read_manifest(read_json(run.stage("data") / "manifest.json"))
    seen = all(can_look_into(shard) for shard in held_out) and all("hash" in origin for origin in origins)
    kept = {digest.hex() for digest in held_out_hashes(held_out)} if seen else set()
    also_held_out = sum(origin["hash"] in kept for origin in origins) if seen else None
    return {"training": len(origins), "held_out": also_held_out}


def _draw(config: Config, run: Run, dense: Path) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    shards, _ = read_manifest(read_json(run.stage("data") / "manifest.json"))
    encoder = make_encoder(load_tokenizer(dense, config.model.trust_remote_code), config.data.separator)
    return calibration_sequences(
        shards, encoder, sequences=config.score.sequences, length=config.score.length, bos=config.score.bos,
        seed=config.score.seed, cache=config.data.cache,
    )  # fmt: skip


def _sweep(
    model: Any, sequences: torch.Tensor, progress: Path, world: World, say: Callable[[str], None]
) -> torch.Tensor:
    """Summed losses (blocks + 1, sequences) fp64: each sequence by one process, done ones read back."""
    known = {}
    if world.rank == 0:
        known = {int(path.stem.split("-")[1]): read_json(path) for path in progress.glob("sequence-*.json")}
    known = world.from_first(known)
    todo = [number for number in range(len(sequences)) if number not in known]
    if known:
        say(f"{len(known)} of {len(sequences)} sequences were scored before")
    own = {}
    for count, number in enumerate(todo[world.rank :: world.size], start=1):
        # One sequence at a time, whatever the number of processes: the same products are made in the same shapes.
        own[number] = removal_losses(model, sequences[number : number + 1])[:, 0].tolist()
        write_json(progress / f"sequence-{number:05d}.json", own[number])
        say(f"sequence {min(count * world.size, len(todo))} of {len(todo)}")
    for share in world.gather(own):
        known.update(share)
    return torch.tensor([known[number] for number in range(len(sequences))], dtype=torch.float64).T
