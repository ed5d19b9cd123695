"""What tasks say of a model: what lm-eval's own command line says on the files that are kept, and by hand."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation.tasks.definitions import SHORTENED_LLM, Asked
from pipeline.evaluation.tasks.loading import load_tasks
from pipeline.evaluation.tasks.scores import Tasks, mean_of
from pipeline.world import ALONE
from tests import ROOT
from tests.evaluation.tasks.conftest import ITEMS

LIMIT, BATCH = 15, 4


@pytest.fixture(scope="module")
def judged(tiny_model, data, tmp_path_factory):
    """(folder, what was judged): the tiny model as the command line below loads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("judged")
    tasks = Tasks(
        Asked(("arc_easy", "boolq", "sums"), LIMIT, None, data), BATCH, folder / "tasks", folder / "kept", ALONE
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = tasks.judge("tiny", model, AutoTokenizer.from_pretrained(tiny_model), lambda what: None)
    assert model.training, "the model was left in evaluation mode"
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert states[:2] == after[:2] and torch.equal(states[2], after[2]), "random numbers were drawn, or seeds set"
    return folder, found


@pytest.mark.slow
def test_lm_evals_command_line_says_the_same_to_the_last_digit(judged, tiny_model, tmp_path):
    folder, found = judged
    options = f"pretrained={tiny_model},dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", options, "--device", "cpu"]
    command += ["--include_path", str(folder / "tasks"), "--tasks", "arc_easy", "boolq", "sums"]
    command += ["--limit", str(LIMIT), "--batch_size", str(BATCH), "--output_path", str(tmp_path / "out")]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "out").rglob("results*.json")
    theirs = json.loads(path.read_text())["results"]
    for task, entry in found.entries.items():
        for name, metric in entry["metrics"].items():
            what, _, source = name.partition(", ")
            for ours, key in ((metric["value"], what), (metric["stderr"], f"{what}_stderr")):
                assert ours == theirs[task][f"{key},{source or 'none'}"], f"{task}, {key}"


def test_an_entry_says_what_was_asked_and_how(judged, data):
    _, found = judged
    easy = found.entries["arc_easy"]
    assert (easy["metric"], easy["items"], easy["shots"], easy["batch"], easy["bos"]) == ("acc", LIMIT, 0, BATCH, False)
    assert easy["output"] == "multiple_choice" and found.entries["sums"]["output"] == "generate_until"
    assert easy["harness"].startswith("lm-eval 0.4") and set(easy["metrics"]) == {"acc", "acc_norm"}
    share = math.fsum(found.items["arc_easy"]) / LIMIT
    assert easy["value"] == pytest.approx(share) and set(found.items["arc_easy"]) <= {0.0, 1.0}
    assert easy["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (LIMIT - 1)))
    documents = [json.loads(line) for line in (data / "arc_easy.jsonl").read_text().splitlines()[:LIMIT]]
    hashes = [
        hashlib.sha256(json.dumps(document, indent=2, ensure_ascii=False).encode()).hexdigest()
        for document in documents
    ]
    assert easy["sha256"] == hashlib.sha256("".join(hashes).encode()).hexdigest(), "not the hash of those items"
    assert ITEMS > LIMIT, "all items were asked anyway: the limit is not shown"


def test_the_mean_is_that_of_the_seven_and_of_nothing_less():
    entries = {task: {"value": 0.1 * (place + 1), "stderr": 0.03} for place, task in enumerate(SHORTENED_LLM)}
    mean = mean_of({**entries, "sums": {"value": 9.0, "stderr": None}})
    assert mean["value"] == pytest.approx(0.4) and mean["stderr"] == pytest.approx(0.03 / math.sqrt(7))
    assert mean["of"] == list(SHORTENED_LLM)
    assert mean_of({task: entry for task, entry in entries.items() if task != "piqa"}) is None


def test_sums_are_read_from_where_the_run_folder_was_moved_to(judged, tmp_path, monkeypatch):
    folder, _ = judged
    moved = tmp_path / "moved"
    shutil.copytree(folder / "tasks", moved)
    (moved / "sums.jsonl").write_text('{"kind": "ones", "text": "1 + 1 =", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)
    (item,) = load_tasks(moved, ["sums"])["tasks"]["sums"].eval_docs
    assert item["text"] == "1 + 1 =", "the file at the old place was read"


def test_definitions_are_kept_and_read_back(judged):
    folder, _ = judged
    names = sorted(path.name for path in Path(folder / "tasks").iterdir() if path.is_file())
    assert names == ["arc_easy.yaml", "boolq.yaml", "sums.jsonl", "sums.yaml", "sums_data.py"]
