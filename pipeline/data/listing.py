"""Listing: every shard of one source, once, pinned by what tells its bytes from others.

Local files are decoded whole, counted and hashed, so that damage is met here and not in the middle of a run. Remote
files are pinned by what the hub or the server says of them; of remote parquet the footers are read. A listing that is
killed and started again goes on behind the files that were decoded, the URLs whose server answered and the footers
that were read; damaged files are looked at again, and the hub is asked for its tree anew. While a local file is
decoded it is searched for held-out documents.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.data.catalogue import list_hub, list_urls
from pipeline.data.columns import NO_ROWS, row_groups, text_path
from pipeline.data.damage import DamagedShard
from pipeline.data.documents import Census, add_up, check_documents, format_of, read_records
from pipeline.data.overlap import Search, Twins
from pipeline.data.progress import Progress
from pipeline.data.remote import NoRanges, locate, patiently
from pipeline.data.row_groups import NotParquet, parse_footer, read_footer, row_counts
from pipeline.data.shards import Shard, without_secrets
from pipeline.data.texts import counted, refuse_no_text
from pipeline.data.tokenised import is_tokenised
from pipeline.run import RegrowError, hash_file

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ENDINGS = ".jsonl(.zst, .gz), .parquet or .tar"


@dataclass(frozen=True)
class Listing:
    """One source: its shards by name, the damaged ones that were left out (``{"shard", "reason"}``), and a census.

    ``census`` sums the local files; None where there are none, since nobody has read the others yet. ``twins`` are the
    shards that hold documents which are held out too.
    """

    shards: list[Shard]
    skipped: list[dict[str, str]]
    census: Census | None
    twins: list[tuple[Shard, Twins]]


def list_source(
    path: str,
    *,
    source: int = 0,
    files: str = "**",
    format: str = "auto",
    revision: str | None = None,
    text_key: str = "text",
    exclude_domains: Sequence[str] = (),
    on_damage: str = "raise",
    on_no_text: str = "skip",
    hash_of: Callable[[Path], str] = hash_file,
    held_out: Mapping[bytes, str] | None = None,
    done: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    attempts: int = 8,
    wait: float = 1.0,
) -> Listing:
    """Every shard of one source, in the natural order of their names (chunk2 before chunk10).

    path: a local folder, glob or file; ``owner/name`` of a data set on the hub; or a URL (http, https, s3, gs, ...),
    with WebDataset's ``{000..099}`` or, where the server can list, a glob or a folder. files: a glob inside a folder
    or data set, whose ``*`` crosses folders. format: ``auto`` goes by the ending; a remote tokenised shard must be
    named as such, and text and token ids do not stand in one source. on_damage: ``raise``, or ``skip`` damaged files
    and record them. on_no_text: ``skip`` records without text, or ``raise`` RegrowError (remote text is not read yet).
    A parquet file without a row is left out and recorded. held_out: the documents that local text is searched for, as
    ``overlap.held_out_hashes`` gives them. attempts, wait: see ``remote.patiently``. Raises RegrowError when there is
    nothing, or text beside ids; DamagedShard when a shard is damaged.
    """
    common = {
        "source": source,
        "text_key": text_key,
        "exclude_domains": tuple(exclude_domains),
        "on_no_text": on_no_text,
    }
    format_for = format_of if format == "auto" else lambda name: format
    patience = {"attempts": attempts, "wait": wait, "say": say}
    search = Search(held_out or {}, exclude_domains)
    found: Iterable[tuple[Shard, dict[str, Any]]]
    local = None if "://" in path else local_files(path, files)
    if local is not None:
        found = _survey_local(*local, format == "auto", format_for, common, hash_of, search, done, say)
    elif "://" in path:
        found = _survey_remote(list_urls(path, files, format_for, common, patience, done), done, patience)
    elif may_be_remote(path):
        found = _survey_remote(list_hub(path, revision, files, format_for, common, patience), done, patience)
    else:
        raise no_such_place(path)

    shards: list[Shard] = []
    skipped: list[dict[str, str]] = []
    census: list[Census] = []
    twins: list[tuple[Shard, Twins]] = []
    lacking: list[tuple[str, Census]] = []
    for shard, entry in found:
        if "damage" in entry and on_damage == "raise":
            raise DamagedShard(entry["damage"])
        if "damage" in entry or "empty" in entry:
            reason = entry.get("damage") or entry["empty"]
            say(f"skipped: {reason}")
            skipped.append({"shard": shard.name, "reason": reason})
            continue
        shards.append(shard)
        census += [Census(**entry["census"])] if "census" in entry else []
        if shard.without_text and on_no_text == "raise":
            what = f"{counted(census[-1].without_text)}, the first"
            raise refuse_no_text(shard.name, census[-1].first_without_text, what)
        twins += [(shard, Twins(**entry["twins"]))] if entry.get("twins", {}).get("count") else []
        lacking += [(shard.name, census[-1])] if shard.without_text else []
    if not shards:
        left_out = f"; {len(skipped)} damaged or empty ones were skipped" if skipped else ""
        raise RegrowError(
            f"data source {without_secrets(path)!r}: no intact {ENDINGS} file in it (files: {files!r}){left_out}"
        )
    if lacking:
        _tell_no_text(lacking, add_up(census), without_secrets(path), say)
    return Listing(shards, skipped, add_up(census) if census else None, twins)


def _tell_no_text(
    lacking: Sequence[tuple[str, Census]], whole: Census, source: str, say: Callable[[str], None]
) -> None:
    """Say how many records of a source have no text; RegrowError where it has no others."""
    name, first = lacking[0][0], lacking[0][1].first_without_text
    files = f"{len(lacking)} file{'s' * (len(lacking) > 1)}"
    if sum(whole.without_text.values()) == whole.documents:
        raise RegrowError(f"data source {source!r}: not one record with text; it has {counted(whole.without_text)}")
    say(f"left out: {counted(whole.without_text)} in {files}; the first is record {first} of {name}")


def may_be_remote(path: str) -> bool:
    """Whether a source that is not here can be a URL or a data set on the hub."""
    return "://" in path or HUB_NAME.fullmatch(path) is not None


def no_such_place(path: str) -> RegrowError:
    """The error for a source that is neither here nor can be elsewhere."""
    return RegrowError(
        f"data source {path!r}: no such file or folder, and not the name of a hub data set or a URL. If it was moved, "
        "put a link at its old place: a run goes on through it"
    )


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


def _survey_local(
    base: Path,
    names: Sequence[str],
    auto: bool,
    format_for: Callable[[str], str | None],
    common: dict[str, Any],
    hash_of: Callable[[Path], str],
    search: Search,
    done: Progress | None,
    say: Callable[[str], None],
) -> Iterable[tuple[Shard, dict[str, Any]]]:
    """(shard, entry of the progress) of each local file that has a format."""
    kinds = {name: kind for name in names if (kind := format_for(name)) is not None}
    if auto:
        ids = [name for name, kind in kinds.items() if kind == "tar" and is_tokenised(base / name)]
        kinds.update(dict.fromkeys(ids, "tokenised"))
        _refuse_text_beside_ids(base, kinds, common["text_key"])
    for number, (name, kind) in enumerate(kinds.items(), start=1):
        path = base / name
        state = path.stat()
        key = f"{path.absolute()} {state.st_size} {state.st_mtime_ns} {kind} {common['text_key']}"
        entry = done.known.get(key) if done else None
        was_damaged = entry is not None and "damage" in entry
        # An earlier release did not count what has no text.
        counted_all = entry is not None and "without_text" in entry.get("census", {})
        if not counted_all or search.mark not in (None, entry.get("searched")):
            say(f"shard {number} of {len(kinds)}: {name}")
            # A repair may keep size and time, by which a hash is remembered as well.
            hashed = hash_file if was_damaged else hash_of
            entry = {"key": key} | _examine(path, kind, common["text_key"], hashed, search)
            if done:
                done.keep(entry)
        shard = Shard(
            **common,
            place=str(base),
            path=name,
            kind="local",
            revision=None,
            format=kind,
            bytes=state.st_size,
            sha256=None,
            etag=None,
            documents=None,
            groups=None,
        )
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


def _refuse_text_beside_ids(base: Path, kinds: Mapping[str, str], text_key: str) -> None:
    """A source is either: ids beside text are mostly those that were made of it, and would be read a second time.

    A tar that does not give one text is no text beside ids: it is damaged, which decoding it will tell.
    """
    ids = next((name for name, kind in kinds.items() if kind == "tokenised"), None)
    if ids is None:
        return
    for text in (name for name, kind in kinds.items() if kind != "tokenised"):
        if kinds[text] == "tar":
            try:
                next(read_records(base / text, "tar", text_key))
            except DamagedShard:
                continue
        raise RegrowError(
            f"data source {str(base)!r} mixes text ({text}) and token ids ({ids}). Where the ids were made of this "
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


def _survey_remote(
    shards: Sequence[Shard], done: Progress | None, patience: dict[str, Any]
) -> Iterable[tuple[Shard, dict[str, Any]]]:
    """(shard, entry of the progress) of each remote file; parquet with the documents of its row groups."""
    for number, shard in enumerate(sorted(shards, key=lambda shard: natural(shard.path)), start=1):
        if shard.bytes == 0:
            yield shard, {"damage": f"shard {shard.name}: empty, 0 bytes; replace it or leave it out"}
        elif shard.format != "parquet":
            yield shard, {}
        else:
            key = f"{shard.name} {shard.revision} {shard.bytes} {shard.sha256 or shard.etag} {shard.text_key}"
            entry = done.known.get(key) if done else None
            if entry is None or "damage" in entry:
                patience["say"](f"footer {number} of {len(shards)}: {shard.name}")
                entry = {"key": key} | _count_groups(shard, patience)
                if done and "damage" not in entry:
                    done.keep(entry)
            groups = None if entry.get("groups") is None else tuple(entry["groups"])
            documents = None if groups is None else sum(groups)
            yield replace(shard, groups=groups, documents=documents), entry


def _count_groups(shard: Shard, patience: dict[str, Any]) -> dict[str, Any]:
    file_system, path = locate(shard)
    try:
        footer = patiently(f"shard {shard.name}", lambda: read_footer(file_system, path, shard.bytes), **patience)
        metadata = parse_footer(footer)
        groups = row_counts(metadata)
    except NoRanges:
        return {"groups": None}  # It is fetched whole.
    except NotParquet as error:
        return {"damage": f"shard {shard.name}: {error}; replace it at its source or leave it out"}
    if not sum(groups):
        return {"empty": f"shard {shard.name}: {NO_ROWS}"}
    text_path(metadata.schema.to_arrow_schema(), shard.text_key, shard.name)
    return {"groups": groups}
