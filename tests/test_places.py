"""Where a run writes is tried before anything starts: its folder, that of answers, and that of ids, which is apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.places import check_ids, check_places, require_apart


@pytest.fixture
def place(tiny_config, tmp_path):
    """``place(override, ...)``: a config whose corpus is tmp_path/text."""
    (tmp_path / "text").mkdir()
    return lambda *overrides: load_config(tiny_config, [f"data.sources.0.path={tmp_path}/text", *overrides])


def test_places_that_can_be_written_pass_and_nothing_is_left_in_them(place, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for config in (place(), place(f"data.tokenised={tmp_path}/ids")):
        assert check_places(config) == []
        check_ids(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_refused_by_its_key(place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RegrowError, match=r"file/tiny/data.* cannot be written \(.*\); set run\.folder to"):
        check_places(place(f"run.folder={tmp_path}/file"))
    for check in (check_places, check_ids):
        with pytest.raises(RegrowError, match=r"file/ids.* cannot be written \(.*\); set data\.tokenised to"):
            check(place(f"data.tokenised={tmp_path}/file/ids"))


def test_a_place_on_another_machine_s_disk_is_said(place):
    assert check_places(place("run.folder=/no-such-disk/runs", "data.tokenised=/no-such-disk/ids")) == [
        "run folder /no-such-disk/runs/tiny: not on this machine",
        "data.tokenised /no-such-disk/ids: not on this machine",
    ]


def test_where_a_teacher_s_answers_go_is_tried_where_one_is_asked_ahead(place, tmp_path):
    (tmp_path / "file").touch()
    asked = ("train.distill.samples=50", f"train.distill.store={tmp_path}/file/answers")
    assert check_places(place(*asked)) == [], "nobody teaches"
    with pytest.raises(RegrowError, match=r"file/answers.* cannot be written \(.*\); set train\.distill\.store to"):
        check_places(place(*asked, "train.objective=distill"))
    elsewhere = ("train.objective=distill", "train.distill.samples=50", "train.distill.store=/no-such-disk/answers")
    assert check_places(place(*elsewhere)) == ["train.distill.store /no-such-disk/answers: not on this machine"]


@pytest.mark.parametrize("inside", ["text", "text/ids", "text/a/../ids"])
def test_ids_in_the_text_s_folder_are_refused(place, tmp_path, inside):
    config = place(f"data.tokenised={tmp_path}/{inside}")
    for check in (check_places, check_ids, require_apart):
        with pytest.raises(RegrowError, match=rf"data\.tokenised '.*' lies in data\.sources\.0 '{tmp_path}/text'"):
            check(config)
    # Where the source's own glob leaves them out they may stand there.
    require_apart(place(f"data.tokenised={tmp_path}/{inside}", "data.sources.0.files='*.jsonl'"))


def test_ids_may_lie_in_a_folder_linked_elsewhere(place, tmp_path):
    (tmp_path / "ids").mkdir()
    (tmp_path / "text" / "link").symlink_to(tmp_path / "ids")
    require_apart(place(f"data.tokenised={Path(tmp_path, 'ids')}"))
    (tmp_path / "other").symlink_to(tmp_path / "text")
    with pytest.raises(RegrowError, match="lies in"):
        require_apart(place(f"data.tokenised={tmp_path}/other/ids"))
