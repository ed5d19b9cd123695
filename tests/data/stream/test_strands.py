"""Strands: what a lane does with damage and with records without text, and what a resume costs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.stream.lanes import draw_source, weight_edges
from pipeline.data.stream.parts import deal, shuffle
from pipeline.data.stream.position import Cursor, LaneCursor
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from tests.data.corpora import (
    cursors_behind,
    differs,
    encode,
    flip,
    lane,
    shard,
    stream,
    take,
    together,
    write_shard,
)

# ---- damage


@pytest.fixture
def files(texts, tmp_path):
    """Six whole files for two lanes, and one more source of three."""
    return [
        shard(
            write_shard(
                tmp_path / f"corpus/{'ab'[n // 6]}_{n}.jsonl.zst", [text[:120] for text in texts[20 * n : 20 * n + 12]]
            ),
            n // 6,
        )
        for n in range(9)
    ]


def test_a_damaged_shard_ends_the_reading_unless_it_may_be_skipped(files, tmp_path):
    flip(files[2])
    with pytest.raises(DamagedShard, match=r"^shard \S+a_2\.jsonl\.zst: its bytes are not those of the manifest"):
        take(iter(stream(files, tmp_path, lanes=2)), 200)
    rows = take(iter(stream(files, tmp_path, lanes=2, on_damage="skip", row_length=256)), 150)
    owner = next(n for n in range(2) if any(part.shard == 2 for part in deal(files, 2, 0)[0].parts[n::2]))
    behind = cursors_behind(rows)
    assert behind[owner].skipped == ((0, 2, 0),) and behind[1 - owner].skipped == (), "the skip is not recorded"
    assert min(cursor.cursors[0].epoch for cursor in behind.values()) >= 2, "this test wants several epochs"
    assert [n for n, texts in enumerate(held(files)) if texts & whole_texts(rows)] == [0, 1, 3, 4, 5, 6, 7, 8]


def held(files) -> list[set[bytes]]:
    """The texts of each shard; of one that is damaged, none."""
    found = []
    for each in files:
        try:
            found.append({text.encode() for _, text in read_documents(Path(each.name), "jsonl")})
        except DamagedShard:
            found.append(set())
    return found


def whole_texts(rows) -> set[bytes]:
    """The texts that begin and end within a row."""
    return {text for row in rows for text in (row.input_ids % 256).astype(np.uint8).tobytes().split(b"\0")[1:-1]}


def test_a_skip_holds_in_every_layout_and_after_a_repair(files, tmp_path):
    data = flip(files[2])
    settings = {"lanes": 2, "on_damage": "skip"}
    expected = take(iter(stream(files, tmp_path, **settings)), 600)
    for processes, workers in ((2, 0), (1, 2), (2, 1)):
        rows = take(together(files, tmp_path, processes, workers, **settings), 600)
        assert differs(rows, expected) is None, f"{processes} x {workers}: {differs(rows, expected)}"
    recorded_at = next(row.index for row in expected if row.cursor.skipped)
    starts = [recorded_at - 1, recorded_at, recorded_at + 1, recorded_at + 31, 500]
    for repaired in (False, True):
        if repaired:
            Path(files[2].name).write_bytes(data)
        for start in starts[2 if repaired else 0 :]:
            cursors = cursors_behind(expected[:start])
            rows = take(together(files, tmp_path, 2, 0, start=start, cursors=cursors, **settings), 600 - start)
            found = differs(rows, expected[start:])
            assert found is None, f"from row {start}, {repaired=}: {found}"
    fresh = take(iter(stream(files, tmp_path, **settings)), 600)
    assert not cursors_behind(fresh)[0].skipped, "a new run leaves out what is whole again"
    # What was left out stays so when the run goes on with on_damage: raise.
    rows = take(iter(stream(files, tmp_path, lanes=2, start=500, cursors=cursors_behind(expected[:500]))), 100)
    assert differs(rows, expected[500:]) is None, "raise reads what skip has left out"


def test_damage_met_in_the_middle_of_a_part_leaves_out_its_rest(files, tmp_path):
    """Damaged between two starts: what is left of the part goes, and the next part begins at its first token."""
    one = lane(files[:6], tmp_path, lanes=1)
    rows = [next(one) for _ in range(40)]
    cursor = rows[-1][2]
    assert cursor.cursors[0].document > 0 and cursor.cursors[0].token > 0, "this test wants the middle of a document"
    order = shuffle(deal(files[:6], 1, 0)[0].parts, 0, 0, 0)
    here, following = (order[cursor.cursors[0].part + more].shard for more in (0, 1))
    flip(files[here])
    ids, _, behind, _ = next(lane(files[:6], tmp_path, lanes=1, on_damage="skip", cursor=cursor, row=40))
    assert behind.skipped == ((0, here, 0),), "the damage is not recorded in the first row behind it"
    assert behind.cursors[0].part == cursor.cursors[0].part + 1
    _, first = next(read_documents(Path(files[following].name), "jsonl"))
    assert encode(first)[:64] == ids.tolist(), "the row does not begin where the next part begins"


def test_a_part_is_decoded_whole_before_its_first_document(files, tmp_path):
    """Without a hash only decoding tells: no document of the part may have been served by then."""
    unknown = [replace(each, sha256=None, documents=None) for each in files[:6]]
    expected = take(iter(stream(files[:6], tmp_path, lanes=2, row_length=256)), 100)
    rows = take(iter(stream(unknown, tmp_path, lanes=2, row_length=256)), 100)
    assert differs(rows, expected) is None, "a shard without a hash is read otherwise"
    documents = held(files[:6])
    assert [len(texts & whole_texts(rows)) > 0 for texts in documents] == [True] * 6, "rows too short to see documents"
    flip(files[2])
    found = []
    with pytest.raises(DamagedShard, match=r"a_2\.jsonl\.zst: damaged"):
        found.extend(iter(stream(unknown, tmp_path, lanes=2, row_length=256)))
    assert not whole_texts(found) & documents[2], "documents of a damaged part were served before it raised"
    found = take(iter(stream(unknown, tmp_path, lanes=2, row_length=256, on_damage="skip")), 100)
    assert [n for n in range(6) if documents[n] & whole_texts(found)] == [0, 1, 3, 4, 5], "not just the damaged part"
    assert any((0, 2, 0) in row.cursor.skipped for row in found)


def test_fewer_documents_than_the_manifest_says_are_damage(files, tmp_path):
    """A copy that decodes, and is not what was listed."""
    wrong = [replace(each, sha256=None, kind="local", documents=each.documents + 1) for each in files[:2]]
    with pytest.raises(DamagedShard, match="12 documents, the manifest says 13"):
        take(iter(stream(wrong, tmp_path, lanes=2)), 2)


def test_records_without_text_leave_no_trace_and_move_no_number(texts, tiny_model, tmp_path):
    """Rows and documents are those of the corpus without them, and a cursor counts records."""
    short = [text[:200] for text in texts[:30]]
    odd = [{"text": None}, short[0], "", short[1], " \n", {"body": 1}, *short[2:15], {"text": 3}, *short[15:], ""]
    encoder = make_encoder(load_tokenizer(tiny_model))
    number_of = [index for index, item in enumerate(odd) if item in short]
    found = {}
    for name, documents in (("clean", short), ("odd", odd)):
        shards = [shard(write_shard(tmp_path / name / "a.jsonl", documents))]
        one = lane(shards, tmp_path, lanes=1, encode=encoder)
        found[name] = [next(one) for _ in range(60)]
        for at in (0, 7, 20):
            ids, _, cursor, _ = next(
                lane(shards, tmp_path, lanes=1, encode=encoder, cursor=found[name][at][2], row=at + 1)
            )
            assert np.array_equal(ids, found[name][at + 1][0]) and cursor == found[name][at + 1][2]
    for clean, with_odd in zip(found["clean"], found["odd"], strict=True):
        assert np.array_equal(clean[0], with_odd[0]) and np.array_equal(clean[1], with_odd[1])
        at, there = clean[2].cursors[0], with_odd[2].cursors[0]
        assert there == replace(at, document=number_of[at.document]), "the cursor names another record"
    assert found["odd"][-1][2].cursors[0].epoch > 0, "less than an epoch was compared"


def test_remote_text_is_held_to_the_same_rule_when_it_is_fetched(texts, tmp_path):
    """Without a count in the manifest, as what is behind a URL."""
    path = write_shard(tmp_path / "corpus/a.jsonl", [texts[0], {"text": None}, texts[1]])
    unknown = replace(shard(path), sha256=None, documents=None)
    rows = [next(lane([unknown], tmp_path, lanes=1)) for _ in range(2)]
    assert bytes(rows[0][0].tolist()) == texts[0].encode()[:64]
    with pytest.raises(
        RegrowError, match=r"a\.jsonl: 1 record without text \(null 1\), the first, at record 1;"
    ) as caught:
        next(lane([replace(unknown, on_no_text="raise")], tmp_path, lanes=1, on_damage="skip"))
    assert not isinstance(caught.value, DamagedShard)
    path.write_text('{"body": "x"}\n')
    with pytest.raises(RegrowError, match="no string under the key 'text'"):
        next(lane([replace(unknown, bytes=path.stat().st_size)], tmp_path, lanes=1, on_damage="skip"))


def test_a_missing_shard_is_no_damage(files, tmp_path):
    Path(files[2].name).unlink()
    with pytest.raises(RegrowError, match=r"a_2\.jsonl\.zst: missing") as refused:
        take(iter(stream(files, tmp_path, lanes=2, on_damage="skip")), 600)
    assert not isinstance(refused.value, DamagedShard)


def test_a_lane_with_nothing_left_refuses(files, tmp_path):
    for each in files[:3]:
        flip(each)
    with pytest.raises(RegrowError, match="lane 0: every document of its parts is excluded, without text, or left"):
        next(lane(files[:3], tmp_path, lanes=1, on_damage="skip"))


# ---- cost


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Four tokenised shards of 40,000 documents of 25 tokens: a million rows of 4 tokens."""
    folder = tmp_path_factory.mktemp("long")
    shards = []
    for number in range(4):
        ids = np.arange(1_000_000).reshape(-1, 25) % 50_000 + number
        write_tokenised(folder / f"{number}.tar", ids, about={"vocabulary": 60_000})
        shards.append(shard(folder / f"{number}.tar", tokenised=True))
    return shards


def test_a_resume_late_in_a_run_costs_what_an_early_one_costs(long, tmp_path):
    """Work is counted in calls of functions, Python's and C's: a scan over rows, documents or epochs would show."""

    order = [shuffle(deal(long, 1, 0)[0].parts, 0, 0, epoch) for epoch in range(71)]

    def resume(row: int) -> int:
        """Calls until the row is there. The lane has its four shards in each epoch: a million rows."""
        epoch, within = divmod(row, 1_000_000)
        part, token = divmod(4 * within, 1_000_000)
        cursor = LaneCursor((Cursor(epoch, part, token // 25, token % 25),))
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            ids, _, behind, _ = next(lane(long, tmp_path, lanes=1, row_length=4, row=row, cursor=cursor))
        finally:
            sys.setprofile(None)
        first = token % 50_000 + order[epoch][part].shard
        assert ids.tolist() == [first, first + 1, first + 2, first + 3], f"row {row} is not the tokens that stand there"
        assert (behind.cursors[0].epoch, behind.cursors[0].part) == (epoch, part)
        return calls

    for warm in (0, 300_000, 600_000, 800_000):
        resume(warm)  # each shard's hash is taken once in a process
    early = resume(10)
    for row in (1_000, 199_990, 999_990, 1_000_000, 1_000_010, 70_000_010):
        calls = resume(row)
        assert calls < 1.2 * early + 100, f"{calls} calls for the row at {row}, {early} for the row at 10"


def test_a_resume_in_raw_text_reads_one_part_of_each_source(files, tmp_path):
    """Bytes that the process has read from files, by the kernel's count, until the first row behind a late cursor."""
    rows = take(iter(stream(files, tmp_path, lanes=1)), 1500)
    assert rows[-1].cursor.cursors[0].epoch >= 3, "this test wants a few epochs"
    cost = {}
    for start in (3, 150, 1500):
        one = stream(files, tmp_path, lanes=1, start=start, cursors=cursors_behind(rows[:start]))
        before = _read_so_far()
        found = {draw_source(0, 0, row.index, weight_edges((0.7, 0.3), 2)) for row in take(iter(one), 8)}
        cost[start] = _read_so_far() - before
        assert found == {0, 1}, "these rows are not of both sources"
    largest = max(each.bytes for each in files)
    # Eight rows of 64 bytes may end a part, so that the next is opened too. All nine hold more than four times that.
    assert all(read < 4.5 * largest for read in cost.values()), f"bytes read {cost}, a shard has {largest}"


def _read_so_far() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
