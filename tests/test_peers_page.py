"""docs/peers.md: its Python is executed, its keys are loaded, and what it names of the library is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import pipeline
from pipeline.config import load_config

PAGE = (Path(__file__).parent.parent / "docs" / "peers.md").read_text(encoding="utf-8")
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
#: What stands in code in the right-hand columns of the tables.
OURS = [code for row in re.findall(r"^\| .* \| (.*) \|$", PAGE, flags=re.M) for code in re.findall(r"`([^`]+)`", row)]
KEYS = [code for code in OURS if re.match(r"(score|prune)\.[\w.]+=", code)]
CALLS = [code for code in OURS if re.match(r"\w+\(", code)]


def test_the_quick_start_runs_and_leaves_a_plain_smaller_model(
    tiny_model: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert len(PYTHON.splitlines()) <= 15, "the quick start is no longer quick"
    (tmp_path / "text.txt").write_text("\n".join(texts[:40]))
    monkeypatch.chdir(tmp_path)
    # 8 small blocks with 6 protected leave two; the model's context is 256 tokens.
    code = PYTHON.replace("path/of/a/model", str(tiny_model)).replace("Cut(remove=9)", "Cut(remove=2)")
    assert code.count(str(tiny_model)) == 2 and "Cut(remove=2)" in code
    names: dict[str, object] = {}
    exec(compile(code, "docs/peers.md", "exec"), names)
    assert [ids.shape for ids in names["sequences"]] == [(1, 128)] * 10
    for picture in ("distances.png", "bars.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG"), f"{picture} is no picture"
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller")
    assert smaller.config.num_hidden_layers == 6 and smaller.config.regrow["removed_blocks"] == [4, 5]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "smaller")) == 1000
    model = names["model"]
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__), "left behind"


def test_the_tables_were_found() -> None:
    """Else the tests below would check nothing."""
    assert len(KEYS) > 30 and len(CALLS) >= 6, (len(KEYS), CALLS)


@pytest.mark.parametrize("keys", sorted(set(KEYS)))
def test_keys_of_the_page_are_keys_of_the_config(keys: str, tiny_config: Path) -> None:
    stated = shlex.split(keys)
    # What names no cut goes with the tiny config's; a cut that is named replaces it.
    config = load_config(tiny_config, stated)
    for assignment in stated:
        section, name = assignment.partition("=")[0].split(".")
        assert getattr(getattr(config, section), name) is not None, f"{assignment} was not taken"


@pytest.mark.parametrize("call", sorted(set(CALLS)))
def test_names_of_the_page_are_names_of_the_library(call: str) -> None:
    assert callable(getattr(pipeline, call.partition("(")[0])), f"pipeline has no {call}"
