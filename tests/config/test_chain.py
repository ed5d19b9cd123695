"""The chain section: what it may say, and that no stage of an ordinary run reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import STAGES, load_config
from tests.config.kit import refused


def test_there_is_no_chain_unless_its_parts_are_stated(file: Path) -> None:
    assert load_config(file).chain.parts is None
    chain = load_config(file, ["chain.parts=3"]).chain
    assert (chain.parts, chain.schedule, chain.token_shares) == (3, "equal", None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["chain.parts=1"], "chain.parts"),
        (["chain.parts=2", "chain.token_shares=[1, 2, 3]"], "token_shares has 3 shares and parts is 2"),
        (["chain.token_shares=[1]"], "token_shares has 1 shares and parts is None"),
        (["chain.parts=2", "chain.token_shares=[1, 0]"], "chain.token_shares"),
    ],
)
def test_what_is_no_chain_is_refused(file: Path, overrides: list[str], said: str) -> None:
    assert said in refused(file, *overrides)


def test_a_chain_s_keys_make_no_stage_stale(file: Path) -> None:
    before, after = load_config(file), load_config(file, ["chain.parts=2", "chain.schedule=front"])
    assert [before.read_by(stage) for stage in STAGES] == [after.read_by(stage) for stage in STAGES]
