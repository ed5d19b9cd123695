"""Checkpoints: a resume that is bitwise the uninterrupted run, and what becomes of damaged, torn and foreign ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pipeline.errors import RegrowError
from pipeline.files import hash_file, write_atomic, write_json
from pipeline.training.checkpoint import (
    Layout,
    checkpoint_bytes,
    clear_torn,
    complete_checkpoints,
    folder_of,
    missing_file,
    newest_checkpoint,
)
from tests.training.cases import each
from tests.training.layout import LAYOUT

COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")


@pytest.mark.parametrize(
    "case", each("{}", [*(f"resume-{stage}-bf16" for stage in range(4)), "resume-0-fp32", "resume_with_all-1-bf16"])
)
def test_two_steps_a_checkpoint_and_two_more_are_four_steps_bit_for_bit(measured, case):
    found = measured(2)[case]
    assert found["changed"] > 1e-4, "four steps did not change the weights, so that their equality shows nothing"
    assert found["equal"], f"{case}: weights after a resume are others"
    straight = [[step[name] for name in COLUMNS] for step in found["whole"]]
    rest = [[step[name] for name in COLUMNS] for step in found["rest"]]
    assert [row[0] for row in rest] == [3, 4]
    assert rest == straight[2:], f"{case}: losses, norms or rates after a resume are others"
    assert found["same_noise"] == [True, True], f"{case}: the random state is not that of the save"


@pytest.fixture
def root(measured, tmp_path: Path) -> Path:
    """A folder with two complete checkpoints of a real engine, steps 2 and 4."""
    source = Path(measured(2)["resume-1-bf16"]["root"])
    for step in (2, 4):
        shutil.copytree(source / "step-00000002", folder_of(tmp_path, step))
    return tmp_path


def test_a_checkpoint_lists_all_its_files_with_their_hashes(root):
    folder = folder_of(root, 2)
    listed = json.loads((folder / "COMPLETE").read_text())
    present = {path.name for path in folder.iterdir()} - {"COMPLETE"}
    assert listed["step"] == 2
    assert set(listed["files"]) == present, "COMPLETE does not list what is there"
    assert present == {"rank-00000.safetensors", "rank-00001.safetensors", "state.json"}
    for name, entry in listed["files"].items():
        path = folder / name
        assert entry == {"bytes": path.stat().st_size, "sha256": hash_file(path)}, f"{name} is listed wrongly"


def test_the_newest_complete_checkpoint_counts(root):
    torn = folder_of(root, 6)
    shutil.copytree(folder_of(root, 4), torn)
    (torn / "COMPLETE").unlink()
    assert complete_checkpoints(root) == [folder_of(root, 2), folder_of(root, 4)]
    folder, state = newest_checkpoint(root, LAYOUT)
    assert folder == folder_of(root, 4), "a checkpoint without COMPLETE was taken"
    assert state["step"] == 2, "state.json (a copy of step 2's) was not what was read"


def test_a_file_that_is_gone_or_cut_is_named_before_any_is_read(tmp_path):
    folder = folder_of(tmp_path, 4)
    for name in ("rank-00000.safetensors", "state.json"):
        write_atomic(folder / name, name)
    files = {path.name: {"bytes": path.stat().st_size} for path in folder.iterdir()}
    write_json(folder / "COMPLETE", {"step": 4, "files": files})
    assert missing_file(folder) is None
    write_atomic(folder / "state.json", "{}")
    assert missing_file(folder) == folder / "state.json"
    (folder / "rank-00000.safetensors").unlink()
    assert missing_file(folder) == folder / "rank-00000.safetensors"


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_checkpoint(tmp_path / "absent", LAYOUT) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named_with_the_checkpoint_to_fall_back_on(root, damage):
    file = folder_of(root, 4) / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(RegrowError) as caught:
        newest_checkpoint(root, LAYOUT)
    for part in ("step-00000004", file.name, "the one before it, step-00000002", f"move step-00000004 out of {root}"):
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"
    # The advice works.
    folder_of(root, 4).rename(root / "aside")
    assert newest_checkpoint(root, LAYOUT)[0] == folder_of(root, 2)


def test_the_only_checkpoint_damaged_falls_back_on_the_pruned_model(root):
    shutil.rmtree(folder_of(root, 2))
    (folder_of(root, 4) / "state.json").write_text("{}")
    with pytest.raises(RegrowError, match="the pruned model, step 0"):
        newest_checkpoint(root, LAYOUT)


@pytest.mark.parametrize("name", [field.name for field in fields(Layout) if field.name != "dtype"])
def test_another_layout_is_told_of_by_name(root, name):
    other = replace(LAYOUT, **{name: "other"})
    _, state = newest_checkpoint(root, other)
    said = other.change(state["layout"])
    assert f"({name} was {getattr(LAYOUT, name)}, is other): samples and their order stay" in said, said
    assert LAYOUT.change(state["layout"]) is None


def test_another_dtype_is_refused_by_name(root):
    with pytest.raises(RegrowError, match=r"dtype was bfloat16, is float32; .* --redo train"):
        newest_checkpoint(root, replace(LAYOUT, dtype="float32"))


def test_a_checkpoint_of_an_earlier_format_is_refused_with_the_way_out(root):
    file = folder_of(root, 4) / "state.json"
    state = json.loads(file.read_text())
    del state["format"]
    file.write_text(json.dumps(state))
    complete = file.with_name("COMPLETE")
    listed = json.loads(complete.read_text())
    listed["files"]["state.json"] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}
    complete.write_text(json.dumps(listed))
    with pytest.raises(RegrowError, match=r"DeepSpeed's files.*the version that began it, or begin again"):
        newest_checkpoint(root, LAYOUT)


def test_a_checkpoint_that_one_process_cannot_write_ends_all_and_leaves_the_earlier_one(start, tmp_path):
    done = start(2, tmp_path, "one_sided-1-bf16")
    assert done.returncode != 0, "a checkpoint that could not be written was taken for a good one"
    said = [line for line in done.stderr.splitlines() if "RegrowError" in line]
    assert any("step-00000002: could not be written (rank 0: the disk is full" in line for line in said), done.stderr
    assert [path.name for path in complete_checkpoints(tmp_path / "one-sided")] == ["step-00000001"]
    clear_torn(tmp_path / "one-sided")
    left = [path.name for path in (tmp_path / "one-sided").glob("step-*")]
    assert left == ["step-00000001"], f"the rest of the failed save was not cleared alone: {left}"


def test_the_predicted_size_is_the_real_one(root, measured):
    """12 bytes a parameter, as the check for free space has it."""
    files = json.loads((folder_of(root, 2) / "COMPLETE").read_text())["files"]
    parameters = 256 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 2 * 64) + 64
    predicted, real = checkpoint_bytes(parameters), sum(entry["bytes"] for entry in files.values())
    assert predicted <= real < 1.15 * predicted, f"a checkpoint has {real} bytes, {predicted} were predicted"
