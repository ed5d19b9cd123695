"""Complaints: every mistake in a file is told at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.kit import LEAST, refused, write

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
        (
            LEAST.replace("some/model", "true"),
            2,
            "model.path: a text is wanted here, and YAML reads this as true or false; quote a name of that kind",
        ),
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
