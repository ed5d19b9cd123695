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
    CUTS,
    STAGES,
    Config,
    ConfigError,
    dump_config,
    fields,
    json_schema,
    key_page,
    key_table,
    load_config,
)

PROJECT = Path(__file__).parent.parent

LEAST = """\
run: {name: try}
model: {path: some/model}
data:
  sources:
    - path: first
      files: a/**
    - path: second
prune:
  remove: 6
train:
  tokens: 37e9
"""


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    """A config that states what is required and no more."""
    return write(tmp_path / "config.yaml", LEAST)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        load_config(path, overrides)
    return str(refusal.value)


# Numbers


@pytest.mark.parametrize(
    ("text", "number"), [("150e9", 150_000_000_000), ("150.0e+9", 150_000_000_000), ("37000000000", 37_000_000_000)]
)
def test_token_counts_are_whole_numbers(file: Path, text: str, number: int) -> None:
    tokens = load_config(file, [f"train.tokens={text}"]).train.tokens
    assert tokens == number and type(tokens) is int


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("train.tokens", "10B", "10e9"),
        ("train.tokens", "2.5 M", "2.5e6"),
        ("train.tokens", "300k", "300e3"),
        ("train.tokens", "1,000,000", "1000000"),
        ("train.tokens", "1 000 000", "1000000"),
        ("train.tokens", "10 billion", "10e9"),
        ("train.tokens", "1.5T", "1.5e12"),
        ("train.clip", "1,000", "1000"),
        ("evaluate.processes", "2k", "2e3"),
    ],
)
def test_a_number_with_a_word_in_it_is_answered_with_what_to_write(
    file: Path, key: str, text: str, wanted: str
) -> None:
    message = refused(file, f"{key}={text}")
    assert f"write {wanted}; got {text!r}" in message, message
    load_config(file, [f"{key}={wanted}"] if key != "evaluate.processes" else [])


@pytest.mark.parametrize("text", ["many", "10e9 tokens", "1,5", "10X", "1,00"])
def test_what_is_no_number_is_not_answered_with_one(file: Path, text: str) -> None:
    assert "write" not in refused(file, f"train.tokens={text}")


def test_a_quoted_number_is_a_number(file: Path) -> None:
    assert load_config(file, ["train.global_batch='512'"]).train.global_batch == 512


def test_folders_of_the_user_s_own_are_found(file: Path) -> None:
    config = load_config(file, ["run.folder=~/runs", "data.cache=~/shards"])
    assert (config.run.folder, config.data.cache) == (Path.home() / "runs", Path.home() / "shards")


@pytest.mark.parametrize("key", ["run.folder", "data.cache", "data.tokenised", "data.sources.0.path", "model.path"])
def test_a_home_that_is_nobody_s_is_refused(file: Path, key: str) -> None:
    assert f"{key}: ~nobody-of-that-name is nobody's home here; got" in refused(file, f"{key}=~nobody-of-that-name/x")


@pytest.mark.parametrize("key", ["model.path", "data.sources.0.path"])
def test_an_empty_path_is_refused(file: Path, key: str) -> None:
    """It would be the folder where the command was started."""
    assert f"{key}: it is empty; got ''" in refused(file, f"{key}=''")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_small_rates_are_numbers(file: Path, text: str) -> None:
    assert load_config(file, [f"train.learning_rate={text}"]).train.learning_rate == 0.0001


def test_numbers_in_the_file_are_read_alike(tmp_path: Path) -> None:
    text = LEAST.replace("tokens: 37e9", "tokens: 150e9\n  learning_rate: 1e-4\n  eps: 1e-8")
    train = load_config(write(tmp_path / "c.yaml", text)).train
    assert (train.tokens, train.learning_rate, train.eps) == (150_000_000_000, 0.0001, 0.00000001)


@pytest.mark.parametrize(
    "override",
    [
        "train.tokens=0",
        "train.tokens=1.5",
        "train.tokens=-3e9",
        "train.tokens=many",
        "train.tokens=true",
        "train.tokens=null",
        "train.micro_batch=0",
        "train.processes=0",
        "train.processes=some",
        "train.zero_stage=4",
        "train.zero_stage=true",
        "train.learning_rate=0",
        "train.learning_rate=.inf",
        "train.learning_rate=.nan",
        "train.learning_rate=true",
        "train.betas=[0.9]",
        "train.betas=[0.9, 1.0]",
        "train.betas.0=-0.1",
        "train.warmup=1",
        "train.schedule=linear",
        "train.no_decay=[biases]",
        "prune.ratio=1",
        "prune.ratio=0",
        "prune.blocks=[-1]",
        "prune.blocks=[1.5]",
        "prune.blocks=7",
        "prune.protect_first=-1",
        "data.row_length=4",
        "data.sources=[]",
        "data.sources.0=first",
        "data.cache=3",
        "score.criteria=[]",
        "model.dtype=float8",
        "run.name=..",
        "run.name=a/b",
    ],
)
def test_a_value_out_of_range_is_refused_by_key_and_override(file: Path, override: str) -> None:
    dotted, _, value = override.partition("=")
    message = refused(file, override)
    assert f"override {override!r}: {dotted}" in message, message
    assert len(message.splitlines()) == 1, f"one mistake, one line:\n{message}"
    assert value == "[]" or any(part in message for part in ("got", "required")), message


def test_rates_that_cross_are_refused(file: Path) -> None:
    assert "final_learning_rate 0.01 is above learning_rate 0.0001" in refused(file, "train.final_learning_rate=1e-2")


# Mistakes are named with their place


@pytest.mark.parametrize(
    ("wrong", "line", "message"),
    [
        (LEAST.replace("tokens: 37e9", "tokens: 37e9\n  micro_bach: 2"), 12, "did you mean 'train.micro_batch'?"),
        (LEAST.replace("files: a/**", "flies: a/**"), 6, "did you mean 'data.sources.0.files'?"),
        (LEAST.replace("prune:", "pruning:"), 8, "did you mean 'prune'?"),
        (LEAST + "micro_batch: 2\n", 12, "did you mean 'score.micro_batch' or 'train.micro_batch' or"),
        (LEAST + "zzz: 2\n", 12, "known here: run, model, data"),
        (LEAST.replace("tokens: 37e9", "tokens: -1"), 11, "train.tokens: input should be greater than 0; got -1"),
        (LEAST.replace("some/model", "7"), 2, "model.path: YAML reads this as a number; put it in quotes; got 7"),
        (LEAST.replace("path: second", "files: b"), 7, "data.sources.1.path: required"),
        (LEAST.replace("path: some/model", "revision: main"), 2, "model.path: required"),
        (LEAST.replace("  tokens: 37e9\n", ""), 10, "train: a section of keys is wanted; got None"),
        (LEAST.replace("remove: 6", "remove: 6\n  ratio: 0.2"), 8, "set here: remove and ratio"),
        (LEAST.replace("remove: 6", "blocks: [3, 4, 3]"), 8, "block 3 twice"),
        (LEAST.replace("remove: 6", "remove: 6\n  remove: 7"), 10, "duplicate key"),
        (LEAST.replace("name: try", "name: [try"), 1, "not valid YAML"),
        (LEAST + "  - \t\n", 12, "not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path, wrong: str, line: int, message: str) -> None:
    path = write(tmp_path / "wrong.yaml", wrong)
    found = refused(path)
    assert message in found, found
    assert any(part.startswith(f"{path}:{line}: ") for part in found.splitlines()), f"not at line {line}:\n{found}"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = LEAST.replace("remove: 6", "remove: -6").replace("tokens: 37e9", "tokens: 0\n  seeed: 3")
    found = refused(write(tmp_path / "wrong.yaml", text)).splitlines()
    assert len(found) == 3, found


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "wrong.yaml", "\n".join(LEAST.splitlines()[:-2]))
    assert refused(path) == f"{path}: train: required, and not set"


@pytest.mark.parametrize(("content", "message"), [("", "a config is a mapping"), ("- a\n", "a config is a mapping")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "list.yaml", content)
    assert message in refused(path) and str(path) in refused(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\xff\xfe\x00binary")
    assert str(path) in refused(path)
    path.write_bytes(b"run: \x07")
    assert "not valid YAML" in refused(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "absent.yaml: cannot be read (No such file or directory)" in refused(tmp_path / "absent.yaml")


def test_keys_from_a_yaml_merge_have_a_place_too(tmp_path: Path) -> None:
    text = LEAST.replace(
        "    - path: first\n      files: a/**\n    - path: second", "    - &a {path: x, fils: y}\n    - <<: *a"
    )
    assert "unknown key 'data.sources.1.fils'" in refused(write(tmp_path / "merge.yaml", text))


# Overrides


@pytest.mark.parametrize("override", ["train.tokens", "=3", "train..tokens=3", ".train=3", "train.=3"])
def test_an_override_of_another_form_is_refused_with_an_example(file: Path, override: str) -> None:
    assert refused(file, override) == (
        f"override {override!r}: write it as section.key=value, for example prune.remove=9"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.tokns=3", "unknown key 'train.tokns'; did you mean 'train.tokens'?"),
        ("trian.tokens=3", "unknown key 'trian'; did you mean 'train'?"),
        ("tokens=3", "unknown key 'tokens'; did you mean 'train.tokens'?"),
        ("data.sources.1.pth=x", "unknown key 'data.sources.1.pth'; did you mean 'data.sources.1.path'?"),
        ("evaluate.perplexity.rowz=3", "unknown key 'evaluate.perplexity.rowz'; did you mean"),
        ("run.name=[", "the value is not YAML"),
        ("data.sources.2.path=x", "sources is a list of 2; name an item 0 to 1"),
        ("data.sources.one.path=x", "sources is a list of 2"),
        ("data.sources=[{files: x}]", "data.sources.0.path: required"),
        ("train={micro_batch: 0}", "train.micro_batch: input should be"),
    ],
)
def test_a_wrong_override_is_named(file: Path, override: str, message: str) -> None:
    found = refused(file, override)
    assert found.startswith(f"override {override!r}: {message}"), found


def test_an_override_reaches_into_lists_and_leaves_the_rest(file: Path) -> None:
    overrides = ["data.sources.1.files=b/**", "train.betas.1=0.99", "data.sources.0.exclude_domains=[]"]
    config = load_config(file, overrides)
    assert [(s.path, s.files) for s in config.data.sources] == [("first", "a/**"), ("second", "b/**")]
    assert config.data.sources[0].exclude_domains == ()
    assert load_config(file, ["train.betas=[0.8, 0.9]", "train.betas.1=0.99"]).train.betas == (0.8, 0.99)


def test_later_overrides_win_and_a_value_may_hold_an_equals_sign(file: Path) -> None:
    config = load_config(file, ["run.name=a", "run.name=b", "report.title=a=b"])
    assert (config.run.name, config.report.title) == ("b", "a=b")


def test_a_mapping_merges_and_a_list_replaces(file: Path) -> None:
    config = load_config(file, ["train={micro_batch: 4}", "data.sources=[{path: third}]"])
    assert (config.train.micro_batch, config.train.tokens) == (4, 37_000_000_000)
    assert [source.path for source in config.data.sources] == ["third"]


# Exactly one cut


@pytest.mark.parametrize("stated", [[], ["remove", "ratio"], ["remove", "blocks"], ["ratio", "parameters"]])
def test_none_or_two_cuts_in_one_file_are_refused(tmp_path: Path, stated: list[str]) -> None:
    values = {"remove": "6", "ratio": "0.2", "parameters": "5e9", "blocks": "[3]"}
    cuts = "".join(f"  {name}: {values[name]}\n" for name in stated)
    found = refused(write(tmp_path / "c.yaml", LEAST.replace("  remove: 6\n", "  criterion: ppl\n" + cuts)))
    assert "exactly one of remove, ratio, parameters, perplexity, blocks" in found, found
    assert found.endswith(" and ".join(stated) or "none"), found


@given(cuts=st.lists(st.sampled_from(CUTS), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_last_cut_stated_holds_alone(file: Path, cuts: list[str]) -> None:
    values = {"remove": "9", "ratio": "0.25", "parameters": "5e9", "blocks": "[3, 4]", "perplexity": "20"}
    prune = load_config(file, [f"prune.{name}={values[name]}" for name in cuts]).prune
    assert [name for name in CUTS if getattr(prune, name) is not None] == [cuts[-1]]


def test_a_cut_in_a_file_clears_that_of_its_base(file: Path) -> None:
    child = write(file.parent / "child.yaml", "extends: config.yaml\nprune: {ratio: 0.2}\n")
    prune = load_config(child).prune
    assert (prune.remove, prune.ratio) == (None, 0.2)


def test_an_order_file_goes_with_remove(file: Path) -> None:
    for overrides in (
        ["prune.blocks=block_order.csv"],
        ["prune.ratio=0.2", "prune.blocks=block_order.csv", "prune.remove=6"],
        ["prune.ratio=0.2", "prune.remove=6", "prune.blocks=block_order.csv"],
    ):
        prune = load_config(file, overrides).prune
        assert (prune.blocks, prune.remove, prune.ratio) == (Path("block_order.csv"), 6, None), overrides
    assert load_config(file, ["prune.blocks=o.csv", "prune.ratio=0.5"]).prune.blocks is None
    assert load_config(file, ["prune.blocks=o.csv", "prune.blocks=[3]"]).prune.remove is None
    alone = refused(file, "prune.ratio=0.2", "prune.blocks=block_order.csv")
    assert "goes with remove" in alone, alone


# Files that extend files


def test_extends_goes_as_deep_as_one_likes_and_deeper_keys_win(file: Path) -> None:
    folder = file.parent
    write(folder / "a" / "one.yaml", "extends: ../config.yaml\ntrain: {micro_batch: 4, seed: 1}\n")
    write(folder / "a" / "b" / "two.yaml", "extends: ../one.yaml\ntrain: {seed: 2}\n")
    three = write(folder / "three.yaml", "extends: a/b/two.yaml\nrun: {name: three}\n")
    config = load_config(three, ["train.eps=1e-6"])
    assert (config.run.name, config.train.seed, config.train.micro_batch) == ("three", 2, 4)
    assert (config.train.tokens, config.train.eps) == (37_000_000_000, 1e-6)


def test_a_mistake_is_placed_in_the_file_that_makes_it(file: Path) -> None:
    child = write(file.parent / "child.yaml", "extends: config.yaml\n\ndata:\n  sources:\n    - files: x\n")
    assert refused(child).startswith(f"{child}:5: data.sources.0.path: required"), refused(child)
    write(file, LEAST.replace("remove: 6", "remove: -6"))
    other = write(file.parent / "other.yaml", "extends: config.yaml\nrun: {name: other}\n")
    assert refused(other).startswith(f"{file}:9: prune.remove"), refused(other)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_files_is_refused(tmp_path: Path, length: int) -> None:
    for number in range(length):
        write(tmp_path / f"{number}.yaml", f"extends: {(number + 1) % length}.yaml\n")
    found = refused(tmp_path / "0.yaml")
    assert "goes in a circle" in found and f"{length - 1}.yaml:1: extends" in found, found


def test_a_base_that_is_missing_is_named_with_the_line_that_wants_it(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "run: {name: x}\nextends: bases/absent.yaml\n")
    assert refused(path) == f"{path}:2: extends: {tmp_path}/bases/absent.yaml is not a file"
    assert "one config file is wanted" in refused(write(path, "extends: [a.yaml, b.yaml]\n"))


def test_architecture_is_beside_the_file_that_states_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent
    write(folder / "deep" / "base.yaml", LEAST.replace("path: some/model", "path: some/model, architecture: arch"))
    child = write(folder / "child.yaml", "extends: deep/base.yaml\n")
    assert load_config(child).model.architecture == folder / "deep" / "arch"
    monkeypatch.chdir(folder)
    assert load_config("child.yaml").model.architecture == folder / "deep" / "arch"
    assert load_config(child, ["model.architecture=here"]).model.architecture == folder / "here"


def test_another_model_does_not_keep_the_architecture(file: Path) -> None:
    stated = write(file.parent / "a.yaml", LEAST.replace("path: some/model", "path: some/model, architecture: arch"))
    assert load_config(stated, ["model.path=other/model"]).model.architecture is None
    assert load_config(stated, ["model.path=some/model"]).model.architecture == file.parent / "arch"
    assert load_config(stated, ["model.revision=main"]).model.architecture == file.parent / "arch"


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
    yaml.allow_unicode = False
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
    page = (PROJECT / "docs" / "config.md").read_text(encoding="utf-8")
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
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
