"""Progress: what was finished is known again, and a line that a kill cut short is done again."""

from __future__ import annotations

import json

from pipeline.data.progress import Progress


def test_what_was_kept_is_known_by_a_later_start(tmp_path):
    path = tmp_path / "deep" / "progress.jsonl"
    with Progress(path) as done:
        assert done.known == {}
        done.keep({"key": "a", "bytes": 1})
        done.keep({"key": "b", "bytes": 2})
        done.keep({"key": "a", "bytes": 3})
    with Progress(path) as again:
        assert again.known == {"a": {"key": "a", "bytes": 3}, "b": {"key": "b", "bytes": 2}}


def test_a_cut_line_and_lines_of_another_form_are_forgotten_and_nothing_is_glued_to_them(tmp_path):
    path = tmp_path / "progress.jsonl"
    whole = json.dumps({"key": "a"}) + "\n"
    path.write_text(whole + "no json\n[1]\n{}\n" + '{"key": "b", "by')
    with Progress(path) as done:
        assert done.known == {"a": {"key": "a"}}
        done.keep({"key": "c"})
    assert path.read_text() == whole + "no json\n[1]\n{}\n" + '{"key": "c"}\n'
    path.write_text('{"key": "cut')
    with Progress(path) as done:
        assert done.known == {} and path.read_text() == ""
