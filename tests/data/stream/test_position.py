"""Position: small, exact through JSON, and of no use in another stream."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.stream.position import (
    Cursor,
    Identity,
    LaneCursor,
    check_identity,
    from_json,
    skipped_parts,
    to_json,
)
from pipeline.errors import RegrowError
from pipeline.files import write_json

IDENTITY = Identity(
    lanes=384,
    row_length=2048,
    seed=0,
    weights=(0.7, 0.3),
    manifest="6f1e",
    tokenizer="9ab0",
    bos=1,
    separator=2,
    special_tokens="plain",
)

numbers = st.integers(0, 10**12)
cursors = st.builds(Cursor, numbers, numbers, numbers, numbers)
lanes = st.builds(
    LaneCursor,
    st.lists(cursors, min_size=1, max_size=4).map(tuple),
    st.lists(st.tuples(numbers, numbers, numbers), max_size=3).map(tuple),
)


@given(st.dictionaries(st.integers(0, 500), lanes))
def test_a_position_comes_back_from_json(position):
    assert from_json(json.loads(json.dumps(to_json(position)))) == position


def test_a_position_of_384_lanes_and_3_sources_is_small(tmp_path):
    """Late in a long run: tenth epoch, parts of a lane of SlimPajama, documents and tokens of six digits."""
    draw = random.Random(0)
    position = {
        lane: LaneCursor(
            tuple(
                Cursor(10, draw.randrange(100, 155), draw.randrange(10**5, 10**6), draw.randrange(10**5, 10**6))
                for _ in range(3)
            )
        )
        for lane in range(384)
    }
    write_json(tmp_path / "state.json", {"cursors": to_json(position)})
    size = (tmp_path / "state.json").stat().st_size
    assert size < 64 * 1024, f"the position takes {size} bytes in a checkpoint"
    assert from_json(json.loads((tmp_path / "state.json").read_text())["cursors"]) == position


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.x", "1.2.3.-4", "0.0.0.0 | 1.2", 7, None, "0.0.0.0.0"])
def test_a_damaged_position_is_refused(text):
    with pytest.raises(RegrowError, match="lane 5 has"):
        from_json({"4": "0.0.0.0", "5": text})


OTHERS = {
    "lanes": 96,
    "row_length": 1024,
    "seed": 7,
    "weights": (0.5, 0.5),
    "manifest": "77aa",
    "tokenizer": "cc01",
    "bos": None,
    "separator": 0,
    "special_tokens": "parse",
    "order": 2,
}


@pytest.mark.parametrize("field", OTHERS)
def test_another_stream_is_refused_with_both_values(field):
    saved = json.loads(json.dumps(asdict(IDENTITY)))
    check_identity(saved, IDENTITY)
    now = replace(IDENTITY, **{field: OTHERS[field]})
    with pytest.raises(RegrowError) as refused:
        check_identity(saved, now)
    words = {"weights": ("0.7, 0.3", "0.5, 0.5")}.get(field, (str(getattr(IDENTITY, field)), str(OTHERS[field])))
    assert f"was {words[0]}, is {words[1]}" in str(refused.value), "it does not name both values"
    assert str(refused.value).count(" was ") == 1, "it names fields that do not differ"
    assert field == "order" or any(word in str(refused.value).lower() for word in (field, "corpus"))
    assert "Put them back, or start a new run" in str(refused.value)


def test_a_position_of_an_earlier_release_says_that_it_is_one():
    saved = asdict(IDENTITY)
    del saved["special_tokens"]
    told = (
        r"data\.special_tokens was not stated, is plain\. An earlier release wrote this position, which says nothing "
        r"of data\.special_tokens: go on with that release, or start a new run"
    )
    with pytest.raises(RegrowError, match=told):
        check_identity(saved, IDENTITY)


def test_every_difference_is_named_and_so_is_what_is_not_stated():
    assert set(OTHERS) == set(asdict(IDENTITY)), "a field of the identity is not tested"
    saved = {**asdict(IDENTITY), "lanes": 96, "seed": 3, "flavour": "sweet"}
    del saved["tokenizer"]
    told = (
        r"data\.lanes was 96, is 384; data\.seed was 3, is 0; the tokenizer \(its hash\) was not stated, is 9ab0; "
        r"flavour was sweet, is not stated\. An earlier release wrote this position, which says nothing of the token"
    )
    with pytest.raises(RegrowError, match=told):
        check_identity(saved, IDENTITY)


def test_what_was_left_out_can_be_said():
    position = {3: LaneCursor((Cursor(), Cursor()), ((1, 0, 40),)), 0: LaneCursor((Cursor(), Cursor()))}
    lines = skipped_parts(position, [["x/a"], ["y/b", "y/c"]])
    assert lines == ["lane 3: left out shard y/b from document 40 on, which is damaged"]
