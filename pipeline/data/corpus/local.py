"""The files of a local source: named in their natural order, and each decoded once, counted, searched and hashed."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.data.corpus.overlap import Search, Twins
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import check_documents, format_for, read_records
from pipeline.data.formats.parquet import NO_ROWS, row_groups
from pipeline.data.formats.tokenised import is_tokenised
from pipeline.data.progress import Progress
from pipeline.data.shards import Shard
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError
from pipeline.files import hash_file


def natural(name: str) -> tuple[list[str | int], str]:
    """Sorting key by which chunk2 stands before chunk10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"([0-9]+)", name)], name


def local_files(path: str, files: str) -> tuple[Path, list[str]] | None:
    """(folder, names of all files in it in natural order), or None when ``path`` names nothing local."""
    root = Path(path).expanduser()
    if root.is_file():
        return root.parent, [root.name]
    if root.is_dir():
        found = (p.relative_to(root).as_posix() for p in _files_under(root))
        return root, sorted((name for name in found if files == "**" or fnmatchcase(name, files)), key=natural)
    matches = [Path(p) for p in glob.glob(str(root), recursive=True) if Path(p).is_file()]
    if matches:
        parts = root.parts
        fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
        return fixed, sorted((p.relative_to(fixed).as_posix() for p in matches), key=natural)
    return None


def _files_under(root: Path) -> Iterator[Path]:
    """Every file below a folder, also behind links. A folder is entered once, by its own name before that of a link:
    a link that leads back is no loop."""
    links, seen = [root], set()
    while links:
        links.sort(key=lambda link: natural(link.as_posix()), reverse=True)
        for name, folders, files in os.walk(links.pop()):
            folder = Path(name)
            if folder.resolve() in seen:
                folders.clear()
                continue
            seen.add(folder.resolve())
            yield from (path for file in files if (path := folder / file).is_file())
            links += [path for inside in folders if (path := folder / inside).is_symlink()]


def list_local(
    source: TextSource,
    base: Path,
    names: Sequence[str],
    *,
    search: Search,
    hash_of: Callable[[Path], str],
    done: Progress | None,
    say: Callable[[str], None],
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """(shard, entry of the progress) of each file under ``base``, one of ``names``, that has a format."""
    kinds = {name: kind for name in names if (kind := format_for(source, name)) is not None}
    if source.format == "auto":
        ids = [name for name, kind in kinds.items() if kind == "tar" and is_tokenised(base / name)]
        kinds.update(dict.fromkeys(ids, "tokenised"))
        _refuse_text_beside_ids(source, base, kinds)
    for number, (name, kind) in enumerate(kinds.items(), start=1):
        path = base / name
        state = path.stat()
        key = f"{path.absolute()} {state.st_size} {state.st_mtime_ns} {kind} {source.text_key}"
        entry = done.known.get(key) if done else None
        was_damaged = entry is not None and "damage" in entry
        # An earlier release did not count what has no text.
        counted_all = entry is not None and "without_text" in entry.get("census", {})
        if not counted_all or search.mark not in (None, entry.get("searched")):
            say(f"shard {number} of {len(kinds)}: {name}")
            # A repair may keep size and time, by which a hash is remembered as well.
            hashed = hash_file if was_damaged else hash_of
            entry = {"key": key} | _examine(path, kind, source.text_key, hashed, search)
            if done:
                done.keep(entry)
        shard = source.shard(place=str(base), path=name, kind="local", format=kind, bytes=state.st_size)
        if "census" in entry:
            groups = entry["census"]["groups"]
            shard = replace(
                shard,
                sha256=entry["sha256"],
                documents=entry["census"]["documents"],
                groups=None if groups is None else tuple(groups),
                without_text=tuple(entry["census"]["without_text"].items()),
            )
        # What an earlier search found is of no account where nothing is searched for now.
        yield shard, entry if search.mark else {**entry, "twins": {}}


def _refuse_text_beside_ids(source: TextSource, base: Path, kinds: Mapping[str, str]) -> None:
    """A source is either: ids beside text are mostly those that were made of it, and would be read a second time.

    A tar that does not give one text is no text beside ids: it is damaged, which decoding it will tell.
    """
    ids = next((name for name, kind in kinds.items() if kind == "tokenised"), None)
    if ids is None:
        return
    for text in (name for name, kind in kinds.items() if kind != "tokenised"):
        if kinds[text] == "tar":
            try:
                next(read_records(base / text, "tar", source.text_key))
            except DamagedShard:
                continue
        raise RegrowError(
            f"{source.name} mixes text ({text}) and token ids ({ids}). Where the ids were made of this "
            "text, keep data.tokenised outside of it; else make them two entries of data.sources, each with its own "
            "files (a glob)"
        )


def _examine(path: Path, kind: str, text_key: str, hash_of: Callable[[Path], str], search: Search) -> dict[str, Any]:
    """Decode, search and hash one local file; of a damaged one the entry has the ``damage`` alone, of one that is
    ``empty`` that."""
    twins = Twins()
    try:
        if kind == "parquet" and not sum(row_groups(path)):
            return {"empty": f"shard {path}: {NO_ROWS}"}
        census = check_documents(path, kind, text_key, search.watch(twins))
    except DamagedShard as error:
        return {"damage": str(error)}
    return {"sha256": hash_of(path), "census": asdict(census), "searched": search.mark, "twins": asdict(twins)}
