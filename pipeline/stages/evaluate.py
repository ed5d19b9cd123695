"""Stage evaluate: dense, pruned and regrown under the same protocol: perplexity, samples, speed and cost of generation.

One model stands in memory at a time, except where their speeds are compared: those are measured side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from pipeline.evaluation.tasks.definitions import Asked, data_files, require_tasks
from pipeline.evaluation.tasks.paired import compare_models
from pipeline.evaluation.tasks.scores import Judged, Tasks, mean_of
from pipeline.evaluation.windows import TextRows
from pipeline.files import write_json
from pipeline.inputs import Inputs, read_encoder
from pipeline.judged import check_judged_texts, judged_texts, text_hashes
from pipeline.life import Teller
from pipeline.model.blocks import find_blocks
from pipeline.model.files import weight_files
from pipeline.model.head import find_head
from pipeline.model.load import load_model
from pipeline.origins import check_dense, dense_folder, dense_hashes
from pipeline.run import Run
from pipeline.stages import score
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
    tasks, models, items, weights = _tasks(config, run, world), {}, {}, []
    for name, folder in folders.items():
        say(f"{name}: {', '.join(f'{len(each.rows)} rows of {judged}' for judged, each in texts.items())}")
        model = _load(config, folder, world)
        entry = _judge(config, folder, model, texts, world)
        values = [f"{judged} {found['value']:.2f}" for judged, found in entry["perplexity"].items()]
        say(f"{name}: perplexity of {', '.join(values)}")
        if tasks is not None:
            judged = tasks.judge(name, model, read_encoder(config, folder).tokenizer, say.at)
            items[name] = judged.items
            entry |= {"tasks": judged.entries, "task_mean": mean_of(judged.entries)}
            say(f"{name}: {task_words(judged)}")
        path = (
            (config.model.dense or config.model.path) if name == "dense" else folder.relative_to(run.folder).as_posix()
        )
        models[name] = {"path": path, **entry}
        weights.append(model.get_memory_footprint())
        # Nothing holds the model afterwards.
        del model
        give_back(world.device)
    if world.rank == 0:
        for name, (speed, costs) in _speeds(config, folders, weights, texts["held_out"], world, say).items():
            models[name]["generation"] = speed | models[name]["generation"]
            models[name]["cost"] = costs
        results = {"models": models, "left_out": {"perplexity": left_out}}
        if items:
            results["paired"] = compare_models(items)
            write_json(run.stage("evaluate") / "tasks" / "items.json", items)
        write_json(run.stage("evaluate") / "results.json", results)
        for line in table(models):
            say(line)
    world.barrier()
    return {name: entry["perplexity"]["held_out"]["value"] for name, entry in models.items()}


def _speeds(
    config: Config, folders: dict[str, Path], weights: list[int], held_out: TextRows, world: World, say: Teller
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of each model how fast it generates beside the others, and what running it costs, in all sizes that are asked."""
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
    costs = cost_of_running(
        {name: Stored(folder, **_loading(config)) for name, folder in folders.items()},
        dict(zip(folders, weights, strict=True)),
        _cost_protocol(config),
        held_out.rows,
        device=world.device,
        say=say,
    )
    return {name: (speeds[name], costs.get(name, [])) for name in folders}


def _tasks(config: Config, run: Run, world: World) -> Tasks | None:
    """The tasks that the models are to be asked, None where there are none."""
    asked, folder = _asked(config), run.stage("evaluate")
    if not asked.tasks:
        return None
    return Tasks(asked, config.evaluate.tasks.batch, folder / "tasks", folder / "progress" / "answers", world)


def _asked(config: Config) -> Asked:
    tasks = config.evaluate.tasks
    return Asked(tasks.names, tasks.limit, tasks.shots, tasks.data)


def task_words(judged: Judged) -> str:
    """Each task's figure, in a line."""
    return ", ".join(f"{task} {entry['value']:.3f}" for task, entry in judged.entries.items())


def _judge(
    config: Config, folder: Path, model: PreTrainedModel, texts: dict[str, TextRows], world: World
) -> dict[str, Any]:
    """What one model is and predicts, with the first process's samples."""
    perplexities = _perplexities(config, model, texts, world)
    samples = None
    if world.rank == 0:
        asked = config.evaluate.generation
        samples = generate_samples(model, read_encoder(config, folder), asked.prompts, asked.new_tokens, world.device)
    world.barrier()
    return {
        "parameters": model.num_parameters(),
        "blocks": len(find_blocks(model)),
        "perplexity": perplexities,
        "tasks": {},
        "generation": {"samples": samples},
        "weight_file_bytes": sum(path.stat().st_size for path in weight_files(folder)),
    }


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


def _perplexities(
    config: Config, model: PreTrainedModel, texts: dict[str, TextRows], world: World
) -> dict[str, dict[str, Any]]:
    """Of each text the model's perplexity, and how it was measured."""
    micro_batch, head = config.evaluate.micro_batch, find_head(model)
    settings = {"micro_batch": micro_batch, "device": world.device, "head": head, "world": world}
    return {
        name: {
            **perplexity(model, text.rows, counted_from=text.counted_from, **settings),
            **text.about,
            "micro_batch": micro_batch,
        }
        for name, text in texts.items()
    }


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
    return lines if ahead.elsewhere else [*require_tasks(_asked(ahead.config)), *lines]


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense models, this run's and the first one, and the local texts and the tasks' data by their content."""
    data = {f"evaluate.tasks.data/{path.name}": run.hash_of(path) for path in data_files(_asked(config))}
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
