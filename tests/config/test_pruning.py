"""The cut: exactly one of its statements holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import (
    CUTS,
    load_config,
)
from tests.config.kit import LEAST, refused, write

# Exactly one cut


@pytest.mark.parametrize("stated", [[], ["remove", "ratio"], ["remove", "blocks"], ["ratio", "parameters"]])
def test_none_or_two_cuts_in_one_file_are_refused(tmp_path: Path, stated: list[str]) -> None:
    values = {"remove": "6", "ratio": "0.2", "parameters": "5e9", "blocks": "[3]"}
    cuts = "".join(f"  {name}: {values[name]}\n" for name in stated)
    found = refused(write(tmp_path / "c.yaml", LEAST.replace("  remove: 6\n", "  criterion: ppl\n" + cuts)))
    assert "exactly one of remove, ratio, parameters, perplexity, blocks" in found, found
    assert found.endswith(" and ".join(stated) or "none"), found


@given(cuts=st.lists(st.sampled_from(CUTS), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_last_cut_stated_holds_alone(file: Path, cuts: list[str]) -> None:
    values = {"remove": "9", "ratio": "0.25", "parameters": "5e9", "blocks": "[3, 4]", "perplexity": "20"}
    prune = load_config(file, [f"prune.{name}={values[name]}" for name in cuts]).prune
    assert [name for name in CUTS if getattr(prune, name) is not None] == [cuts[-1]]


def test_a_cut_in_a_file_clears_that_of_its_base(file: Path) -> None:
    child = write(file.parent / "child.yaml", "extends: config.yaml\nprune: {ratio: 0.2}\n")
    prune = load_config(child).prune
    assert (prune.remove, prune.ratio) == (None, 0.2)


def test_an_order_file_goes_with_remove(file: Path) -> None:
    for overrides in (
        ["prune.blocks=block_order.csv"],
        ["prune.ratio=0.2", "prune.blocks=block_order.csv", "prune.remove=6"],
        ["prune.ratio=0.2", "prune.remove=6", "prune.blocks=block_order.csv"],
    ):
        prune = load_config(file, overrides).prune
        assert (prune.blocks, prune.remove, prune.ratio) == (Path("block_order.csv"), 6, None), overrides
    assert load_config(file, ["prune.blocks=o.csv", "prune.ratio=0.5"]).prune.blocks is None
    assert load_config(file, ["prune.blocks=o.csv", "prune.blocks=[3]"]).prune.remove is None
    alone = refused(file, "prune.ratio=0.2", "prune.blocks=block_order.csv")
    assert "goes with remove" in alone, alone
