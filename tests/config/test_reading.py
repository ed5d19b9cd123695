"""Reading: overrides, and files that extend others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import (
    load_config,
)
from tests.config.kit import LEAST, refused, write

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
        ("evaluate.perplexity.held_out.rowz=3", "unknown key 'evaluate.perplexity.held_out.rowz'; did you mean"),
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
