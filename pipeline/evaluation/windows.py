"""From a text to rows of tokens: joined or document by document, cut with or without overlap, under a BOS policy.

Rows begin at the text's first token and every ``stride`` tokens of text after it. What is left at the end, too short
for a row, is dropped, as in the code of papers. With overlap a row's tokens that an earlier row had are context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.corpus.calibration import encoded, leading_ids
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError

#: Characters that are read at first for each token that is wanted: more than most texts need, so that they are encoded
#: once.
CHARACTERS = 8
#: Tokens at the end of a text that was not read whole which what follows might have made others.
MARGIN = 64
#: What WikiText-2 (but its raw form) and PTB have in the place of rare words.
UNKNOWN = "<unk>"


class TooShort(RegrowError):
    """A text of not one whole row."""


@dataclass(frozen=True)
class Protocol:
    """How a text becomes rows.

    ``length``: tokens in a row, its BOS included. ``stride``: tokens of text between the beginnings of rows; None: no
    overlap. ``bos``: ``document`` has one where the text (or, unjoined, each document) begins, if the tokenizer puts
    one before a text by itself; ``every`` begins each row with one and has none elsewhere; ``none`` has none at all.
    ``rows``: the first so many; None takes all. ``join``: what stands between documents, which then are one text
    without a separator; None: each is encoded by itself and ended by the separator, as in training.
    """

    length: int
    stride: int | None = None
    bos: str = "document"
    rows: int | None = None
    join: str | None = "\n\n"

    def cut(self, encoder: Encoder, key: str) -> tuple[list[int], int, int]:
        """What each row begins with, its tokens of text, and the tokens of text from row to row.

        ``key``: of the config, for messages. RegrowError: no BOS token for ``every``, or a stride that would leave
        tokens out.
        """
        leading = leading_ids(encoder, self.bos, f"{key}.bos")
        room = self.length - len(leading)
        stride = room if self.stride is None else self.stride
        if not 1 <= stride <= room:
            raise RegrowError(f"{key}.stride {stride}: a row has {room} tokens of text; set at most that")
        return leading, room, stride


@dataclass(frozen=True)
class TextRows:
    """``rows`` (N, length) int64; ``counted_from`` (N,) int64, the place of each row's first target; ``about``: the
    protocol and what was read, as results.json holds them."""

    rows: torch.Tensor
    counted_from: torch.Tensor
    about: dict[str, Any]


def text_rows(documents: Iterable[str], encoder: Encoder, protocol: Protocol, key: str) -> TextRows:
    """The rows of a text, read only as far as they need it.

    ``key``: of the config, for messages. ``about``: ``stride`` (tokens of text between rows), ``bos``, ``left_over``
    (tokens at the text's end in no row; None where the asked rows ended it) and ``text``: ``sha256`` of what was read
    (UTF-8; documents with what joins them, or each with a NUL behind it), its ``documents``, ``join``, ``form``
    (``tokenised`` where ``<unk>`` stands in it, else ``raw``) and ``unknown``, how often. RegrowError as ``cut``;
    TooShort for a text of not one whole row.
    """
    leading, room, stride = protocol.cut(encoder, key)
    wanted = None if protocol.rows is None else room + (protocol.rows - 1) * stride
    read = _Read(documents, protocol.join)
    make = _ids_apart if protocol.join is None else _ids_joined
    ids = torch.from_numpy(np.asarray(make(read, encoder, protocol.bos, wanted), dtype=np.int64))
    if len(ids) < room:
        raise TooShort(
            f"{key}: {len(ids):,} tokens in all, not one row of {protocol.length:,}; lower {key}.length, or give it "
            "more text"
        )
    rows = ids.unfold(0, room, stride)[: protocol.rows]
    # A row of text alone has no target at its first token, since nothing stands before it.
    counted_from = torch.full((len(rows),), max(1, protocol.length - stride))
    counted_from[0] = 1
    whole = protocol.rows is None or len(rows) < protocol.rows
    about = {
        "stride": stride,
        "bos": protocol.bos,
        "left_over": len(ids) - (len(rows) - 1) * stride - room if whole else None,
        "text": read.about,
    }
    return TextRows(torch.cat([torch.tensor(leading).expand(len(rows), -1), rows], dim=1).long(), counted_from, about)


class _Read:
    """Documents, with a note of what was read of them."""

    def __init__(self, documents: Iterable[str], join: str | None):
        self._documents, self._join = iter(documents), join
        self._sha256 = hashlib.sha256()
        self._count = self._unknown = 0

    def __iter__(self) -> Iterator[str]:
        """Each document; joined, with what stands before it."""
        for document in self._documents:
            piece = document if self._join is None or self._count == 0 else self._join + document
            self._count += 1
            self._unknown += document.count(UNKNOWN)
            self._sha256.update(piece.encode() + (b"\0" if self._join is None else b""))
            yield piece

    @property
    def about(self) -> dict[str, Any]:
        return {
            "sha256": self._sha256.hexdigest(),
            "documents": self._count,
            "join": self._join,
            "form": "tokenised" if self._unknown else "raw",
            "unknown": self._unknown,
        }


def _ids_apart(read: _Read, encoder: Encoder, bos: str, wanted: int | None) -> list[int]:
    """[BOS] document SEPARATOR, end to end."""
    ids: list[int] = []
    for document in read:
        own = encoded(document, encoder, bos)
        ids += own
        if wanted is not None and len(ids) >= wanted:
            break
    return ids


def _ids_joined(read: _Read, encoder: Encoder, bos: str, wanted: int | None) -> list[int]:
    """[BOS] and the whole text's ids, encoded at once: how it is split into documents leaves no trace in them.

    Where a text goes on behind what is wanted, it is read further, so that the wanted ids are those of the whole text.
    """
    pieces: list[str] = []
    enough = None if wanted is None else CHARACTERS * wanted
    first = [encoder.bos] if bos == "document" and encoder.bos is not None else []
    characters = 0
    for piece in read:
        pieces.append(piece)
        characters += len(piece)
        if enough is not None and characters >= enough:
            ids = _encode(pieces, encoder)
            if len(first) + len(ids) >= wanted + MARGIN:
                return first + ids
            enough *= 2
    return first + _encode(pieces, encoder)


def _encode(pieces: list[str], encoder: Encoder) -> list[int]:
    return next(encoder.inside(["".join(pieces)]))
