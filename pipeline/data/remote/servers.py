"""Remote files: how the hub and other servers are asked, how long one waits for them, and what a refusal means.

Every remote shard is a file of an fsspec file system: a hub data set through its download address, other URLs (http,
https, s3, gs, ...) as they stand. ``Patience`` is the one loop that waits a server's bad moment out. No message holds
a token, a password or the query of a URL.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from pipeline.data.shards import Shard, without_secrets
from pipeline.errors import RegrowError, first_line

T = TypeVar("T")

#: Seconds without one byte after which a server counts as stalled.
STALLED = 30.0
#: Seconds: the longest wait that doubling leads to, and the longest that a server may ask for.
LONGEST_WAIT, LONGEST_ASKED = 60.0, 3600.0
#: Not the global state: the jitter must not move the seeds of a training run, and forked workers must not share it.
_CHANCE = random.SystemRandom()


class ShortBody(OSError):
    """Fewer bytes came than the file has: worth another attempt."""


class NoRanges(RegrowError):
    """The server delivers whole files only."""


@dataclass(frozen=True)
class Patience:
    """How often a call to a server is tried, and how long one waits in between.

    The first wait is ``wait`` seconds, each further one double, with jitter. ``say`` gets a line at every wait.
    """

    attempts: int = 8
    wait: float = 1.0
    say: Callable[[str], None] = print

    def __call__(self, what: str, call: Callable[[], T]) -> T:
        """``call()``, again after a wait while the failure may pass.

        Connection errors, time-outs, short bodies and the answers 408, 429 and 5xx may pass; a wait that the server
        asks for is kept. ``what`` begins each message. Raises RegrowError at once for everything else, and after so
        many attempts.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except RegrowError:
                raise
            except Exception as error:
                reason = _reason(error)
                if not _may_pass(error):
                    raise RegrowError(f"{what}: {reason}{_advice(error)}") from None
                asked = _asked_wait(error)
            if attempt == self.attempts:
                break
            seconds = min(self.wait * 2 ** (attempt - 1), LONGEST_WAIT) * _CHANCE.uniform(0.5, 1.5)
            if asked is not None:
                # Not before the server's own time; a little later, so that many processes do not come back at once.
                seconds = min(asked, LONGEST_ASKED) + self.wait * _CHANCE.uniform(0, 1)
            self.say(f"{what}: {reason}; waiting {seconds:.3g} s, then attempt {attempt + 1} of {self.attempts}")
            time.sleep(seconds)
        raise RegrowError(
            f"{what}: given up after {self.attempts} attempts ({reason}); look at the network and the server, "
            "then start the same command again, it goes on from here"
        )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _answer(error: BaseException) -> tuple[int | None, Any]:
    """(status, headers) of the server's answer behind an error of aiohttp, of the hub's client, or of boto."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            meta = response.get("ResponseMetadata", {})
            return meta.get("HTTPStatusCode"), meta.get("HTTPHeaders") or {}
        for holder, name in ((response, "status_code"), (link, "status")):
            status = getattr(holder, name, None)
            if isinstance(status, int) and status >= 100:
                return status, getattr(holder, "headers", None) or {}
    if error.__cause__ is None and isinstance(error, (FileNotFoundError, PermissionError)):
        return 404 if isinstance(error, FileNotFoundError) else 403, {}
    return None, {}


def _may_pass(error: BaseException) -> bool:
    import aiohttp
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    status, _ = _answer(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if any(isinstance(link, (OfflineModeIsEnabled, ssl.SSLCertVerificationError)) for link in _chain(error)):
        return False
    passing = (
        ConnectionError,
        TimeoutError,
        ShortBody,
        aiohttp.ClientConnectionError,
        aiohttp.ClientPayloadError,
        httpx2.TransportError,
    )
    return any(isinstance(link, passing) for link in _chain(error))


def _asked_wait(error: BaseException) -> float | None:
    """Seconds that the server asks one to wait: Retry-After as seconds or a date, or the hub's RateLimit header."""
    from huggingface_hub.utils import parse_ratelimit_headers

    _, headers = _answer(error)
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = next((value.strip() for name, value in headers.items() if name.lower() == "retry-after"), "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """What happened, in a few words, with nothing secret in it."""
    status, _ = _answer(error)
    if status is not None:
        words = {401: "not authorised", 403: "forbidden", 404: "not there", 408: "time-out", 429: "too many requests"}
        return f"the server answered {status} ({words.get(status, 'server error' if status >= 500 else 'refused')})"
    import aiohttp

    links = list(_chain(error))
    if any(isinstance(link, TimeoutError) for link in links):
        return "the server stalled"
    if any(isinstance(link, (aiohttp.ClientPayloadError, ShortBody)) for link in links):
        return "the answer was cut short"
    cause = links[-1]
    return f"{type(cause).__name__}: {without_secrets(first_line(cause))}"


def _advice(error: BaseException) -> str:
    return {
        401: "; check the address, and set HF_TOKEN (for the hub) or your credentials for this server",
        403: "; set HF_TOKEN to a token that was granted access (gated data on the hub), or renew your credentials or "
        "the signed address",
        404: "; check the name and the revision; a private or gated data set of the hub needs HF_TOKEN",
    }.get(_answer(error)[0] or 0, "")


def locate(shard: Shard, stalled: float = STALLED) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a hub or url shard."""
    if shard.kind == "url":
        return open_url(shard.address, stalled)
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if constants.is_offline_mode():
        raise RegrowError(f"shard {shard.name}: HF_HUB_OFFLINE is set, and the shard is on the hub; unset it")
    url = hf_hub_url(shard.place, shard.path, repo_type="dataset", revision=shard.revision)
    return open_url(url, stalled, build_hf_headers(library_name="regrow"))


def open_url(url: str, stalled: float = STALLED, headers: dict[str, str] | None = None) -> tuple[Any, str]:
    """(fsspec file system, path in it) of any URL. Raises RegrowError where its file system is not installed."""
    import aiohttp
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        # Bytes as they lie on the server: a .gz file must not arrive unpacked. An address that is quoted stays as it
        # is, and so does one that the server redirects to: another quoting can break its signature.
        options = {
            "encoded": "%" in url,
            "client_kwargs": {
                "timeout": aiohttp.ClientTimeout(total=None, connect=stalled, sock_read=stalled),
                "headers": {"Accept-Encoding": "identity", **(headers or {})},
                "auto_decompress": False,
                "requote_redirect_url": False,
                "trust_env": True,
            },
        }
    try:
        return url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise RegrowError(f"{without_secrets(url)}: {first_line(error)} (for s3: pip install 'regrow[s3]')") from None


def state_of(file_system: Any, path: str) -> tuple[int, str | None]:
    """(size, ETag or, where there is none, the date of the last change) that the server gives of a file."""
    info = file_system.info(path)
    if info.get("size") is None:
        raise RegrowError(f"{without_secrets(path)}: the server does not say its size, so it cannot be pinned")
    mark = next((info[key] for key in ("ETag", "etag", "Last-Modified", "LastModified") if info.get(key)), None)
    return int(info["size"]), None if mark is None else str(mark)


def read_range(file_system: Any, path: str, start: int, stop: int, size: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a remote file of ``size`` bytes; NoRanges where the server cannot do that."""
    with file_system.open(path, "rb", size=size, cache_type="none") as file:
        file.seek(start)
        try:
            data = file.read(stop - start)
        except ValueError as error:
            raise NoRanges(f"{without_secrets(path)}: {first_line(error)}") from None
    if len(data) != stop - start:
        raise ShortBody(f"{len(data)} of {stop - start} bytes came")
    return data
