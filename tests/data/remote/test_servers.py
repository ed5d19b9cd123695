"""Patience: which failures are waited out, how long, and what is said when it ends."""

from __future__ import annotations

import pytest

from pipeline.data.remote import servers
from pipeline.data.remote.servers import Patience, ShortBody
from pipeline.errors import RegrowError


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The waits, none of which is waited."""
    waits: list[float] = []
    monkeypatch.setattr(servers.time, "sleep", waits.append)
    return waits


def failing(times: int, error: Exception):
    """A call that fails so often, and then gives 7."""
    calls = iter([error] * times)

    def call() -> int:
        for each in calls:
            raise each
        return 7

    return call


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), TimeoutError(), ShortBody("3 of 5 bytes came")])
def test_what_may_pass_is_tried_again_with_waits_that_double(slept, error):
    said: list[str] = []
    assert Patience(5, 2.0, said.append)("shard a", failing(3, error)) == 7
    assert len(slept) == len(said) == 3 and all(line.startswith("shard a: ") for line in said)
    for number, seconds in enumerate(slept):
        assert 0.5 <= seconds / (2.0 * 2**number) <= 1.5, f"wait {number} of {slept}"


def test_it_ends_after_so_many_attempts_and_says_what_helps(slept):
    with pytest.raises(RegrowError, match=r"shard a: given up after 3 attempts .* it goes on from here"):
        Patience(3, 0.1, lambda line: None)("shard a", failing(9, ConnectionResetError("peer")))
    assert len(slept) == 2, "it waited behind the last attempt"


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no"), ValueError("odd")])
def test_what_will_not_pass_ends_at_once(slept, error):
    with pytest.raises(RegrowError, match="shard a: "):
        Patience()("shard a", failing(1, error))
    refusal = RegrowError("said already")
    with pytest.raises(RegrowError, match=r"^said already$"):
        Patience()("shard a", failing(1, refusal))
    assert slept == []
