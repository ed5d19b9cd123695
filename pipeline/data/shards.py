"""Shards: what a file of a corpus is, and the manifest that pins every one of them.

A shard is one file, in a local folder, in a data set on the hub, or at a URL. The manifest lists every shard with its
size and with what tells its bytes from others (sha256, or what the server says of it); nothing else in the pipeline
ever lists a corpus again, and a shard that is not what the manifest says is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.instructions import Form
from pipeline.errors import RegrowError
from pipeline.files import hash_json


@dataclass(frozen=True)
class Shard:
    """One file of a corpus.

    source: number of the source in data.sources (0 for held-out shards).
    place, path: a local folder, ``owner/name`` of a hub data set or the beginning of a URL; and the name inside it.
    kind: ``local``, ``hub`` or ``url``. revision: the commit of a hub data set.
    format: ``jsonl``, ``tar``, ``parquet`` or ``tokenised``. bytes: size of the file.
    sha256: of the whole file; None where only a fetch can tell. etag: where there is no sha256, the ETag that a server
    gives, or the git blob id of a small file on the hub (a sha1 of its bytes).
    documents: number of records, excluded domains and records without text counted too; None where unknown.
    groups: documents of each row group of a parquet file; None for other formats and where it cannot be read in parts.
    text_key: where a record has its text, or the form of one of instruction data.
    on_no_text: ``skip`` or ``raise``. without_text: how many records have no text, by what stands in its place, as the
    listing of a local file counted them.
    """

    source: int
    place: str
    path: str
    kind: str
    revision: str | None
    format: str
    bytes: int
    sha256: str | None
    etag: str | None
    documents: int | None
    groups: tuple[int, ...] | None
    text_key: str | Form
    exclude_domains: tuple[str, ...]
    on_no_text: str = "skip"
    without_text: tuple[tuple[str, int], ...] = ()

    @property
    def address(self) -> str:
        """Place and path with nothing left out: it may hold a signed query, so it is not for people to see."""
        return f"{self.place}/{self.path}"

    @property
    def name(self) -> str:
        """Place and path, for messages: without what may be secret in a URL."""
        return without_secrets(self.address) if self.kind == "url" else self.address


def without_secrets(text: str) -> str:
    """``text`` with the query and the password of every URL, and every token, taken out."""
    text = re.sub(r"(\w+://)[^\s/@]+@", r"\1", text)
    text = re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    return re.sub(r"\b(hf_|Bearer\s+)\w[\w.~+/=-]*", r"\1...", text)


def build_manifest(
    corpus: Sequence[Shard], held_out: Sequence[Shard], skipped: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """The manifest: what the data stage writes and everything later reads.

    ``skipped`` are the damaged files that were left out, as ``{"shard": name, "reason": text}``. Raises RegrowError
    when a shard is listed twice, or is held out and in the corpus too.
    """
    seen: dict[str, str] = {}
    for shard in corpus:
        for mark in _marks(shard):
            if mark in seen:
                raise RegrowError(f"shards {seen[mark]} and {shard.name} are the same file; list it once")
            seen[mark] = shard.name
    for shard in held_out:
        twin = next((seen[mark] for mark in _marks(shard) if mark in seen), None)
        if twin is not None:
            raise RegrowError(f"held-out shard {shard.name} is also in the corpus ({twin}); keep them apart")
    listed = {
        "shards": [_entry(shard) for shard in corpus],
        "held_out": [_entry(shard) for shard in held_out],
        "skipped": [dict(entry) for entry in skipped],
    }
    return {**listed, "hash": hash_json(listed)}


def _entry(shard: Shard) -> dict[str, Any]:
    """A shard as JSON. What only a corpus with records without text needs stands there alone, so that the hashes of
    all others stay."""
    entry = asdict(shard)
    kinds, policy = dict(entry.pop("without_text")), entry.pop("on_no_text")
    return entry | ({"without_text": kinds} if kinds else {}) | ({"on_no_text": policy} if policy != "skip" else {})


def _marks(shard: Shard) -> list[str]:
    """What tells that two shards are the same file: the address, and the content where a hash of it is known."""
    marks = [shard.address]
    if shard.sha256 is not None:
        marks.append(f"sha256 {shard.sha256}")
    elif shard.kind == "hub" and shard.etag is not None:
        marks.append(f"blob {shard.etag}")
    return marks


def read_manifest(manifest: Mapping[str, Any]) -> tuple[list[Shard], list[Shard]]:
    """(corpus, held-out) shards of a manifest that was read from JSON. Raises RegrowError on another format of it."""

    def shards(part: str) -> list[Shard]:
        return [
            Shard(
                **{
                    **entry,
                    "text_key": Form(**key) if isinstance(key := entry["text_key"], dict) else key,
                    "groups": None if entry["groups"] is None else tuple(entry["groups"]),
                    "exclude_domains": tuple(entry["exclude_domains"]),
                    "without_text": tuple(dict(entry.get("without_text", {})).items()),
                }
            )
            for entry in manifest[part]
        ]

    try:
        return shards("shards"), shards("held_out")
    except (KeyError, TypeError) as error:
        raise RegrowError(f"the manifest was written by another version of regrow ({error}); redo stage data") from None
