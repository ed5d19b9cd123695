"""What a notebook imports: every name is there, its examples run, and type checkers see what it is."""

from __future__ import annotations

import copy
import doctest
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline
from tests import ROOT

#: A notebook, with the types that a reader would expect; the last line is wrong.
NOTEBOOK = """
import torch
from pipeline import Cut, choose_blocks, fit_maps, load_model, perplexity, remove_blocks, replace_blocks, score_blocks
from pipeline.world import ALONE
from transformers import BatchEncoding

model = load_model("owner/name", dtype="float32")
ids = torch.zeros(1, 8, dtype=torch.long)
scores = score_blocks(model, ids, "ppl", world=ALONE, progress=False)
chosen: list[int] = choose_blocks(scores["ppl"]["order"], Cut(remove=9))
maps = fit_maps(model, (ids for _ in range(9)), chosen)
value: float = perplexity(model, [{"input_ids": ids}])["value"] + perplexity(model, BatchEncoding())["value"]
replace_blocks(model, chosen, maps)
remove_blocks(model, chosen).save_pretrained("smaller")
Cut(remove="nine")
"""


def test_every_name_is_there_and_its_file_is_checked_by_mypy():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    for name in pipeline.__all__:
        module = getattr(pipeline, name).__module__.replace(".", "/")
        inside = any(f"{module}.py".startswith(path) or module == path for path in checked)
        assert inside or name == "load_config", f"{name} stands in {module}.py, which mypy does not check"


@pytest.fixture(scope="module")
def given(tiny_model: Path) -> dict[str, Any]:
    """What the examples find: the public names, a model, ids, and scores."""
    names = {name: getattr(pipeline, name) for name in pipeline.__all__}
    ids = torch.randint(0, 1000, (40, 16), generator=torch.Generator().manual_seed(0))
    model = pipeline.load_model(tiny_model)
    scores = pipeline.score_blocks(model, ids.split(20), ["ppl", "block_influence"])
    return {**names, "torch": torch, "model": model, "batches": ids.split(20), "scores": scores}


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_name_has_an_example_that_runs(name, given, tiny_model, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = getattr(pipeline, name).__doc__
    for placeholder, path in (("path/of/a/model", tiny_model), ("path/of/a/config.yaml", tiny_config)):
        text = text.replace(placeholder, str(path))
    names = {**given, "model": copy.deepcopy(given["model"])}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert name in "".join(one.source for one in example.examples), f"no example shows {name}"
    said: list[str] = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


def test_a_type_checker_sees_the_names_of_a_notebook(tmp_path):
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    # By the project's own settings, whose cache .ci/run has filled: by others each would throw the other's away.
    command = [sys.executable, "-m", "mypy", str(tmp_path / "notebook.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if "notebook.py" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert 'Argument "remove" to "Cut" has incompatible type "str"' in errors[0], errors
