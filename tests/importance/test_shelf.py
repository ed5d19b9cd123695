"""The shelf of states: it gives back what it took, whole at every instant, of one sweep, no larger than need be."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.importance.shelf import Shelf

ROWS, LENGTH, BLOCKS, WIDTH = [2, 1], 3, 4, 5
WHAT = {"sequences": "abc", "micro-batch": 2}


def shelf_in(folder, keep_dense=True, what=WHAT) -> Shelf:
    return Shelf(folder, what, ROWS, LENGTH, BLOCKS, variants=True, keep_dense=keep_dense)


def entering(index: int, number: int = 0) -> torch.Tensor:
    """What enters a block: the dense state and those of the variants behind it."""
    shape = ((1 + index) * ROWS[number], LENGTH, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(10 * index + number)).bfloat16()


def filled(shelf, blocks: int):
    """The shelf when both micro-batches have reached that block."""
    for number in range(2):
        shelf.note_form(0, entering(1, number))
        for index in range(1, blocks + 1):
            shelf.put(number, index, entering(index, number))
    return shelf


@pytest.mark.parametrize("keep_dense", [True, False])
def test_it_gives_back_what_it_took(tmp_path, keep_dense):
    shelf = shelf_in(tmp_path, keep_dense)
    assert shelf.returns is None and shelf.entering(0) == 0 and shelf.states(0, 0) is None
    filled(shelf, 3)
    assert shelf.returns == 0 and [shelf.entering(number) for number in range(2)] == [3, 3]
    for number in range(2):
        assert shelf.states(number, 3).equal(entering(3, number)), "other states"
        if keep_dense:
            for index in (1, 2, 3):
                dense = shelf.dense(number, index)
                assert dense.equal(entering(index, number)[: ROWS[number]]), f"dense state in front of {index}"
            held = shelf.dense(number, 1).untyped_storage().nbytes()
            assert held == 2 * WIDTH * LENGTH * ROWS[number], "behind its block more than the dense state is held"
    shelf.finish(0, {"losses": [0.1 + 0.2]})
    assert shelf.entering(0) == BLOCKS and shelf.entering(1) == 3
    assert shelf.result(0) == {"losses": [0.1 + 0.2]}


def test_what_is_behind_is_let_go(tmp_path):
    """With the distances its dense state stays, without them nothing does; a finished micro-batch has no states."""
    value = 2 * WIDTH * LENGTH
    for keep_dense, kept in ((True, [value * 3] * 2), (False, [])):
        folder = tmp_path / str(keep_dense)
        shelf = filled(shelf_in(folder, keep_dense), 3)
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.states")}
        assert [sum(sizes.get(f"{n:06d}-{i:04d}.states", 0) for n in range(2)) for i in (1, 2)] == (kept or [0, 0])
        assert sizes["000000-0003.states"] == 4 * 2 * value and sum(sizes.values()) < shelf.bytes()
        shelf.finish(0, {})
        assert not list(folder.glob("000000-*.states")) and list(folder.glob("000001-*.states"))


def cut_in_the_writing(folder):
    (folder / ".000000-0003.states.77.new").write_bytes(b"half")


def cut_before_the_old_file_went(folder):
    """The new file has its name; the one before is still whole."""
    raw = entering(2).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    (folder / "000000-0002.states").write_bytes(raw)


@pytest.mark.parametrize("kill", [cut_in_the_writing, cut_before_the_old_file_went])
@pytest.mark.parametrize("keep_dense", [True, False])
def test_after_a_kill_the_newest_whole_state_is_there_and_nothing_else(tmp_path, kill, keep_dense):
    filled(shelf_in(tmp_path, keep_dense), 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kill(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} != before, "the kill left nothing to settle"
    shelf = shelf_in(tmp_path, keep_dense)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "what a kill left was not settled"
    assert shelf.returns == 0 and shelf.entering(0) == 3 and shelf.states(0, 3).equal(entering(3))


def test_killed_between_the_results_and_the_end_of_the_states_the_results_stand(tmp_path):
    shelf = filled(shelf_in(tmp_path), 2)
    states = {path: path.read_bytes() for path in tmp_path.glob("000000-*.states")}
    shelf.finish(0, {"losses": [1.5]})
    for path, content in states.items():
        path.write_bytes(content)
    again = shelf_in(tmp_path)
    assert again.entering(0) == BLOCKS and again.result(0) == {"losses": [1.5]}
    assert not list(tmp_path.glob("000000-*.states"))


def test_a_folder_of_another_sweep_is_refused_by_what_differs(tmp_path):
    filled(shelf_in(tmp_path), 1)
    with pytest.raises(
        RegrowError, match=r"holds another sweep \(dtype, sequences differ\); delete it or name another"
    ):
        shelf_in(tmp_path, what={"sequences": "other", "micro-batch": 2, "dtype": "float32"})


def test_a_file_that_is_too_short_or_gone_is_named(tmp_path):
    shelf = filled(shelf_in(tmp_path), 2)
    path = tmp_path / "000000-0002.states"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RegrowError, match=rf"{path}: 179 bytes where 180 are wanted; delete {tmp_path}"):
        shelf.states(0, 2)
    path.unlink()
    with pytest.raises(RegrowError, match=rf"{path}: cannot be read \(No such file"):
        shelf.states(0, 2)


def test_a_block_that_returns_another_kind_of_state_is_refused(tmp_path):
    shelf = filled(shelf_in(tmp_path), 1)
    for odd in (entering(2).float(), entering(2)[:, :, :-1], entering(1)):
        with pytest.raises(
            RegrowError, match=r"block 1 returned .* it cannot be streamed: take score\.loop=batch-major"
        ):
            shelf.put(0, 2, odd)
    assert shelf.entering(0) == 1 and shelf.states(0, 1).equal(entering(1)), "the refused state took a place"
