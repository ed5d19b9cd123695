"""Servers: which failures may pass and how long they are waited for; what a refusal is told; bytes by range."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pipeline.data.remote import servers
from pipeline.data.remote.servers import NoRanges, Patience, ShortBody, locate, open_url, read_range, state_of
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError
from tests.data.server import SECRET


def answered(status: int, **headers: str) -> aiohttp.ClientResponseError:
    """The error that a server's answer becomes."""
    url = URL(f"https://host/a?Signature={SECRET}")
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    about = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(about, (), status=status, headers=named, message=f"no {SECRET}")


class BotoError(Exception):
    """What boto raises: the answer is a dict."""

    def __init__(self, status: int, **headers: str):
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}


class Failing:
    """A call that fails with each of these in turn, and then gives its name."""

    def __init__(self, *errors: Exception):
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "there"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, without waiting them."""
    found: list[float] = []
    monkeypatch.setattr(servers.time, "sleep", found.append)
    return found


PASSING = {
    "503 (server error)": answered(503),
    "429 (too many requests)": answered(429),
    "408 (time-out)": answered(408),
    "500 (server error)": BotoError(500),
    "ConnectionResetError: reset": ConnectionResetError("reset"),
    "the server stalled": aiohttp.ServerTimeoutError(),
    "the answer was cut short": ShortBody("3 of 7 bytes came"),
    "answer was cut short": aiohttp.ClientPayloadError(),
}


@pytest.mark.parametrize("reason", PASSING)
def test_what_may_pass_is_tried_again_and_said(slept, reason):
    said, call = [], Failing(PASSING[reason])
    assert Patience(8, 1.0, said.append)("shard x", call) == "there" and call.calls == 2
    (line,) = said
    assert line.startswith("shard x: ") and f"{reason}; waiting" in line and line.endswith("attempt 2 of 8"), line
    assert len(slept) == 1 and 0.5 <= slept[0] <= 1.5 and SECRET not in line


LASTING = {
    r"answered 404 \(not there\); check the name and the revision": answered(404),
    r"answered 404 \(not there\); check the name": FileNotFoundError("gone"),
    r"answered 403 \(forbidden\); set HF_TOKEN to a token that was granted": answered(403),
    r"answered 403 \(forbidden\); set HF_TOKEN ": PermissionError("no"),
    r"answered 401 \(not authorised\); check the address, and set HF_TOKEN": BotoError(401),
    r"answered 400 \(refused\)$": answered(400),
    r"SSLCertVerificationError: ": ssl.SSLCertVerificationError("self-signed"),
    r"ValueError: no such thing$": ValueError("no such thing\nand more"),
}


@pytest.mark.parametrize("words", LASTING)
def test_what_does_not_pass_is_refused_at_once_with_advice(slept, words):
    call = Failing(LASTING[words])
    with pytest.raises(RegrowError, match=f"^shard x: .*{words}") as refused:
        Patience()("shard x", call)
    assert call.calls == 1 and slept == [], "it was tried again"
    assert SECRET not in str(refused.value) and "\n" not in str(refused.value)


def test_a_cause_behind_an_error_counts(slept):
    """As libraries wrap what they met: the certificate of a server is not waited for, its time-out is."""
    wrapped = [ConnectionError("wrapped"), OSError("wrapped")]
    wrapped[0].__cause__, wrapped[1].__cause__ = ssl.SSLCertVerificationError("self-signed"), TimeoutError()
    with pytest.raises(RegrowError, match="SSLCertVerificationError"):
        Patience()("shard x", Failing(wrapped[0]))
    assert Patience(say=lambda line: None)("shard x", Failing(wrapped[1])) == "there" and len(slept) == 1


def test_our_own_refusals_pass_through(slept):
    call = Failing(RegrowError("as it is"))
    with pytest.raises(RegrowError, match=r"^as it is$"):
        Patience()("shard x", call)
    assert call.calls == 1


def test_waits_double_to_a_minute_with_jitter_and_end(slept):
    call = Failing(*[ConnectionError("down")] * 9)
    with pytest.raises(RegrowError, match=r"given up after 9 attempts \(ConnectionError: down\).*same command again"):
        Patience(9, 1.0, lambda line: None)("shard x", call)
    assert call.calls == 9 and len(slept) == 8
    for wait, expected in zip(slept, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert 0.5 * expected <= wait <= 1.5 * expected, f"waited {slept}"
    assert len({wait / expected for wait, expected in zip(slept, [1, 2, 4, 8], strict=False)}) > 1, "there is no jitter"


def in_seconds(seconds: float) -> str:
    """That time as a server writes it."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (lambda: answered(429, Retry_After="20"), 20),
        (lambda: answered(429, retry_after=in_seconds(100)), 98),
        (lambda: answered(503, Retry_After=in_seconds(-86400)), 0),
        (lambda: answered(429, Retry_After="86400"), 3600),
        (lambda: answered(429, RateLimit='"api";r=0;t=55'), 55),
        (lambda: BotoError(503, **{"retry-after": "7"}), 7),
    ],
    ids=["seconds", "a date", "a date that has passed", "a day", "the hub's", "boto's"],
)
def test_a_wait_that_the_server_asks_for_is_kept_up_to_an_hour(slept, error, asked):
    """Not shorter, and little longer: a date has whole seconds, and ``wait`` is spread so that not all come at once."""
    Patience(8, 2.0, lambda line: None)("shard x", Failing(error()))
    assert asked <= slept[0] <= asked + 2 + 3, f"waited {slept[0]:.1f} s where {asked} were asked for"


def test_nobody_moves_the_random_numbers_of_a_run(slept):
    import random

    random.seed(5)
    before = random.getstate()
    Patience(say=lambda line: None)("shard x", Failing(ConnectionError()))
    assert random.getstate() == before


def test_a_file_is_what_the_server_says_of_it(server):
    server.files["/a b.jsonl"], server.etags["/a b.jsonl"] = b"x" * 10, '"e"'
    for quoted in ("a b.jsonl", "a%20b.jsonl"):
        assert state_of(*open_url(f"{server.address}/{quoted}")) == (10, '"e"'), quoted

    class Bucket:
        """A store that gives these words of a file."""

        def __init__(self, **info: object):
            self.given = info

        def info(self, path: str) -> dict[str, object]:
            return self.given

    assert state_of(Bucket(size=3, ETag="e", LastModified="then"), "b/x") == (3, "e")
    assert state_of(Bucket(size=3, LastModified=7), "b/x") == (3, "7") and state_of(Bucket(size=3), "b/x") == (3, None)
    with pytest.raises(RegrowError, match=r"^https://host/x: the server does not say its size, so it cannot be pinned"):
        state_of(Bucket(size=None), f"https://host/x?Signature={SECRET}")


def test_bytes_come_by_range_or_are_refused(server):
    server.files["/a"] = bytes(range(200))
    where = open_url(f"{server.address}/a?Signature={SECRET}")
    assert read_range(*where, 50, 60, 200) == bytes(range(50, 60))
    assert [headers["Range"] for method, _, headers in server.requests if method == "GET"] == ["bytes=50-59"]
    with pytest.raises(ShortBody, match="20 of 100 bytes came"):
        read_range(*where, 180, 280, 280)
    server.ranges = False
    with pytest.raises(NoRanges) as refused:
        read_range(*where, 50, 60, 200)
    assert SECRET not in str(refused.value)


def test_a_server_that_says_nothing_more_counts_as_stalled_in_time(server):
    server.files["/a"] = bytes(200_000)
    server.fail("/a", "stall")
    begin = time.monotonic()
    with pytest.raises(RegrowError, match=r"given up after 1 attempts \(the server stalled\)"):
        Patience(1)("a", lambda: read_range(*open_url(f"{server.address}/a", 0.2), 0, 200_000, 200_000))
    assert time.monotonic() - begin < 10, "a stalled server was waited for much longer than asked"


def test_what_cannot_be_opened_is_refused_before_anybody_is_asked(monkeypatch):
    with pytest.raises(RegrowError, match=r"^nosuch://host/x: .*pip install 'regrow\[s3\]'"):
        open_url(f"nosuch://host/x?Signature={SECRET}")
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    shard = TextSource("owner/set").shard(place="owner/set", path="a.jsonl", kind="hub", format="jsonl", bytes=1)
    with pytest.raises(RegrowError, match=r"shard owner/set/a\.jsonl: HF_HUB_OFFLINE is set"):
        locate(shard)
