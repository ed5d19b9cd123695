"""From the config's prune section to the cut and the way, and what the two choose together."""

from __future__ import annotations

import pytest

from pipeline.config import load_config
from pipeline.cuts import read_cut, read_way
from pipeline.errors import RegrowError
from pipeline.importance.choosing import Way, choose
from pipeline.importance.cut import Cut
from pipeline.model.describe import Sizes

ORDER = [0, 5, 7, 3, 2, 4, 1, 6]


def test_every_way_of_saying_what_goes(tiny_config, tmp_path):
    """The tiny config protects the first two blocks and the last; eight blocks of 100 in a model of 1,000."""
    (tmp_path / "other.csv").write_text("1,2,3,4,5,6,7,0\n")

    def chosen(*overrides: str) -> list[int]:
        config = load_config(tiny_config, overrides)
        return choose(read_way(config, 8), read_cut(config), {"ppl": {"order": ORDER}}, Sizes((100,) * 8, 1000))

    for overrides, removed in (
        (["prune.remove=3"], [2, 3, 5]),
        (["prune.remove=3", "prune.protect_first=0"], [0, 3, 5]),
        (["prune.ratio=0.49"], [2, 3, 5]),
        (["prune.parameters=800"], [3, 5]),
        (["prune.parameters=799"], [2, 3, 5]),
        (["prune.blocks=[7, 0]"], [0, 7]),
        ([f"prune.blocks={tmp_path}/other.csv", "prune.remove=4"], [2, 3, 4, 5]),
    ):
        assert chosen(*overrides) == removed, overrides
    with pytest.raises(RegrowError, match="only 5 of 8 blocks may go, 3 are protected"):
        chosen("prune.remove=6")
    with pytest.raises(RegrowError, match="blocks 0 to 7"):
        chosen("prune.blocks=[8]")
    with pytest.raises(RegrowError, match=r"other\.csv: 8 entries, expected each of 0 to 8 once"):
        read_way(load_config(tiny_config, [f"prune.blocks={tmp_path}/other.csv", "prune.remove=4"]), 9)


def test_a_way_is_named_as_the_comparison_names_it(tiny_config, tmp_path):
    (tmp_path / "other.csv").write_text("2,1,0\n")
    for overrides, way in (
        ([], Way("ppl", "one-shot")),
        (["prune.criterion=angular_last", "prune.selection=contiguous"], Way("angular_last", "contiguous")),
        (["prune.selection=greedy"], Way("ppl", "greedy")),
        (["prune.criterion=random", "prune.seed=7"], Way("random", "control", seed=7)),
        (["prune.blocks=[2]"], Way("config", "given")),
        ([f"prune.blocks={tmp_path}/other.csv", "prune.remove=1"], Way("config", "given", order=(2, 1, 0))),
    ):
        assert read_way(load_config(tiny_config, overrides), 3) == way, overrides
    budget = read_cut(load_config(tiny_config, ["prune.perplexity=9.5"]))
    assert budget == Cut(perplexity=9.5, protect_first=2, protect_last=1)


def test_the_model_is_run_where_scores_alone_do_not_tell(tiny_config):
    """The tiny config does not compare."""
    assert not load_config(tiny_config, ["prune.criterion=angular_last", "prune.selection=contiguous"]).prune.runs_model
    for asked in ("selection=greedy", "perplexity=20", "linear=true", "compare.enabled=true"):
        assert load_config(tiny_config, [f"prune.{asked}"]).prune.runs_model, asked
