"""Stage evaluate: dense, pruned and regrown under the same protocol: perplexity, samples, speed and cost of generation.

One model stands in memory at a time, except where their speeds are compared: those are measured side by side.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pipeline.checks import check_prompts
from pipeline.config import Config
from pipeline.errors import RegrowError
from pipeline.evaluation.figures import Figures, hash_rows
from pipeline.evaluation.generation import generate_samples
from pipeline.evaluation.latency import ROUNDS, Workload, measure_latency
from pipeline.evaluation.memory import fit_together, give_back
from pipeline.evaluation.protocol import CostProtocol, require_positions
from pipeline.evaluation.resident import Stored
from pipeline.evaluation.running import Kept, cost_of_running
from pipeline.evaluation.tasks.definitions import data_files, require_tasks
from pipeline.evaluation.tasks.paired import compare_models
from pipeline.evaluation.tasks.scores import Tasks, mean_of
from pipeline.evaluation.timing import timed_on
from pipeline.evaluation.windows import TextRows
from pipeline.files import write_json
from pipeline.inputs import Inputs, read_encoder
from pipeline.judged import check_judged_texts, judged_texts, text_hashes
from pipeline.life import Teller
from pipeline.loading import offloaded
from pipeline.model.blocks import find_blocks
from pipeline.model.dispatch import lying, place_words
from pipeline.model.files import weight_files, weights_hash
from pipeline.origins import check_dense, dense_folder, dense_hashes
from pipeline.run import Run
from pipeline.stages import score
from pipeline.stages.judging import (
    asked_tasks,
    perplexities,
    perplexity_words,
    stored_model,
    task_words,
    what_it_is,
)
from pipeline.stages.stage import Ahead, Stage
from pipeline.world import World


def work(config: Config, run: Run, world: World, say: Teller) -> dict[str, Any]:
    """Write evaluate/results.json."""
    text = Inputs(config, run)
    folders = {
        "dense": dense_folder(config),
        "pruned": run.stage("prune") / "model",
        "regrown": run.folder / run.record("train")["result"]["export"],
    }
    texts, left_out = world.on_first(lambda: judged_texts(text, say))
    tasks, models, items, weights, stored, identities = _tasks(config, run, world), {}, {}, [], {}, {}
    progress = run.stage("evaluate") / "progress"
    figures = Figures(progress / "figures", world)
    for name, folder in folders.items():
        say(f"{name}: {', '.join(f'{len(each.rows)} rows of {judged}' for judged, each in texts.items())}")
        identities[name] = world.on_first(partial(_identity, config, run, folder))
        stored[name] = stored_model(config, folder, world, progress)
        model = stored[name].load(world.device)
        weights.append(model.get_memory_footprint())
        lies = {} if stored[name].dispatch is None else lying(model)
        if lies:
            say(f"{name} is dispatched: {place_words(lies)}")
        entry = _judge(config, folder, model, identities[name], texts, figures, world)
        if lies:
            entry["dispatched"] = {str(place): size for place, size in lies.items()}
        say(f"{name}: {perplexity_words(entry['perplexity'])}")
        if tasks is not None:
            judged = tasks.judge(name, model, read_encoder(config, folder).tokenizer, say.at)
            items[name] = judged.items
            entry |= {"tasks": judged.entries, "task_mean": mean_of(judged.entries)}
            say(f"{name}: {task_words(judged)}")
        models[name] = {**_named(config, run, name, folder, identities[name]), **entry}
        # Nothing holds the model afterwards.
        del model
        give_back(world.device)
    if world.rank == 0:
        speeds = _speeds(config, stored, identities, weights, texts["held_out"], figures, world, say)
        for name, (speed, costs) in speeds.items():
            models[name]["generation"] = speed | models[name]["generation"]
            models[name]["cost"] = costs
        results = {"models": models, "left_out": {"perplexity": left_out}}
        if items:
            results["paired"] = compare_models(items)
            write_json(run.stage("evaluate") / "tasks" / "items.json", items)
        write_json(run.stage("evaluate") / "results.json", results)
        for line in table(models):
            say(line)
    shutil.rmtree(offloaded(progress, world), ignore_errors=True)
    world.barrier()
    return {name: entry["perplexity"]["held_out"]["value"] for name, entry in models.items()}


def _speeds(
    config: Config,
    stored: dict[str, Stored],
    identities: dict[str, Any],
    weights: list[int],
    held_out: TextRows,
    figures: Figures,
    world: World,
    say: Teller,
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of each model how fast it generates beside the others, and what running it costs, in all sizes that are asked."""
    # What is dispatched has filled the memory that there is.
    together = not any(one.dispatch for one in stored.values()) and fit_together(weights, world.device)
    way = "together and take turns" if together else f"one by one, {ROUNDS} times: they do not fit together"
    say(f"latency: the models are loaded {way}")
    speeds = measure_latency(
        lambda name: (stored[name].load(world.device), read_encoder(config, stored[name].folder)),
        list(stored),
        _workload(config),
        device=world.device,
        together=together,
    )
    costs = cost_of_running(
        stored,
        dict(zip(stored, weights, strict=True)),
        _cost_protocol(config),
        held_out.rows,
        device=world.device,
        say=say,
        kept=Kept(figures, {"models": identities, "text": hash_rows(held_out)}),
    )
    on = timed_on(world.device, config.model.dtype)
    return {name: (speeds[name] | on, [record | on for record in costs[name]]) for name in stored}


def _tasks(config: Config, run: Run, world: World) -> Tasks | None:
    """The tasks that the models are to be asked, None where there are none."""
    asked, folder = asked_tasks(config), run.stage("evaluate")
    if not asked.tasks:
        return None
    return Tasks(asked, config.evaluate.tasks.batch, folder / "tasks", folder / "progress" / "answers", world)


def _identity(config: Config, run: Run, folder: Path) -> dict[str, Any]:
    """What a model is, with hashes that a resume need not compute again."""
    found = what_it_is(config, folder, run.hash_of)
    run.keep_hashes()
    return found


def _named(config: Config, run: Run, name: str, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Which model it is, and in which dtype it computes."""
    weights = weights_hash(folder, lambda path: identity["files"][path.name])
    if name != "dense":
        return {"path": folder.relative_to(run.folder).as_posix(), "sha256": weights, "dtype": config.model.dtype}
    model = config.model
    path, revision = (model.path, model.revision) if model.dense is None else (model.dense, model.dense_revision)
    return {"path": path, "revision": revision, "sha256": weights, "dtype": model.dtype}


def _judge(
    config: Config,
    folder: Path,
    model: PreTrainedModel,
    identity: dict[str, Any],
    texts: dict[str, TextRows],
    figures: Figures,
    world: World,
) -> dict[str, Any]:
    """What one model is and predicts, with the first process's samples."""
    found = perplexities(config, model, identity, texts, figures, world)
    asked = config.evaluate.generation

    def continued() -> list[dict[str, str]] | None:
        if world.rank != 0:
            return None
        return generate_samples(model, read_encoder(config, folder), asked.prompts, asked.new_tokens, world.device)

    fixed = {"model": identity, "prompts": asked.prompts, "new_tokens": asked.new_tokens, "text": _encoding(config)}
    return {
        "parameters": model.num_parameters(),
        "blocks": len(find_blocks(model)),
        "perplexity": found,
        "tasks": {},
        "generation": {"samples": figures.of(fixed, continued)},
        "weight_file_bytes": sum(path.stat().st_size for path in weight_files(folder)),
    }


def _encoding(config: Config) -> list[str]:
    """How prompts become ids, beside the tokenizer, which is among the model's files."""
    return [config.data.separator, config.data.special_tokens]


def _cost_protocol(config: Config) -> CostProtocol:
    return CostProtocol(**config.evaluate.cost.model_dump(exclude={"protocol"}))


def _workload(config: Config) -> Workload:
    asked = config.evaluate.generation
    return Workload(asked.prompts[0], asked.new_tokens, asked.batch, asked.repeats)


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
    lines = [
        *check_dense(ahead.config, ahead.encoder, ahead.elsewhere),
        *check_judged_texts(ahead.config, ahead.encoder, ahead.elsewhere),
    ]
    return lines if ahead.elsewhere else [*require_tasks(asked_tasks(ahead.config)), *lines]


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense models, this run's and the first one, and the local texts and the tasks' data by their content."""
    data = {f"evaluate.tasks.data/{path.name}": run.hash_of(path) for path in data_files(asked_tasks(config))}
    return score.inputs(config, run) | dense_hashes(config, run) | text_hashes(config, run) | data


STAGE = Stage(
    "evaluate",
    upstream=("data", "prune", "train"),
    format=3,
    work=work,
    inputs=inputs,
    launched=lambda config: True,
    check=check,
    reads_model=True,
)
