"""Tokenised shards: documents as token ids, read with a seek.

A tokenised shard is a WebDataset tar. A sample is a block of whole documents: KEY.json says what they are,
KEY.offsets.npy where each begins, KEY.tokens.npy holds them end to end. Documents, not rows, so that the row length
may change. The json holds the sha256 of the arrays and of itself: a reader that seeks sees every flip in what it uses.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.data.damage import naming, require_documents
from pipeline.data.formats.tar import members, read_member
from pipeline.errors import RegrowError
from pipeline.files import hash_json, replacing

#: Tokens, and documents, after which a block is closed: 2 or 4 MiB.
BLOCK = 1 << 20
#: Counted up when files of before can no longer be read.
FORMAT = 1
#: The names of a block's members, in the order in which they stand.
MEMBERS = ("json", "offsets.npy", "tokens.npy")


def write_tokenised(path: Path, documents: Iterable[Sequence[int]], *, about: Mapping[str, Any]) -> int:
    """Write documents as a tokenised shard and return how many there were; ``path`` appears whole or not at all.

    ``about`` goes into every block and comes back from ``about_tokenised``; its ``vocabulary`` is the number of
    token ids and chooses uint16 or uint32. A document without tokens keeps the number of one that is left out. The
    same documents give the same bytes. Raises RegrowError when there is no document, or an id is outside of the
    vocabulary, or the file cannot be written.
    """
    from webdataset import TarWriter

    number = first = size = 0
    held: list[np.ndarray] = []
    with replacing(path) as temporary, temporary.open("wb") as file:
        with TarWriter(file, user="regrow", group="regrow", mode=0o644, mtime=0, compress=False, encoder=False) as tar:
            for document in documents:
                held.append(np.asarray(document, dtype=np.int64))
                size += len(held[-1]) + 1
                if size > BLOCK:
                    tar.write(_block(number, first, held, about))
                    number, first, size, held = number + 1, first + len(held), 0, []
            if held:
                tar.write(_block(number, first, held, about))
        if first + len(held) == 0:
            raise RegrowError(f"{path}: not one document to write")
    return first + len(held)


def _block(number: int, first: int, documents: list[np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
    """A block as a sample for TarWriter."""
    vocabulary = about["vocabulary"]
    tokens = np.concatenate(documents)
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        place = int(np.flatnonzero((tokens < 0) | (tokens >= vocabulary))[0])
        document = first + int(np.searchsorted(offsets, place, side="right")) - 1
        raise RegrowError(
            f"document {document} has token id {tokens[place]}, and the vocabulary has {vocabulary}; "
            "the tokenizer and its size do not belong together"
        )
    arrays = {
        "offsets.npy": _npy(offsets),
        "tokens.npy": _npy(tokens.astype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)),
    }
    entry = {
        "tokenised": FORMAT,
        "block": number,
        "first": first,
        "documents": len(documents),
        "tokens": len(tokens),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in arrays.items()},
        "about": dict(about),
    }
    entry["hash"] = hash_json(entry)
    return {"__key__": f"{number:06d}", "json": json.dumps(entry, indent=1).encode(), **arrays}


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def read_tokenised(path: Path, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(index, ids) of every document from ``first`` on that has tokens, in file order.

    The ids are a read-only view (tokens,) of the mapped file, uint16 or uint32. Every open reads the headers of all
    blocks once and checks the blocks that it enters against their sha256; documents before ``first`` cost nothing.
    Raises DamagedShard.
    """
    index = 0
    with naming(path, lambda: index), path.open("rb") as file:
        blocks = _blocks(file)
        index = sum(block.documents for block in blocks)
        require_documents(path, index, first)
        for block in blocks[max(0, bisect_right(blocks, first, key=lambda block: block.first) - 1) :]:
            index = block.first
            offsets, tokens = block.open(file)
            skipped = max(0, first - block.first)
            for index, (begin, end) in enumerate(pairwise(offsets[skipped:].tolist()), start=block.first + skipped):
                if begin < end:
                    yield index, tokens[begin:end]


def about_tokenised(path: Path) -> dict[str, Any]:
    """What the writer was told, and ``documents`` and ``tokens``; no token is read. Raises DamagedShard."""
    with naming(path, lambda: 0), path.open("rb") as file:
        blocks = _blocks(file)
    require_documents(path, sum(block.documents for block in blocks), 0)
    return {
        **blocks[0].about,
        "documents": sum(block.documents for block in blocks),
        "tokens": sum(block.tokens for block in blocks),
    }


def check_tokenised(path: Path) -> dict[str, Any]:
    """As ``about_tokenised``, after checking every block's arrays. Raises DamagedShard."""
    for _ in read_tokenised(path):
        pass
    return about_tokenised(path)


def require_same_ids(path: Path, name: str, about: Mapping[str, Any]) -> None:
    """RegrowError where shard ``name``, at ``path``, was made by another tokenizer, BOS or separator than ``about``, or
    took special tokens' strings for something else."""
    was = about_tokenised(path)
    for key in ("tokenizer", "bos", "separator", "special_tokens"):
        if was.get(key) != about[key]:
            had = was.get(key, "none, as an earlier release made it")
            raise RegrowError(
                f"shard {name}: tokenised with another {key} (it has {had}, the model and the config "
                f"give {about[key]}); tokenise its text anew"
            )


def is_tokenised(path: Path) -> bool:
    """Whether a tar begins with the members of a block: by the json of the first or, where that does not say so any
    more, by the name of the second; a look at its first bytes, no check of the rest."""
    with naming(path, lambda: 0), path.open("rb") as file:
        try:
            archive = members(file)
            first = next(archive, None)
            if first is None:
                return False
            told = "tokenised" in json.loads(read_member(file, first))
            return told or next(archive, first).name == f"{0:06d}.{MEMBERS[1]}"
        except (ValueError, TypeError, EOFError, RecursionError, tarfile.TarError):
            return False


@dataclass(frozen=True)
class _Block:
    """A block's json, and of each array: first byte, size and sha256."""

    number: int
    first: int
    documents: int
    tokens: int
    about: dict[str, Any]
    arrays: dict[str, tuple[int, int, str]]

    def open(self, file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, tokens), mapped and checked."""
        offsets, tokens = (self._array(file, name) for name in MEMBERS[1:])
        return offsets, tokens

    def _array(self, file: BinaryIO, name: str) -> np.ndarray:
        offset, size, sha256 = self.arrays[name]
        data = np.memmap(file, np.uint8, "r", offset, (size,))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"block {self.number}: {name} at byte {offset} is not what was written (sha256 differs)")
        head = io.BytesIO(data[:256])
        np.lib.format.read_magic(head)
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
        return np.frombuffer(data, dtype, shape[0], head.tell())


def _blocks(file: BinaryIO) -> list[_Block]:
    """Every block of a file, none left out: their numbers, their documents and the archive's end are checked."""
    blocks: list[_Block] = []
    documents = 0
    found: list[tarfile.TarInfo] = []
    for member in members(file):
        name = f"{len(blocks):06d}.{MEMBERS[len(found)]}"
        if member.name != name:
            raise ValueError(f"the member at byte {member.offset} is {member.name!r}, {name} is due")
        found.append(member)
        if len(found) == len(MEMBERS):
            block = _read_block(file, found)
            if (block.number, block.first) != (len(blocks), documents):
                raise ValueError(f"block {len(blocks)}: its json at byte {found[0].offset} is of another block")
            blocks.append(block)
            documents += block.documents
            found = []
    if found:
        raise ValueError(f"block {len(blocks)}, at byte {found[0].offset}, is not whole")
    return blocks


def _read_block(file: BinaryIO, found: Sequence[tarfile.TarInfo]) -> _Block:
    """A block from its three members; the arrays are not read."""
    place = f"{found[0].name} at byte {found[0].offset}"
    entry = json.loads(read_member(file, found[0]))
    if not isinstance(entry, dict) or entry.pop("hash", None) != hash_json(entry):
        raise ValueError(f"{place} is not what was written (its hash differs)")
    if entry["tokenised"] != FORMAT:
        raise RegrowError(f"{file.name}: tokenised in format {entry['tokenised']}, this is {FORMAT}; tokenise it anew")
    arrays = {
        name: (member.offset_data, member.size, entry["sha256"][name])
        for name, member in zip(MEMBERS[1:], found[1:], strict=True)
    }
    return _Block(entry["block"], entry["first"], entry["documents"], entry["tokens"], entry["about"], arrays)
