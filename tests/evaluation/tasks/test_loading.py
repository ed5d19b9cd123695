"""Tasks as they are loaded: quietly, and without a trace in what others set."""

from __future__ import annotations

import os

import datasets
import pytest
from lm_eval.api import task

from pipeline.errors import RegrowError
from pipeline.evaluation.tasks.definitions import Asked, write_definitions
from pipeline.evaluation.tasks.loading import NO_POOL, fetch_data, load_tasks, quiet
from tests.evaluation.tasks.conftest import ITEMS


def test_those_that_are_named_are_loaded_with_their_data(data, tmp_path, capfd):
    write_definitions(Asked(("arc_easy", "boolq", "sums"), data=data), tmp_path)
    with quiet():
        found = load_tasks(tmp_path, ("arc_easy", "sums"))["tasks"]
    assert {name: len(one.eval_docs) for name, one in found.items()} == {"arc_easy": ITEMS, "sums": 200}
    fetch_data(tmp_path, ("boolq",))
    assert capfd.readouterr().err == "", "bars were drawn"


def test_what_cannot_be_loaded_is_named_with_the_way_out(tmp_path):
    (tmp_path / "own.yaml").write_text("task: own\ndataset_path: nobody/nothing\ntest_split: test\ndoc_to_text: a\n")
    with pytest.raises(RegrowError, match=r"data of own cannot be had \(\w+: .*nobody/nothing.* folder with own.jsonl"):
        fetch_data(tmp_path, ("own",))


@pytest.mark.parametrize("before", [None, "0"])
def test_what_is_switched_off_is_switched_on_again(monkeypatch, before):
    monkeypatch.delenv(NO_POOL, raising=False)
    if before is not None:
        monkeypatch.setenv(NO_POOL, before)
    bar, bars = task.tqdm, datasets.are_progress_bars_disabled()
    with pytest.raises(ZeroDivisionError), quiet():
        assert task.tqdm is not bar and os.environ[NO_POOL] == "1" and datasets.are_progress_bars_disabled()
        raise ZeroDivisionError
    assert task.tqdm is bar and datasets.are_progress_bars_disabled() == bars
