"""Made-up inputs for the layout of the report: no number here was measured, and none may be quoted.

The shapes are those of the run folder, at the size of the demo (30 blocks, 9 removed), so that page and card can
be looked at without running a pipeline. `python -m tests.reporting.made_up FOLDER` writes such a page.
"""

import math
import random
import sys
from pathlib import Path
from typing import Any

from pipeline.evaluation.tasks.definitions import SHORTENED_LLM
from pipeline.evaluation.tasks.scores import mean_of

REMOVED = [6, 9, 10, 13, 17, 19, 21, 23, 24]
PROTECTED = [0, 1, 2, 3, 28, 29]

PROMPTS = {
    "The river Danube rises in": {
        "dense": " the Black Forest of Germany and flows through ten countries before it reaches the Black Sea. It is "
        "the second-longest river in Europe, after the Volga.",
        "pruned": " the the river and the the of the first, and the was the 1900, the river of the river of the",
        "regrown": " the southern part of the country, and flows through the district of the same name. It is one of "
        "the longest rivers in the region.",
    },
    "Marie Curie was": {
        "dense": " a Polish and naturalised-French physicist and chemist who conducted pioneering research on "
        "radioactivity.",
        "pruned": " a a born in the a the and the the (born 1, 1, 1) was a an",
        "regrown": " a French scientist and writer. She was born in Paris, and studied at the University of Paris.",
    },
}


def made_up_inputs() -> dict[str, Any]:
    """What `Records` are made of, all of it present."""
    noise = random.Random(0)
    scores = made_up_scores(noise)
    metrics, held_out = made_up_training(noise)
    return {
        "name": "made-up-sample",
        "scores": scores,
        "prune": {
            "removed": list(REMOVED),
            "kept": [b for b in range(30) if b not in REMOVED],
            "protected": list(PROTECTED),
            "criterion": "ppl",
            "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "parameters": {"dense": 134_515_008, "pruned": 102_654_144},
            "self_test": {"passed": True, "largest_difference": 0.0},
        },
        "metrics": metrics,
        "held_out": held_out,
        "results": {"models": made_up_models()},
        "cost": made_up_cost(),
        "config_yaml": "prune:\n  criterion: ppl\n  remove: 9\ntrain:\n  tokens: 122880\n  learning_rate: 0.0003\n",
        "provenance": {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "model_note": "SmolLM2 dequantised from 4 bits",
            "data": [{"path": "train/chunk1/example_train_0.jsonl.zst", "documents": 9833}],
            "data_note": "Introductions of English Wikipedia articles, CC BY-SA",
            "language": "en",
            "license": "apache-2.0",
        },
        "made": {
            "command": "regrow run configs/made-up.yaml train.tokens=122880",
            "date": "2026-11-27T14:40:29+0000",
            "export": "runs/made-up/train/exports/step-00000060",
            "loader": "AutoModelForCausalLM",
            "custom_code": [],
        },
    }


def made_up_scores(noise: random.Random) -> dict[str, Any]:
    """PPL of 30 blocks: the first and the last weigh most, those of `REMOVED` least."""
    scores = [14.5 + 60 * math.exp(-b / 2.5) + noise.random() * 4 for b in range(30)]
    for block in REMOVED:
        scores[block] = 14.35 + noise.random() * 0.9
    scores[0], scores[1], scores[28], scores[29] = 5120.0, 612.0, 24.9, 61.3
    return {
        "blocks": 30,
        "criteria": {
            "ppl": {
                "scores": scores,
                "order": sorted(range(30), key=scores.__getitem__),
                "higher_is": "more important",
                "dense": 14.21,
            }
        },
        "model": {"revision": None, "sha256": "0" * 64},
        "calibration": {
            "sequences": 10,
            "length": 128,
            "bos": "document",
            "dtype": "bfloat16",
            "seed": 1234,
            "sha256": "a" * 64,
        },
    }


def made_up_training(noise: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of 60 steps, and of the held-out perplexities before and between them."""
    metrics, held_out = [], [{"step": 0, "tokens": 0, "held_out_loss": math.log(68.6), "held_out_perplexity": 68.6}]
    for step in range(1, 61):
        perplexity = 21.4 + 47.2 * math.exp(-step / 12)
        metrics.append(
            {
                "step": step,
                "tokens": step * 2048,
                "loss": math.log(perplexity) + noise.gauss(0.05, 0.09),
                "grad_norm": 1.2,
                "learning_rate": 3e-4,
                "tokens_per_second": 600.0,
                "mfu": None,
                "seconds": 3.4,
                "data_wait": 0.01,
            }
        )
        if step % 10 == 0:
            line = {"step": step, "tokens": step * 2048, "held_out_loss": math.log(perplexity)}
            held_out.append(line | {"held_out_perplexity": 22.1 if step == 60 else perplexity})
    return metrics, held_out


def made_up_models() -> dict[str, dict[str, Any]]:
    """What stage evaluate found of each model."""
    models, noise = {}, random.Random(2)
    measured = {"length": 256, "stride": 256, "bos": "document", "tokens": 20_480, "micro_batch": 8, "rows": 80}
    measured["text"] = {"sha256": "c" * 64}
    # What is hard in a row is hard for all models: so much more or less than its mean loss, in nats.
    hard = [noise.gauss(0.0, 0.3) for _ in range(80)]
    hard = [one - sum(hard) / 80 for one in hard]
    for name, blocks, parameters, perplexity, latency in (
        ("dense", 30, 134_515_008, 14.03, 3.91),
        ("pruned", 21, 102_654_144, 68.6, 2.83),
        ("regrown", 21, 102_654_144, 22.1, 2.81),
    ):
        loss = math.log(perplexity)
        # The same shift of neighbours in turn: the mean stays.
        shifts = (0.02, -0.02) if name != "dense" else (0.0, 0.0)
        models[name] = {
            "path": name,
            "parameters": parameters,
            "blocks": blocks,
            "sha256": str(blocks % 10) * 64,
            "dtype": "bfloat16",
            "perplexity": {"held_out": {"value": perplexity, "loss": loss, "stderr": 0.034 * perplexity} | measured},
            "tasks": {},
            "generation": {
                "prompt_tokens": 12,
                "new_tokens": 64,
                "batch": 1,
                "latency_seconds": latency,
                "latency_range": [latency * 0.98, latency * 1.05],
                "loaded": "together",
                "rounds": 5,
                "tokens_per_second": 64 / latency,
                "peak_memory_bytes": None,
                "repeats": 5,
                "samples": [{"prompt": prompt, "text": texts[name]} for prompt, texts in PROMPTS.items()],
            },
        }
        rows = [loss + one + shifts[number % 2] for number, one in enumerate(hard)]
        models[name]["perplexity"]["held_out"]["row_losses"] = rows
    return models


def made_up_cost() -> dict[str, Any]:
    """Seconds of the stages, what training took, the machine, and versions."""
    return {
        "stages": {
            stage: {"seconds": seconds}
            for stage, seconds in (
                ("data", 2.4),
                ("score", 12.9),
                ("prune", 4.1),
                ("train", 231.0),
                ("evaluate", 88.4),
            )
        },
        "train": {
            "tokens": 122_880,
            "steps": 60,
            "flops": 7.57e13,
            "flops_formula": "6 x parameters x tokens",
            "seconds": 218.0,
            "processes": 1,
        },
        "hardware": {"processor": "made-up processor", "cores": "2", "memory": "8 GiB", "accelerator": "none"},
        "versions": {"regrow": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8"},
    }


def with_criteria(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with what several criteria, selections and controls add: scores, prune.json, comparison.json."""
    add_criteria(inputs["scores"]["criteria"])
    inputs["prune"] |= {
        "selection": "one-shot",
        "stability": {
            "removed": REMOVED,
            "agreement": 0.93,
            "same_set": 0.41,
            "chances": [0.0] * 8 + [0.2] + [1.0] * 21,
            "unsettled": [[24, 8], [24, 14], [6, 8], [23, 14]],
            "settled": False,
            "sequences": 10,
            "sequences_needed": 8512,
        },
        "greedy": None,
        "linear": None,
    }
    inputs["comparison"] = {
        "protected": list(PROTECTED),
        "planned": 9,
        "removals": [3, 9, 12],
        "shares": [0.1, 0.3, 0.4],
        "model": {"revision": None, "sha256": "0" * 64, "dtype": "bfloat16"},
        "calibration": {"sequences": 10, "length": 128, "bos": "document", "sha256": "a" * 64},
        "held_out": {"rows": 32, "length": 256, "bos": "document", "sha256": "c" * 64},
        "dense": {"calibration": 14.21, "held_out": 14.03},
        "sets": compared_sets(),
    }
    return inputs


def add_criteria(criteria: dict[str, Any]) -> None:
    """Intervals of ppl's scores, and two criteria that score windows of the 30 blocks."""
    total = 30
    ppl = criteria["ppl"]
    ppl["interval"] = [[value * 0.9, value * 1.15] for value in ppl["scores"]]
    ppl["noise_pairs"] = [[6, 9], [9, 10], [10, 13], [13, 17]]
    windows = [[0.05 * n + 0.01 * abs(s - 12) + 0.4 * (s == 0) for n in range(1, total - s + 1)] for s in range(total)]
    angles = [values[0] for values in windows]
    criteria["angular_last"] = {
        "scores": angles,
        "order": sorted(range(total), key=angles.__getitem__),
        "higher_is": "more important",
        "windows": windows,
        "interval": [[value * 0.8, value * 1.2] for value in angles],
    }
    errors = {n: [0.2 + 0.01 * abs(s - 15) for s in range(total - n + 1)] for n in (1, 9)}
    criteria["linear"] = {
        "scores": errors[1],
        "order": sorted(range(total), key=errors[1].__getitem__),
        "higher_is": "more important",
        "windows": {
            str(n): {"scores": values, "without_map": [2 * v for v in values], "best_start": 15}
            for n, values in errors.items()
        },
    }


def compared_sets() -> list[dict[str, Any]]:
    """Sets of blocks by several ways, with the perplexities without them."""
    noise, free = random.Random(1), [b for b in range(30) if b not in PROTECTED]
    sets = []

    def add(by: str, selection: str, blocks: list[int], held_out: float | None, linear_map: bool = False) -> None:
        measured = {"calibration": None if held_out is None else 0.9 * held_out, "held_out": held_out}
        sets.append(
            {
                "by": by,
                "selection": selection,
                "linear_map": linear_map,
                "remove": len(blocks),
                "blocks": sorted(blocks),
                "perplexity": measured,
            }
        )

    order = [*REMOVED, *(b for b in free if b not in REMOVED)]
    for k in range(1, 13):
        add("ppl", "one-shot", order[:k], 67.62 if k == 9 else 15 * math.exp(k / 6))
        add("ppl", "greedy", order[1 : k + 1], 15 * math.exp(k / 6) * (1.02 if k == 4 else 0.97))
    for k in (3, 9, 12):
        add("angular_last", "contiguous", list(range(10, 10 + k)), 20 * math.exp(k / 5))
        add("angular_last", "contiguous", list(range(10, 10 + k)), 18 * math.exp(k / 5), linear_map=True)
        add("tail", "control", list(range(28 - k, 28)), None if k == 12 else 50 * math.exp(k))
        add("random", "control", noise.sample(free, k), 30 * math.exp(k / 4))
    return sets


if __name__ == "__main__":
    from pipeline.reporting import Records, render_page

    print(render_page(Records(**with_criteria(made_up_inputs())), Path(sys.argv[1])))


def made_up_task(value: float, task: str = "piqa") -> dict[str, Any]:
    """A task's entry: 200 items, right or wrong."""
    metric = "exact_match, first number" if task == "sums" else "acc"
    return {
        "metric": metric,
        "value": value,
        "stderr": 0.03,
        "items": 200,
        "metrics": {metric: {"value": value, "stderr": 0.03}},
        "sha256": "0" * 64,
        "output": "generate_until" if task == "sums" else "multiple_choice",
        "shots": 0,
        "batch": 16,
        "bos": False,
        "harness": "lm-eval 0.4.13",
    }


def made_up_tasks(models: dict[str, Any]) -> dict[str, Any]:
    """Results whose models have answered the seven tasks and the sums, with the paired tests of the sums."""
    for name, value, sums in (("dense", 0.5, 0.34), ("pruned", 0.4, 0.04), ("regrown", 0.45, 0.04)):
        entries = {task: made_up_task(value, task) for task in SHORTENED_LLM}
        models[name]["tasks"] = entries | {"sums": made_up_task(sums, "sums")}
        models[name]["task_mean"] = mean_of(entries)
    worse = {"difference": -0.3, "better": 2, "worse": 62, "items": 200, "p": 1e-12}
    same = {"difference": 0.0, "better": 3, "worse": 3, "items": 200, "p": 1.0}
    paired = {"regrown - dense": worse, "regrown - pruned": same, "pruned - dense": worse}
    return {"models": models, "paired": {pair: {"sums": test} for pair, test in paired.items()}}
