"""Definitions that are written down: lm-eval's own but for the data and the examples, or refused in words."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from pipeline.errors import RegrowError
from pipeline.evaluation.tasks.definitions import PLACES, SHORTENED_LLM, Asked, require_tasks, write_definitions
from tests import ROOT
from tests.evaluation.tasks.conftest import ITEMS


def load(folder: Path, task: str):
    return TaskManager(include_path=str(folder), include_defaults=False).load([task])["tasks"][task]


def test_a_preset_stands_for_its_tasks_and_each_is_asked_once():
    asked = Asked(("piqa", "shortened-llm", "sums", "piqa"))
    assert asked.tasks == ("piqa", *(task for task in SHORTENED_LLM if task != "piqa"), "sums")


def test_what_is_written_is_the_tasks_own_definition_with_other_data(data, tmp_path):
    write_definitions(Asked(("arc_easy", "boolq"), data=data), tmp_path)
    task = load(tmp_path, "arc_easy")
    assert len(task.eval_docs) == ITEMS and task.config.num_fewshot == 0
    document = task.eval_docs[0]
    assert task.doc_to_text(document) == f"Question: {document['question']}\nAnswer:"
    assert [metric["metric"] for metric in task.config.metric_list] == ["acc", "acc_norm"]
    assert load(tmp_path, "boolq").has_validation_docs() and not load(tmp_path, "boolq").has_test_docs()


def test_examples_are_shown_from_their_own_file_alone(data, tmp_path):
    own = tmp_path / "data"
    own.mkdir()
    (own / "arc_easy.jsonl").write_bytes((data / "arc_easy.jsonl").read_bytes())
    with pytest.raises(RegrowError, match=r"arc_easy shows 2 examples .* no arc_easy.train.jsonl"):
        require_tasks(Asked(("arc_easy",), shots=2, data=own))
    (own / "arc_easy.train.jsonl").write_text((data / "arc_easy.jsonl").read_text().replace("Which of", "Train which"))
    write_definitions(Asked(("arc_easy",), shots=2, data=own), tmp_path / "tasks")
    task = load(tmp_path / "tasks", "arc_easy")
    task.set_fewshot_seed(seed=0)
    context = task.fewshot_context(task.eval_docs[0], num_fewshot=task.config.num_fewshot)
    assert context.count("Train which") == 2 and context.count("Which of") == 1


def test_gsm8k_without_examples_is_refused_and_the_way_out_is_open(data, tmp_path):
    own = tmp_path / "data"
    own.mkdir()
    for task in ("gsm8k", "gsm8k_cot"):
        (own / f"{task}.jsonl").write_text('{"question": "1 + 1?", "answer": "It is 2.\\n#### 2"}\n')
    with pytest.raises(RegrowError, match=r"gsm8k shows 5 examples .* must be there as gsm8k_cot\.jsonl"):
        require_tasks(Asked(("gsm8k",), data=own))
    write_definitions(Asked(("gsm8k",), shots=0, data=own), tmp_path / "none")
    assert load(tmp_path / "none", "gsm8k").config.num_fewshot == 0
    write_definitions(Asked(("gsm8k_cot",), data=own), tmp_path / "own")
    assert load(tmp_path / "own", "gsm8k_cot").config.num_fewshot == 8


@pytest.mark.parametrize("task", PLACES)
def test_the_places_of_definitions_are_where_lm_eval_has_them(task):
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.tasks.__file__).parent / PLACES[task]
    assert load_yaml(path, resolve_func=False)["task"] == task


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(("arc_esay",)), "no task 'arc_esay'"),
        (Asked(("arc_eas",)), "no task 'arc_eas'; there are arc_easy, "),
        (Asked(("mmlu",)), "mmlu is a group of tasks; name those that are wanted, such as mmlu_"),
        (Asked(("piqa",), data=Path("no-such-folder")), "no folder no-such-folder"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, message):
    with pytest.raises(RegrowError, match=message):
        require_tasks(asked)


def test_data_that_neither_the_hub_nor_the_cache_has_are_refused(own_cache):
    with pytest.raises(RegrowError, match=r"the data of piqa cannot be had \(.*\); .* set evaluate.tasks.data to a "):
        require_tasks(Asked(("sums", "piqa")))
    assert require_tasks(Asked(("sums",))) == [], "sums are made here"


def test_data_that_are_missing_are_named(data):
    with pytest.raises(RegrowError, match=r"has no data of piqa: none of piqa.jsonl, "):
        require_tasks(Asked(("arc_easy", "piqa"), data=data))


def test_data_that_are_truncated_or_of_another_task_are_refused_by_their_file(data, tmp_path):
    """What was cut off reads well up to its end."""
    assert require_tasks(Asked(("arc_easy", "boolq", "lambada_openai"), data=data)) == []
    whole = gzip.compress((data / "arc_easy.jsonl").read_bytes())
    torn = tmp_path / "torn" / "arc_easy.jsonl.gz"
    torn.parent.mkdir()
    torn.write_bytes(whole)
    require_tasks(Asked(("arc_easy",), data=torn.parent))
    torn.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RegrowError, match=rf"evaluate\.tasks\.data: {torn}, .* of arc_easy \(.*\); write it anew"):
        require_tasks(Asked(("arc_easy",), data=torn.parent))
    other = tmp_path / "other" / "arc_easy.jsonl"
    other.parent.mkdir()
    other.write_bytes((data / "boolq.jsonl").read_bytes())
    with pytest.raises(RegrowError, match=rf"{other}, .* of arc_easy \(UndefinedError: 'choices'"):
        require_tasks(Asked(("arc_easy",), data=other.parent))


def test_data_without_their_answers_are_refused(tmp_path):
    """Which are not asked for before the model has written."""
    (tmp_path / "gsm8k_cot.jsonl").write_text('{"question": "1 + 1?"}\n')
    with pytest.raises(RegrowError, match=r"gsm8k_cot\.jsonl, .* \(UndefinedError: "):
        require_tasks(Asked(("gsm8k_cot",), data=tmp_path))


@pytest.mark.parametrize(
    ("task", "why"), [("squadv2", "defines it by a class of Python"), ("niah_single_1", "makes its items by code")]
)
def test_a_task_whose_data_come_from_code_takes_no_folder_of_them(data, task, why):
    with pytest.raises(RegrowError, match=rf"{task} takes no data from a folder, because lm-eval {why}"):
        require_tasks(Asked(("arc_easy", task), data=data))


def test_shots_that_do_not_count_are_said():
    (line,) = require_tasks(Asked(("sums",), shots=2))
    assert line == "evaluate.tasks.shots: not for sums, whose items show 4 each, always"


def test_without_lm_eval_tasks_are_refused_before_any_work_and_nothing_else_is(tiny_config, tmp_path):
    """In a Python that finds no lm-eval: its finder is told to."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'lm_eval' else find(name, *rest)\n"
    )
    command = [sys.executable, "-m", "pipeline", "run", str(tiny_config), "evaluate.tasks.names=[sums]"]
    environment = {"PYTHONPATH": f"{hidden}:{ROOT}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "lm-eval is not installed; pip install" in done.stderr, done.stderr
    assert not (tmp_path / "runs" / "tiny" / "score").exists(), "work was done first"
