"""Progress: what was finished is known again, and what a kill cut off is forgotten and written over."""

from __future__ import annotations

import json

import pytest

from pipeline.data.progress import Progress

ENTRIES = [{"key": f"shard {number} ü", "documents": number} for number in range(3)]


def test_what_was_kept_is_known_to_the_next_start(tmp_path):
    path = tmp_path / "deep" / "progress.jsonl"
    with Progress(path) as done:
        assert done.known == {}
        for entry in ENTRIES:
            done.keep(entry)
            assert json.loads(path.read_text().splitlines()[-1]) == entry, "what is finished is not in the file at once"
    with Progress(path) as done:
        assert list(done.known.values()) == ENTRIES
        done.keep({**ENTRIES[1], "documents": 9})
    with Progress(path) as done:
        assert [entry["documents"] for entry in done.known.values()] == [0, 9, 2], "the newer line does not hold"


@pytest.mark.parametrize("bytes_left", range(1, 40, 6))
def test_a_line_that_a_kill_cut_short_is_forgotten_and_spoils_no_other(tmp_path, bytes_left):
    path = tmp_path / "progress.jsonl"
    with Progress(path) as done:
        for entry in ENTRIES:
            done.keep(entry)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][: min(bytes_left, len(lines[2]) - 1)])
    with Progress(path) as done:
        assert list(done.known.values()) == ENTRIES[:2]
        done.keep(ENTRIES[2])
    assert path.read_bytes() == b"".join(lines), "the next line was written behind half of one"


def test_only_half_of_the_first_line_is_no_line(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_text('{"key": "sha')
    with Progress(path) as done:
        assert done.known == {}
        done.keep(ENTRIES[0])
    assert json.loads(path.read_text()) == ENTRIES[0]


def test_a_line_that_cannot_be_read_is_done_again(tmp_path):
    path = tmp_path / "progress.jsonl"
    lines = ["\0\0\0\0", '{"documents": 1}', "[1]", "7", json.dumps(ENTRIES[0])]
    path.write_text("".join(f"{line}\n" for line in lines))
    with Progress(path) as done:
        assert done.known == {ENTRIES[0]["key"]: ENTRIES[0]}
