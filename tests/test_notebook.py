"""docs/notebook.ipynb: its cells run on a tiny model; what is stored in it is what they say of the real one."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from types import ModuleType
from typing import Any

import pytest
from matplotlib import pyplot

from tests import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """docs/notebook.py."""
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pyplot.switch_backend("agg")
    return module


def said(outputs: list[dict[str, Any]]) -> str:
    """What a cell printed and gave back, without its pictures."""
    return "".join(
        "".join(output.get("text", output.get("data", {}).get("text/plain", []))) for output in outputs
    ).replace("<Figure>", "")


def pictures(outputs: list[dict[str, Any]]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_its_cells_run_on_a_tiny_model(runner, tiny_model, demo):
    parameters = {"MODEL": tiny_model, "TEXTS": demo / "text", "SEQUENCES": 3, "LENGTH": 24, "REMOVE": 2}
    found = list(runner.outputs_of(CELLS, parameters))
    assert said(found[1]).startswith("8 blocks, ") and "torch.bfloat16" in said(found[1])
    assert [pictures(outputs) for outputs in found] == [pictures(cell["outputs"]) for cell in CODE]
    whole = "".join(map(said, found))
    assert "got a text; batches = [tokenizer(text" in whole and "6 blocks, " in whole
    # The saved model is the one whose blocks were skipped.
    skipped, loaded = (re.search(words, whole)[1] for words in (r"by ppl +([\d.]+)", r"perplexity ([\d.]+)"))
    assert float(loaded) == pytest.approx(float(skipped), rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_is_stored_is_what_its_cells_say(runner, demo, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    for cell, outputs in zip(CODE, runner.outputs_of(CELLS, {}), strict=True):
        stored, now = said(cell["outputs"]), said(outputs)
        assert NUMBER.sub("#", stored) == NUMBER.sub("#", now)
        numbers = [[float(one.replace(",", "")) for one in NUMBER.findall(text)] for text in (stored, now)]
        assert numbers[1] == pytest.approx(numbers[0], rel=0.02), stored
        assert pictures(outputs) == pictures(cell["outputs"])


def test_it_is_a_notebook_of_small_pictures_and_of_no_machine():
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (whole["nbformat"], set(whole["metadata"])) == (4, {"kernelspec", "language_info"})
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1)), "python docs/notebook.py"
    for cell in CODE:
        assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        assert not any(output["output_type"] == "error" for output in cell["outputs"])
        assert not re.search(r"(?<![\w.])/\w+/", said(cell["outputs"])), "a path of a machine"
    drawn = [data for cell in CODE for output in cell["outputs"] if (data := output.get("data", {}).get("image/png"))]
    assert len(drawn) == 3 and all(base64.b64decode(data).startswith(b"\x89PNG") for data in drawn)
    assert NOTEBOOK.stat().st_size < 300_000


def test_its_links_lead_somewhere():
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 2 and not [link for link in links if not (NOTEBOOK.parent / link).exists()]
