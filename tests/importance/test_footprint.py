"""What a sweep by block takes, by hand; test_block_major.py measures the states on disk against it."""

from __future__ import annotations

from dataclasses import replace

from pipeline.importance.footprint import SweepShape

#: A state of a sequence has 8 x 4 x 2 = 64 bytes.
SHAPE = SweepShape(blocks=5, sequences=6, length=8, width=4, value_bytes=2, micro_batch=2)


def test_states_at_their_peak():
    # Each of 6 sequences enters the last block with 5 states and keeps the 3 dense ones between; the micro-batch that
    # is written has its file of the block before too, with 3 of its 4 states not among the dense ones.
    assert SHAPE.states() == (6 * (5 + 3) + 2 * 3) * 64
    assert replace(SHAPE, distances=False).states() == (6 * 5 + 2 * 4) * 64
    assert replace(SHAPE, losses=False).states() == 6 * 4 * 64
    assert replace(SHAPE, blocks=2).states() == 6 * 2 * 64 and replace(SHAPE, blocks=1).states() == 0
    assert replace(SHAPE, micro_batch=100).states() == (6 * 8 + 6 * 3) * 64, "no more sequences than there are"


def test_room_on_the_device():
    asked = {"block_bytes": 1000, "outside_bytes": 500, "vocabulary": 10}
    # 2 sequences, each dense, without each of five blocks and without each of three windows; an MLP 16 wide.
    rows = 2 * (1 + 5 + 3)
    assert replace(SHAPE, windows=3).device(**asked) == {
        "block": 1000,
        "outside": 500,
        "chunk": 3 * rows * (64 + 8 * 16 * 2),
        "logits": 8 * 8 * 10 * (2 + 4 + 4),
    }
    dense = replace(SHAPE, losses=False).device(**asked, intermediate=6)
    assert (dense["chunk"], dense["logits"]) == (3 * 2 * (64 + 8 * 6 * 2), 0)
