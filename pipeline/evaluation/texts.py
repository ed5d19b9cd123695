"""Texts to compute a perplexity on: local files, or a data set on the hub, document by document.

Every document of a text counts, the empty ones too: joined, they are part of the text that papers measure. A local file
is plain text, one document, or a shard of jsonl, parquet or tar. What is on the hub is read through the library
``datasets``, only as far as it is needed; where it cannot be had, that is ``Unavailable``, which need not end a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.corpus.local import local_files
from pipeline.data.formats.documents import format_of, read_records
from pipeline.data.shards import without_secrets
from pipeline.data.sources import ENDINGS, beside
from pipeline.data.texts import NoText
from pipeline.errors import RegrowError, first_line

#: Endings of files that hold one document as it is; WikiText's own files have the last two.
PLAIN = (".txt", ".raw", ".tokens")


class Unavailable(RegrowError):
    """A text on the hub that cannot be had."""


@dataclass(frozen=True)
class TextPlace:
    """Where a text is: ``path`` (a local folder, glob or file) or ``dataset`` (on the hub, with ``subset``, ``split``
    and ``revision``, as ``datasets.load_dataset`` takes them). ``column``: the field that holds a document's text.
    ``key``: of the config, where it stands there; messages name it.
    """

    key: str
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    column: str = "text"

    @property
    def about(self) -> dict[str, str | None]:
        """What the text is, as it was asked for."""
        if self.path is not None:
            return {"path": self.path}
        return {name: getattr(self, name) for name in ("dataset", "subset", "split", "revision")}


def local_texts(place: TextPlace) -> list[Path]:
    """The files of a local text in their natural order. RegrowError where the path is not there, or has none."""
    here = local_files(place.path, "**")
    if here is None:
        raise RegrowError(f"{place.key}.text {place.path!r}: no such file or folder; mend the path")
    base, names = here
    paths = [base / name for name in names if not beside(name) and (name.endswith(PLAIN) or format_of(name))]
    if not paths:
        endings = ", ".join((*ENDINGS, *PLAIN))
        raise RegrowError(f"{place.key}.text {place.path!r}: no file in it that ends in one of {endings}")
    return paths


def documents(place: TextPlace) -> Iterator[str]:
    """The documents of a text in order. RegrowError on a local one that cannot be read or a record without a string;
    Unavailable where something on the hub cannot be had."""
    if place.path is None:
        yield from _of_hub(place)
        return
    for path in local_texts(place):
        if path.name.endswith(PLAIN):
            yield _plain(path)
            continue
        for index, text, _ in read_records(path, format_of(path.name), place.column):
            if isinstance(text, NoText):
                raise RegrowError(
                    f"{place.key}.text: record {index} of {path} has no text under {place.column!r} ({text.kind}); it "
                    f"has {', '.join(text.keys) or 'no keys'}; set {place.key}.column, or leave the record out"
                )
            yield text


def _plain(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise RegrowError(f"{path}: not UTF-8 at byte {error.start}; write it as UTF-8") from None


def _of_hub(place: TextPlace) -> Iterator[str]:
    """Streamed, so that a split of many files is not fetched whole; offline from the library's own cache."""
    from datasets import config, load_dataset

    try:
        rows = load_dataset(
            place.dataset,
            place.subset,
            split=place.split,
            revision=place.revision,
            streaming=not config.HF_HUB_OFFLINE,
        )
        for row in rows:
            if not isinstance(row.get(place.column), str):
                raise Unavailable(
                    f"data set {place.dataset} has no text under {place.column!r} in every row; it has {', '.join(row)}"
                )
            yield row[place.column]
    except Unavailable:
        raise
    # The library passes on what its readers, the hub's client and the network raise.
    except Exception as error:
        reason = f"{type(error).__name__}: {without_secrets(first_line(error))}"
        raise Unavailable(f"data set {place.dataset} cannot be had ({reason})") from None
