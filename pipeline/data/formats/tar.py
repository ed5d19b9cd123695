"""WebDataset tars: a document is a sample, its text in the member KEY.txt or under a key of KEY.json.

tarfile and webdataset take a cut at a header, a damaged header or a zeroed block for the end of the archive, and hand
out the last sample with a member missing. Here an archive ends with its end marker and nothing else, and every sample
has the members that the first one has.
"""

from __future__ import annotations

import gzip
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.data.damage import BadRecord, DamagedShard, naming, require_documents
from pipeline.data.formats.jsonl import domain_of, parse_object, why_no_utf8
from pipeline.data.instructions import Form
from pipeline.data.sources import beside
from pipeline.data.texts import NoText, text_of
from pipeline.errors import RegrowError, first_line

#: WebDataset's rule: the key ends at the first dot behind the last slash.
MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
#: WebDataset's names for what is no sample.
META = re.compile(r"__[^/]*__($|/)")
#: So many members that are not read are named.
SHOWN = 3
WANTED = "a text in UTF-8, or one JSON object,"
#: The members that are read; all others are left alone.
READ = ("txt", "json")


def read_tar(
    path: Path, text_key: str | Form = "text", first: int = 0
) -> Iterator[tuple[int, str | NoText, str | None]]:
    """(index, text, domain) of every sample from ``first`` on, in file order, of a .tar or .tar.gz.

    The text is KEY.txt, or without one ``text_key`` in KEY.json; the domain is ``meta.redpajama_set_name`` in
    KEY.json. Of the samples before ``first`` only the headers are read. Raises DamagedShard, and BadRecord where a
    member holds neither.
    """
    documents = 0
    wanted: set[str] | None = None
    others: list[str] = []
    with naming(path, lambda: documents), _open(path) as file:
        for place, contents in _samples(file, first, others):
            wanted = contents.keys() if wanted is None else wanted
            if not wanted:
                raise _no_text(path, others)
            if contents.keys() != wanted:
                has, needs = (" and ".join(sorted(names)) or "neither" for names in (contents, wanted))
                raise ValueError(f"{place} has {has} of the members {' and '.join(READ)}; it needs {needs}")
            if documents >= first:
                try:
                    record, text = _parsed(contents)
                except (ValueError, RecursionError) as error:
                    raise BadRecord.at(path, documents, place, first_line(error), WANTED) from None
                if {"tokenised", "sha256", "about"} <= record.keys():
                    # No damage, which a run may be told to skip: the config takes it for what it is not.
                    raise RegrowError(
                        f"shard {path}: it holds token ids, no text; set format: tokenised for its "
                        "source, and list text in a source of its own"
                    )
                yield documents, text_of(record, text_key) if text is None else text, domain_of(record)
            documents += 1
    if not documents and others:
        raise _no_text(path, others)
    require_documents(path, documents, first)


def _no_text(path: Path, others: Sequence[str]) -> DamagedShard:
    """The error for an archive that begins with other files than texts: pictures, or files without an ending."""
    return DamagedShard(
        f"shard {path}: a tar without text: it begins with {', '.join(others)}, and a document is a member KEY.txt or "
        "KEY.json; leave it out of the source, or take the tar that holds the texts"
    )


def count_samples(path: Path) -> int:
    """Samples of a whole archive, by their headers alone. Raises DamagedShard."""
    count = 0
    with naming(path, lambda: count), _open(path) as file:
        for _ in _samples(file, sys.maxsize):
            count += 1
    return count


def _parsed(contents: Mapping[str, bytes]) -> tuple[dict[str, Any], str | None]:
    """The object in KEY.json, empty where there is none, and the text of KEY.txt. ValueError or RecursionError names
    the member that holds something else."""
    try:
        record = parse_object(contents["json"]) if "json" in contents else {}
        return record, contents["txt"].decode() if "txt" in contents else None
    except UnicodeDecodeError as error:
        raise ValueError(f"its txt is {why_no_utf8(contents['txt'], error)}") from None
    except ValueError as error:
        raise ValueError(f"its json is {error}") from None


def members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files of an archive in order. While it is suspended, ``file`` may be read and moved.

    Raises ValueError or a TarError, with the byte, on a bad header, on anything that is neither a file nor a folder,
    and unless the archive ends with two blocks of zeros and nothing but zeros behind them.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        offset = 0
        while True:
            file.seek(offset)
            try:
                member = tarfile.TarInfo.fromtarfile(archive)
            except tarfile.EOFHeaderError:
                break
            except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):
                raise EOFError(f"the archive is cut: a header or the end marker is due at byte {offset}") from None
            except tarfile.TarError as error:
                raise ValueError(f"the header at byte {offset}: {error}") from None
            if not member.isdir():
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{member.name}, at byte {offset}, is a link, a device or a sparse file")
                yield member
            offset = archive.offset
    file.seek(offset)
    zeros = 0
    while piece := file.read(1 << 16):
        if piece.strip(b"\0"):
            at = offset + zeros + len(piece) - len(piece.lstrip(b"\0"))
            raise ValueError(f"data at byte {at}, behind the end marker at byte {offset}")
        zeros += len(piece)
    if zeros < 2 * tarfile.BLOCKSIZE:
        raise EOFError(f"the archive is cut inside its end marker, at byte {offset + zeros}")


def read_member(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member; EOFError where the file ends before them."""
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise EOFError(f"the archive is cut: {member.name} wants {member.size} bytes, {len(data)} are left")
    return data


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.endswith(".gz") else path.open("rb")


def _samples(file: BinaryIO, first: int, others: list[str] | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(where it is, contents by suffix) of every sample; before ``first`` the contents are empty bytes. ``others``
    gets the names of the first members that are not read."""
    number, key, place, contents = -1, None, "", {}
    others = [] if others is None else others
    for member in members(file):
        if beside(member.name) or META.match(member.name):
            continue
        match = MEMBER.fullmatch(member.name)
        if (match is None or match[2].lower() not in READ) and len(others) < SHOWN:
            others.append(member.name)
        if match is None:
            continue
        if match[1] != key:
            if key is not None:
                yield place, contents
            number, key, contents = number + 1, match[1], {}
            place = f"the sample {key} at byte {member.offset}"
        suffix = match[2].lower()
        if suffix in contents:
            raise ValueError(f"{place} has two members {suffix}")
        if suffix in READ:
            contents[suffix] = read_member(file, member) if number >= first else b""
    if key is not None:
        yield place, contents
