"""The config tree: numbers, layers, overrides, and what a person reads when something is wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.config import (
    STAGES,
    Config,
    dump_config,
    fields,
    json_schema,
    key_page,
    key_table,
    load_config,
)
from tests import ROOT
from tests.config.kit import write

# Writing the tree down

#: Any text, and text that YAML would take for something else.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=120) | st.sampled_from(
    ["1e5", "0o7", "0x1F", "null", "true", "yes", "12", "1_000", "2026-11-22", "~", "- a", "a: b", "# no", "", " x "]
)
plain_sections = st.fixed_dictionaries(
    {},
    optional={
        "report": st.fixed_dictionaries({}, optional={"title": st.none() | texts, "data_note": texts}),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(1e-5, 10),
                "eps": st.floats(min_value=1e-300, max_value=1, exclude_min=True),
                "tokens": st.integers(1, 10**15),
                "betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
                "deterministic": st.sampled_from(["auto", True, False]),
                "processes": st.just("auto") | st.integers(1, 4096),
                "no_decay": st.lists(st.sampled_from(["bias", "norm", "embedding"])),
            },
        ),
        "evaluate": st.fixed_dictionaries(
            {"generation": st.fixed_dictionaries({"prompts": st.lists(texts, min_size=1, max_size=3)})}
        ),
    },
)


def _valid(changes: dict[str, Any]) -> dict[str, Any]:
    least: dict[str, Any] = {
        "run": {"name": "try"},
        "model": {"path": "m"},
        "data": {"sources": [{"path": "p"}]},
        "prune": {"remove": 1},
        "train": {"tokens": 1},
    }
    return {**least, **{name: {**least.get(name, {}), **section} for name, section in changes.items()}}


@given(changes=plain_sections)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_resolved_config_reads_back_equal(file: Path, changes: dict[str, Any]) -> None:
    config = Config.model_validate(_valid(changes))
    assert load_config(write(file.parent / "back.yaml", dump_config(config))) == config


def test_long_text_that_must_be_escaped_reads_back_equal(file: Path) -> None:
    """Folded, it was read as something else."""
    prompt = '0"\\" \x850Ā \x85b\x85b"\\""b\x1fĀ\x1f\x1fa\x85\\cc\\Ābc\x85\x1fĀb\x85 \x1fĀ\\'
    config = Config.model_validate(_valid({"evaluate": {"generation": {"prompts": [prompt, "ĀĀĀ0 0" * 30]}}}))
    assert load_config(write(file.parent / "back.yaml", dump_config(config))) == config


@given(low=plain_sections, high=plain_sections)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_layers_merge_key_by_key(file: Path, low: dict[str, Any], high: dict[str, Any]) -> None:
    """A file over its base equals the tree in which each section's keys are joined."""
    base, top = Config.model_validate(_valid(low)), Config.model_validate(_valid(high))
    write(file.parent / "low.yaml", dump_config(base))
    partial = {name: {key: getattr(getattr(top, name), key) for key in part} for name, part in high.items()}
    document = json.loads(json.dumps(partial, default=lambda section: section.model_dump(mode="json")))
    written = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_unicode, yaml.width = False, 1 << 30  # ruamel folds escaped text wrongly
    yaml.dump({"extends": "low.yaml", **document}, written)
    child = write(file.parent / "high.yaml", written.getvalue())
    joined = {name: {**low.get(name, {}), **high.get(name, {})} for name in low.keys() | high.keys()}
    assert load_config(child) == Config.model_validate(_valid(joined))


def test_the_tree_is_frozen(file: Path) -> None:
    config = load_config(file)
    with pytest.raises(ValueError, match="frozen"):
        config.train.tokens = 3


# What is said about the tree


def test_every_key_has_a_sentence_known_stages_and_a_source() -> None:
    for dotted, field in fields(Config):
        assert field.description and field.description.endswith("."), f"{dotted}: its description is no sentence"
        extra = field.json_schema_extra
        assert set(extra["stages"]) <= set(STAGES), f"{dotted} names an unknown stage: {extra['stages']}"
        assert extra["source"], f"{dotted}: where does its default come from?"


def test_a_stage_reads_what_is_marked_for_it_and_not_free(file: Path) -> None:
    read = load_config(file).read_by("train")
    assert read["train.tokens"] == 37_000_000_000 and read["data.row_length"] == 2048
    assert not {"train.micro_batch", "train.processes", "prune.remove", "run.name"} & read.keys()
    before, after = (load_config(file, [o]).read_by("train") for o in ("train.micro_batch=1", "train.micro_batch=2"))
    assert before == after, "a free key moved the fingerprint"
    assert json.loads(json.dumps(read)) == read


def test_the_page_of_keys_is_up_to_date() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == key_page(), "docs/config.md lags behind pipeline/config.py; its last line says how to write it anew"


def test_the_table_names_every_key_once() -> None:
    named = [line.split("`")[1] for line in key_table().splitlines()[2:]]
    assert len(set(named)) == len(named)
    assert {dotted for dotted, _ in fields(Config)} <= set(named)
    assert {"source: path", "source: text_key"} <= set(named), "the keys of a data source are missing"


def test_the_schema_is_json_and_lets_a_file_extend_another() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == {*Config.model_fields, "extends"}
    assert schema["additionalProperties"] is False
    assert "required" not in schema and "required" not in schema["$defs"]["TrainSection"]
    assert schema["$defs"]["Source"]["required"] == ["path"]
    assert schema["$defs"]["TrainSection"]["properties"]["tokens"]["description"]


def test_reading_a_config_imports_no_torch(file: Path) -> None:
    program = (
        "import sys\n"
        "from pipeline.config import load_config\n"
        "load_config(sys.argv[1])\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
