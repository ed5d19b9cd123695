"""The train stage through the command: what it writes, and what it refuses or survives in the middle of a run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from pipeline.config import load_config
from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.data.shards import read_manifest
from pipeline.data.stream.parts import deal, shuffle
from pipeline.files import hash_file, read_json, write_json
from pipeline.inputs import Inputs
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.training.metrics import pace
from tests import ROOT


def test_what_the_stage_writes(reference):
    train = reference / "train"
    metrics = [json.loads(line) for line in (train / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 25))
    assert [line["tokens"] for line in metrics] == [step * 512 for step in range(1, 25)]
    assert all(
        set(line)
        == {
            "step",
            "tokens",
            "loss",
            "grad_norm",
            "learning_rate",
            "tokens_per_second",
            "mfu",
            "seconds",
            "data_wait",
            "slowest",
        }
        for line in metrics
    )
    assert all(line["slowest"]["rank"] in (0, 1) and line["slowest"]["seconds"] > 0 for line in metrics)
    assert metrics[-1]["learning_rate"] == pytest.approx(1e-4), "the last step does not have the final rate"
    log = (reference / "log.txt").read_text()
    for step in (1, 10, 24):
        left = timedelta(seconds=round((24 - step) * pace(metrics[:step])[1]))
        assert re.search(rf"train: step {step} of 24: loss .* tokens/s, {left} left\n", log), f"step {step}: not {left}"
    held_out = [json.loads(line) for line in (train / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in held_out] == [0, 8, 16, 24], "not evaluated before, every 8 steps, and at the end"
    assert held_out[-1]["held_out_loss"] < held_out[0]["held_out_loss"], "training did not lower the held-out loss"
    kept = sorted(path.parent.name for path in train.glob("checkpoints/*/COMPLETE"))
    assert kept == ["step-00000020", "step-00000024"], "not the two newest checkpoints are kept"
    assert not list(train.glob("metrics.discarded.jsonl")), "an uninterrupted run discarded lines"
    assert [path.name for path in (train / "exports").iterdir()] == ["step-00000024"]
    record = json.loads((train / "stage.json").read_text())
    assert record["result"]["tokens"] == 12288
    assert not [name for name in record["outputs"] if name.startswith("checkpoints")]


def test_the_export_is_the_trained_model_as_transformers_loads_it(reference):
    export, pruned = reference / "train" / "exports" / "step-00000024", reference / "prune" / "model"
    model = load_model(export)
    assert model.config.num_hidden_layers == 6
    assert {str(value.dtype) for value in model.state_dict().values()} == {"torch.bfloat16"}
    before = load_model(pruned).state_dict()
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items()), "nothing was trained"
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        assert (export / name).exists(), f"{name} is not in the export"


def test_a_disk_too_small_for_a_checkpoint_is_met_before_training(tmp_path):
    """A real need above what this disk has free."""
    from pipeline.errors import RegrowError
    from pipeline.files import require_space

    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, free // 2, "a checkpoint")
    with pytest.raises(RegrowError) as caught:
        require_space(tmp_path, 2 * free, "a checkpoint")
    for part in ("no space for a checkpoint", str(tmp_path), f"{2 * free / 1e9:.2f} GB needed", "same command again"):
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def test_what_may_differ_on_a_resume_is_no_part_of_the_fingerprint(lengthen, tmp_path):
    path = lengthen(tmp_path)
    same = load_config(path).read_by("train")
    free = [
        "train.micro_batch=4",
        "train.processes=1",
        "train.checkpoint_every=5",
        "train.evaluate_every=5",
        "data.workers=2",
        "train.keep_checkpoints=9",
        "train.keep_every=4",
        "train.save=blocking",
        "train.zero_stage=3",
    ]
    assert load_config(path, free).read_by("train") == same, "a field that may differ would make the stage stale"
    for key, value in (("learning_rate", "2e-3"), ("tokens", "8192"), ("global_batch", "16"), ("seed", "1")):
        changed = load_config(path, [f"train.{key}={value}"]).read_by("train")
        assert changed != same, f"a changed train.{key} would pass unseen"


# What training reads.


def rows_of(config: Path, count: int) -> list:
    loaded = load_config(config)
    run = Run(loaded.run.folder / loaded.run.name)
    return list(islice(Inputs(loaded, run, run.stage("prune") / "model").stream(), count))


def losses_of(model, ids: list[torch.Tensor]) -> float:
    """Mean loss, in nats, of all targets of some sequences that are read one by one."""
    total, targets = 0.0, 0
    for sequence in ids:
        logits = model(sequence[None]).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, sequence[1:], reduction="sum").item()
        targets += len(sequence) - 1
    return total / targets


def test_attention_within_trains_on_each_document_as_if_it_stood_alone(logged, reference):
    """The first loss is of known weights, those of the pruned model, on known rows."""
    rows = rows_of(logged, 8)
    assert sum(len(row.cu_seqlens) - 1 for row in rows) > 8, "no row has two documents"
    model = load_model(reference / "prune" / "model").eval()
    ids = [torch.from_numpy(row.input_ids) for row in rows]
    with torch.no_grad():
        across = losses_of(model, ids)
        alone = losses_of(
            model,
            [
                row[begin:end]
                for row, known in zip(ids, rows, strict=True)
                for begin, end in pairwise(known.cu_seqlens.tolist())
            ],
        )
    lines = (logged.parent / "runs" / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    near = 5e-4  # what bf16 and another order of sums may change
    assert abs(alone - across) > 5 * near, "the two kinds of attention cannot be told apart on these rows"
    assert metrics[0]["loss"] == pytest.approx(alone, abs=near), f"across documents it is {across}"
    assert metrics[-1]["loss"] < metrics[0]["loss"], "training within documents learns nothing"
    assert [line["tokens"] for line in metrics] == [2048 * step for step in range(1, 9)]


def test_the_logged_samples_are_the_rows_of_the_stream(logged):
    lines = (logged.parent / "runs" / "tiny" / "train" / "samples.jsonl").read_text().splitlines()
    logged_rows = [(entry["step"], *row) for entry in map(json.loads, lines) for row in entry["rows"]]
    expected = [
        (1 + row.index // 8, row.index, row.lane, hashlib.sha256(row.input_ids.tobytes()).hexdigest()[:16])
        for row in rows_of(logged, 64)
    ]
    assert logged_rows == expected, "two processes were trained on other rows than one process reads"


def test_killed_and_resumed_within_documents_it_is_the_same_run_and_no_other_stream(
    regrow, logged, copy_until, tmp_path
):
    """Killed at step 5 of 8; refused while the checkpoint is of another stream; then resumed to the same bytes."""
    whole, killed = logged.parent / "runs" / "tiny", copy_until("prune", tmp_path)
    config = tmp_path / "killed.yaml"
    config.write_text(f"extends: {logged}\nrun: {{folder: {tmp_path}/runs}}\n")
    command = regrow("train", config)
    command.read_until("[train] step 5 of 8")
    command.kill()
    command.wait()
    checkpoint = max((killed / "train" / "checkpoints").glob("*/COMPLETE")).parent
    assert checkpoint.name in ("step-00000003", "step-00000006")

    state, complete = read_json(checkpoint / "state.json"), read_json(checkpoint / "COMPLETE")
    tokenizer = state["identity"]["tokenizer"]
    foreign = {**state, "identity": {**state["identity"], "tokenizer": "f" * 64, "weights": [2.0]}}
    write_json(checkpoint / "state.json", foreign)
    entry = {"bytes": (checkpoint / "state.json").stat().st_size, "sha256": hash_file(checkpoint / "state.json")}
    write_json(checkpoint / "COMPLETE", {**complete, "files": {**complete["files"], "state.json": entry}})
    command = regrow("train", config)
    assert command.wait() == 1, command.output
    for part in (
        f"the tokenizer (its hash) was {'f' * 64}, is {tokenizer}",
        "the weights of data.sources was 2.0, is 1.0",
    ):
        assert part in command.output, f"{part!r} is not in:\n{command.output}"
    assert command.output.count("regrow: ") == 1 and "Traceback" not in command.output, command.output

    write_json(checkpoint / "state.json", state)
    write_json(checkpoint / "COMPLETE", complete)
    command = regrow("train", config)
    assert command.wait() == 0, command.output
    assert f"[train] resuming at step {int(checkpoint.name[-8:])} of 8" in command.output
    for name in ("samples.jsonl", "held_out.jsonl", "exports/step-00000008/model.safetensors"):
        assert (killed / "train" / name).read_bytes() == (whole / "train" / name).read_bytes(), f"{name} is another"
    metrics = [
        [
            [line[key] for key in ("step", "tokens", "loss", "grad_norm", "learning_rate")]
            for line in map(json.loads, (run / "train" / "metrics.jsonl").read_text().splitlines())
        ]
        for run in (killed, whole)
    ]
    assert metrics[0] == metrics[1] and [line[0] for line in metrics[0]] == list(range(1, 9))


def test_a_shard_that_is_damaged_while_training_is_left_out_and_recorded(
    regrow, here, refused, logged, copy_until, texts, tmp_path
):
    """Two shards for each lane; one is cut behind the back of a finished stage data."""
    for number in range(24):
        write_jsonl_zst(
            tmp_path / "corpus" / f"{number}.jsonl.zst",
            [{"text": text} for text in texts[40 * number : 40 * number + 40]],
        )
    run = copy_until("prune", tmp_path)
    shutil.rmtree(run / "data")
    config = tmp_path / "damaged.yaml"
    config.write_text(
        f"extends: {logged}\nrun: {{folder: {tmp_path}/runs}}\n"
        f"data: {{sources: [{{path: {tmp_path}/corpus}}], on_damage: skip}}\ntrain: {{tokens: 6144}}\n"
    )
    status, _, message = here("data", config)
    assert status == 0, message
    corpus, _ = read_manifest(read_json(run / "data" / "manifest.json"))
    (dealt,) = deal(corpus, 12, 0)
    first = shuffle(dealt.parts[5::12], 0, 5, 0, *dealt.names)[0]
    path = Path(corpus[first.shard].place) / corpus[first.shard].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    command = regrow("train", config)
    assert command.wait() == 0, command.output
    said = f"[train] lane 5: left out shard {path} from document 0 on, which is damaged"
    assert command.output.count(said) == 1, command.output
    lanes = read_json(run / "train" / "checkpoints" / "step-00000003" / "state.json")["lanes"]
    assert lanes["5"].endswith(f" | 0.{first.shard}.0")
    assert not any("|" in text for lane, text in lanes.items() if lane != "5"), f"others left something out: {lanes}"

    message = refused("train", config, "data.on_damage=raise")
    assert 'data.on_damage: was "skip", is "raise"' in message, message


@pytest.mark.slow
def test_nothing_of_training_is_held_when_the_stage_is_done(lengthen, copy_until, tmp_path):
    """Under an outside launcher stage evaluate loads three models in the same process."""
    config, runs = lengthen(tmp_path), {f"zero-{stage}": stage for stage in (1, 3)}
    longer = config.read_text()
    assert "tokens: 12288" in longer
    config.write_text(longer.replace("tokens: 12288", "tokens: 1024"))
    for name in runs:
        copy_until("prune", tmp_path, name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    named = [f"{name}={stage}" for name, stage in runs.items()]
    done = subprocess.run(
        [*command, "-m", "tests.stages.closing", str(config), *named], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model = sum(
        path.stat().st_size for path in (tmp_path / "runs" / "zero-1" / "prune" / "model").glob("*.safetensors")
    )
    before, *after = found["held"]
    assert max(after) - before < model / 100, f"of a model of {model:,} bytes, bytes held after each run: {after}"
    assert not found["deterministic"], "deterministic kernels stay on for the stages behind"
