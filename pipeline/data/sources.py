"""Sources: what one source of a corpus is asked for, wherever it lies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.instructions import Form
from pipeline.data.shards import Shard, without_secrets
from pipeline.data.texts import counted
from pipeline.errors import RegrowError

#: Format by a file's ending.
ENDINGS = {
    ".jsonl": "jsonl",
    ".jsonl.zst": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
    ".tar": "tar",
    ".tar.gz": "tar",
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """One source of text, or of token ids.

    path: a local folder, glob or file; ``owner/name`` of a data set on the hub; or a URL (http, https, s3, gs, ...),
    with WebDataset's ``{000..099}`` or, where the server can list, a glob or a folder. number: its place among the
    sources (0 for held-out text). files: a glob inside a folder or data set, whose ``*`` crosses folders. format:
    ``auto`` goes by the ending; a remote tokenised shard must be named as such, and text and token ids do not stand in
    one source. revision: of a hub data set. exclude_domains: documents of these are left out. on_damage: ``raise``, or
    ``skip`` damaged files and record them. on_no_text: ``skip`` records without text, or ``raise`` RegrowError. key: of
    the config, where it stands there; messages name it.
    """

    path: str
    number: int = 0
    files: str = "**"
    format: str = "auto"
    revision: str | None = None
    text_key: str | Form = "text"
    exclude_domains: tuple[str, ...] = ()
    on_damage: str = "raise"
    on_no_text: str = "skip"
    key: str = "data source"

    @property
    def name(self) -> str:
        """Key and path, for messages: without what may be secret in a URL."""
        shown = without_secrets(self.path) if "://" in self.path else self.path
        return f"{self.key} {shown!r}"

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


def beside(name: str) -> bool:
    """Whether this is what macOS puts beside a file, in folders and in archives: ._NAME, whatever NAME is."""
    return name.rpartition("/")[2].startswith("._")


def no_such_place(source: TextSource) -> RegrowError:
    """The error for a source that is neither here nor can be elsewhere."""
    return RegrowError(
        f"{source.name}: no such file or folder, and not the name of a hub data set or a URL. If it was moved, "
        "put a link at its old place: a run goes on through it"
    )


def no_shard(source: TextSource, skipped: int = 0, names: Sequence[str] = ()) -> RegrowError:
    """The error for a source without a file that can be read; ``skipped`` ones were damaged or empty. ``names`` are
    those of all files in it: where none is a shard by its ending, what to set is said."""
    more, names = "", [name for name in names if not beside(name)]
    if skipped:
        more = f"; {skipped} damaged or empty ones were skipped"
    elif names and source.format == "auto":
        lines = [name for name in names if re.search(r"\.(json|ndjson)(\.gz|\.zst)?$", name)]
        shown = lines or names
        form = "format: jsonl (a JSON object a line)" if lines else "format: jsonl, tar or parquet"
        more = f"; there is {shown[0]}{', ...' if shown[1:] else ''}: if that is a shard, set the source's {form}"
    *others, last = ENDINGS
    endings = f"{', '.join(others)} or {last}"
    return RegrowError(f"{source.name}: no intact {endings} file in it (files: {source.files!r}){more}")


def no_record(source: TextSource, without_text: Mapping[str, int]) -> RegrowError:
    """The error for a source whose records all lack text; ``without_text`` counts them by what stands in its place."""
    return RegrowError(f"{source.name}: not one record with text; it has {counted(without_text)}")
