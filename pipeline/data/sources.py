"""Sources: what one source of a corpus is asked for, wherever it lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.data.shards import Shard
from pipeline.run import RegrowError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """One source of text, or of token ids.

    path: a local folder, glob or file; ``owner/name`` of a data set on the hub; or a URL (http, https, s3, gs, ...),
    with WebDataset's ``{000..099}`` or, where the server can list, a glob or a folder. number: its place among the
    sources (0 for held-out text). files: a glob inside a folder or data set, whose ``*`` crosses folders. format:
    ``auto`` goes by the ending; a remote tokenised shard must be named as such, and text and token ids do not stand in
    one source. revision: of a hub data set. exclude_domains: documents of these are left out. on_damage: ``raise``, or
    ``skip`` damaged files and record them. on_no_text: ``skip`` records without text, or ``raise`` RegrowError.
    """

    path: str
    number: int = 0
    files: str = "**"
    format: str = "auto"
    revision: str | None = None
    text_key: str = "text"
    exclude_domains: tuple[str, ...] = ()
    on_damage: str = "raise"
    on_no_text: str = "skip"

    def shard(self, **found: Any) -> Shard:
        """A file of this source: what is known of all of them, and what was ``found`` of it."""
        unknown = {"revision": None, "sha256": None, "etag": None, "documents": None, "groups": None}
        return Shard(
            source=self.number,
            text_key=self.text_key,
            exclude_domains=tuple(self.exclude_domains),
            on_no_text=self.on_no_text,
            **{**unknown, **found},
        )


def may_be_remote(path: str) -> bool:
    """Whether a source that is not here can be a URL or a data set on the hub."""
    return "://" in path or HUB_NAME.fullmatch(path) is not None


def no_such_place(path: str) -> RegrowError:
    """The error for a source that is neither here nor can be elsewhere."""
    return RegrowError(
        f"data source {path!r}: no such file or folder, and not the name of a hub data set or a URL. If it was moved, "
        "put a link at its old place: a run goes on through it"
    )
