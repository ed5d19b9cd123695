"""What scoring keeps as it becomes known: in a folder or in memory, made once, the same for all processes."""

from __future__ import annotations

from pipeline.importance.kept import Kept
from pipeline.world import ALONE


def test_what_is_known_is_not_made_again(tmp_path):
    made = []
    for folder in (tmp_path / "kept", None):
        made.clear()
        first = Kept(folder, ALONE)
        for _ in range(2):
            assert first.once("entry", lambda: made.append("entry") or {"scores": [1.5]}) == {"scores": [1.5]}
        assert made == ["entry"], "it was made twice by one start"
        again = Kept(folder, ALONE)
        assert again.once("entry", lambda: made.append("anew") or {"scores": [2.5]}) == (
            {"scores": [1.5]} if folder else {"scores": [2.5]}
        )


def test_names_are_apart(tmp_path):
    kept = Kept(tmp_path, ALONE)
    kept.once("a", lambda: 1)
    assert kept.known("b", "nothing") == "nothing" and kept.known("a", "nothing") == 1
