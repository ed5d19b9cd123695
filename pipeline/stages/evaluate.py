"""Stage evaluate: dense, pruned and regrown under the same protocol: perplexity, samples, speed of generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.samples import held_out_rows
from pipeline.data.shards import read_manifest
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.evaluation.generation import generate_samples, measure_generation
from pipeline.evaluation.perplexity import perplexity
from pipeline.launch import World
from pipeline.model.blocks import find_blocks
from pipeline.model.load import load_model, resolve_model
from pipeline.rows import shard_cache
from pipeline.run import RegrowError, Run, read_json, write_json
from pipeline.stages.score import inputs as inputs  # the dense model, as for scoring

FORMAT = 1
UPSTREAM = ("data", "prune", "train")


def launched(config: Config) -> bool:
    """Several processes share the work."""
    return True


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write evaluate/results.json."""
    dense = resolve_model(config.model.path, config.model.revision)
    folders = {
        "dense": dense,
        "pruned": run.stage("prune") / "model",
        "regrown": run.folder / run.record("train")["result"]["export"],
    }
    rows = world.on_first(lambda: _rows(config, run, dense))
    models = {}
    for name, folder in folders.items():
        model = load_model(
            folder, dtype=config.model.dtype, attention=config.model.attention, device=world.device,
            trust_remote_code=config.model.trust_remote_code and name == "dense",
        )  # fmt: skip
        held_out = perplexity(
            model, rows, micro_batch=config.evaluate.micro_batch, device=world.device, rank=world.rank,
            world=world.size, group=world.control,
        )  # fmt: skip
        say(f"{name}: held-out perplexity {held_out['value']:.2f}")
        generation = _generation(config, model, folder, world) if world.rank == 0 else None
        world.barrier()
        models[name] = {
            "path": config.model.path if name == "dense" else folder.relative_to(run.folder).as_posix(),
            "parameters": model.num_parameters(),
            "blocks": len(find_blocks(model)),
            "perplexity": {"held_out": {**held_out, "bos": config.evaluate.perplexity.bos}},
            "tasks": {},
            "generation": generation,
        }
    if world.rank == 0:
        write_json(run.stage("evaluate") / "results.json", {"models": models})
        for line in table(models):
            say(line)
    return {name: entry["perplexity"]["held_out"]["value"] for name, entry in models.items()}


def _rows(config: Config, run: Run, dense: Path) -> torch.Tensor:
    _, shards = read_manifest(read_json(run.stage("data") / "manifest.json"))
    if not shards:
        raise RegrowError("evaluate: data.held_out is not set, so there is nothing to compute a perplexity on")
    protocol = config.evaluate.perplexity
    encoder = make_encoder(load_tokenizer(dense, config.model.trust_remote_code), config.data.separator)
    return held_out_rows(
        shards, encoder, length=protocol.length or config.data.row_length, bos=protocol.bos, rows=protocol.rows,
        cache=shard_cache(config),
    )  # fmt: skip


def _generation(config: Config, model: Any, folder: Path, world: World) -> dict[str, Any]:
    asked = config.evaluate.generation
    tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    speed = measure_generation(
        model, tokenizer, prompt=asked.prompts[0], new_tokens=asked.new_tokens, batch=asked.batch,
        repeats=asked.repeats, device=world.device,
    )  # fmt: skip
    end = make_encoder(tokenizer, config.data.separator).separator
    samples = generate_samples(model, tokenizer, list(asked.prompts), asked.new_tokens, world.device, end)
    return {**speed, "samples": samples}


def table(models: dict[str, Any]) -> list[str]:
    """Lines that set the models side by side: blocks, parameters, held-out perplexity, tokens a second."""
    lines = [f"{'model':<8} {'blocks':>6} {'parameters':>14} {'perplexity':>11} {'tokens/s':>9}"]
    for name, entry in models.items():
        value, speed = entry["perplexity"]["held_out"]["value"], entry["generation"]["tokens_per_second"]
        lines.append(f"{name:<8} {entry['blocks']:>6} {entry['parameters']:>14,} {value:>11.2f} {speed:>9.1f}")
    return lines
