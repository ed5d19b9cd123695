"""Stage evaluate: dense, pruned and regrown under the same protocol: perplexity, samples, speed and cost of generation.

One model stands in memory at a time, except where their speeds are compared: those are measured side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.checks import check_prompts
from pipeline.config import Config
from pipeline.errors import RegrowError
from pipeline.evaluation.generation import generate_samples
from pipeline.evaluation.latency import ROUNDS, Workload, measure_latency
from pipeline.evaluation.memory import fit_together, give_back
from pipeline.evaluation.perplexity import perplexity
from pipeline.evaluation.protocol import CostProtocol, require_positions
from pipeline.evaluation.resident import Stored
from pipeline.evaluation.running import cost_of_running
from pipeline.files import write_json
from pipeline.inputs import Inputs, read_encoder
from pipeline.model.blocks import find_blocks
from pipeline.model.files import weight_files
from pipeline.model.head import find_head
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.stages.score import inputs
from pipeline.stages.stage import Ahead, Stage
from pipeline.world import World


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write evaluate/results.json."""
    text = Inputs(config, run)
    folders = {
        "dense": text.model,
        "pruned": run.stage("prune") / "model",
        "regrown": run.folder / run.record("train")["result"]["export"],
    }
    rows = world.on_first(lambda: _rows(text))
    models, weights = {}, []
    for name, folder in folders.items():
        say(f"{name}: {len(rows)} held-out rows of {rows.shape[1]} tokens")
        entry, size = _judge(config, folder, rows, world)
        give_back(world.device)
        path = config.model.path if name == "dense" else folder.relative_to(run.folder).as_posix()
        models[name] = {"path": path, **entry}
        weights.append(size)
        say(f"{name}: held-out perplexity {entry['perplexity']['held_out']['value']:.2f}")
    if world.rank == 0:
        together = fit_together(weights, world.device)
        way = "together and take turns" if together else f"one by one, {ROUNDS} times: they do not fit together"
        say(f"latency: the models are loaded {way}")
        speeds = measure_latency(
            lambda name: (_load(config, folders[name], world), read_encoder(config, folders[name])),
            list(folders),
            _workload(config),
            device=world.device,
            together=together,
        )
        for name, speed in speeds.items():
            models[name]["generation"] = speed | models[name]["generation"]
        costs = cost_of_running(
            {name: Stored(folder, **_loading(config)) for name, folder in folders.items()},
            dict(zip(folders, weights, strict=True)),
            _cost_protocol(config),
            rows,
            device=world.device,
            say=say,
        )
        for name, records in costs.items():
            models[name]["cost"] = records
        write_json(run.stage("evaluate") / "results.json", {"models": models})
        for line in table(models):
            say(line)
    world.barrier()
    return {name: entry["perplexity"]["held_out"]["value"] for name, entry in models.items()}


def _judge(config: Config, folder: Path, rows: torch.Tensor, world: World) -> tuple[dict[str, Any], int]:
    """What one model is and predicts, with the first process's samples, and the bytes of its weights. Nothing holds the
    model afterwards."""
    model = _load(config, folder, world)
    held_out = perplexity(
        model,
        rows,
        micro_batch=config.evaluate.micro_batch,
        device=world.device,
        head=find_head(model),
        world=world,
    )
    samples = None
    if world.rank == 0:
        asked = config.evaluate.generation
        samples = generate_samples(model, read_encoder(config, folder), asked.prompts, asked.new_tokens, world.device)
    world.barrier()
    entry = {
        "parameters": model.num_parameters(),
        "blocks": len(find_blocks(model)),
        "perplexity": {"held_out": {**held_out, "bos": config.evaluate.perplexity.bos}},
        "tasks": {},
        "generation": {"samples": samples},
        "weight_file_bytes": sum(path.stat().st_size for path in weight_files(folder)),
    }
    return entry, model.get_memory_footprint()


def _load(config: Config, folder: Path, world: World) -> PreTrainedModel:
    return load_model(folder, device=world.device, **_loading(config))


def _loading(config: Config) -> dict[str, Any]:
    names = ("dtype", "attention", "trust_remote_code")
    return {name: getattr(config.model, name) for name in names}


def _cost_protocol(config: Config) -> CostProtocol:
    return CostProtocol(**config.evaluate.cost.model_dump(exclude={"protocol"}))


def _workload(config: Config) -> Workload:
    asked = config.evaluate.generation
    return Workload(asked.prompts[0], asked.new_tokens, asked.batch, asked.repeats)


def _rows(text: Inputs) -> torch.Tensor:
    protocol = text.config.evaluate.perplexity
    rows = text.held_out_rows(protocol.length or text.config.data.row_length, protocol.bos, protocol.rows)
    if rows is None:
        raise RegrowError("evaluate: data.held_out is not set, so there is nothing to compute a perplexity on")
    return rows


def table(models: dict[str, Any]) -> list[str]:
    """Lines that set the models side by side: blocks, parameters, held-out perplexity, tokens a second."""
    lines = [f"{'model':<8} {'blocks':>6} {'parameters':>14} {'perplexity':>11} {'tokens/s':>9}"]
    for name, entry in models.items():
        value, speed = entry["perplexity"]["held_out"]["value"], entry["generation"]["tokens_per_second"]
        lines.append(f"{name:<8} {entry['blocks']:>6} {entry['parameters']:>14,} {value:>11.2f} {speed:>9.1f}")
    return lines


def check(ahead: Ahead) -> list[str]:
    """Whether there is text to judge by, and whether the prompts fit the model."""
    if ahead.config.data.held_out is None:
        raise RegrowError("data.held_out is not set, so stage evaluate has nothing to compute a perplexity on; set it")
    if ahead.encoder is not None:
        check_prompts(ahead.config, ahead.encoder, ahead.model)
    if ahead.model is not None:
        require_positions(_cost_protocol(ahead.config), ahead.model)
    return []


STAGE = Stage(
    "evaluate",
    upstream=("data", "prune", "train"),
    format=2,
    work=work,
    # The dense model, as for scoring.
    inputs=inputs,
    launched=lambda config: True,
    check=check,
    reads_model=True,
)
