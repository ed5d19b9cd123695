"""Catalogue: what files the hub or a server has, and what they say of each.

A hub data set is pinned to one commit, whose tree gives the size and the sha256 (or git blob id) of every file. A
file at a URL is pinned by the size and the ETag that its server gives. Of parquet files the footers are read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from pipeline.data.formats.documents import format_for
from pipeline.data.formats.parquet import NO_ROWS, text_paths
from pipeline.data.progress import Progress
from pipeline.data.remote.row_groups import NotParquet, parse_footer, read_footer, row_counts
from pipeline.data.remote.servers import NoRanges, Patience, locate, open_url, state_of
from pipeline.data.shards import Shard, without_secrets
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError

#: Files that are asked after at a time: one after the other, 59,166 would take an hour.
AT_ONCE = 8
#: Answers after which a line says how many came.
LINE_AFTER = 1000


def list_hub(source: TextSource, patience: Patience) -> list[Shard]:
    """The shards of a data set on the hub, at the commit of the source's revision or the newest."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, name, files = HfApi(), source.path, source.files
    what = f"{source.name} (not a local path, so a data set on the hub)"
    commit = patience(what, lambda: api.dataset_info(name, revision=source.revision).sha)

    def tree() -> list[RepoFile]:
        entries = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
        return [entry for entry in entries if isinstance(entry, RepoFile)]

    return [
        source.shard(
            place=name,
            path=entry.path,
            kind="hub",
            revision=commit,
            format=kind,
            bytes=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            etag=None if entry.lfs else entry.blob_id,
        )
        for entry in patience(what, tree)
        if (kind := format_for(source, entry.path)) is not None and (files == "**" or fnmatchcase(entry.path, files))
    ]


def list_urls(source: TextSource, patience: Patience, done: Progress | None) -> list[Shard]:
    """The shards at a URL, which may hold braces or a glob, or name a folder, in which ``files`` is a glob.

    ``done`` keeps what the server says of each address; what it said before is not asked again.
    """
    found = _expand(source, patience)
    place = _common_folder([address for address, _ in found])

    def ask(address: str) -> dict[str, Any]:
        size, etag = patience(without_secrets(address), lambda: state_of(*open_url(address)))
        return {"key": _key(address), "bytes": size, "etag": etag}

    known = dict(done.known) if done else {}
    unknown = [address for address, _ in found if _key(address) not in known]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, answer in enumerate(pool.map(ask, unknown), start=1):
            known[answer["key"]] = answer
            if done:
                done.keep(answer)
            if number % LINE_AFTER == 0:
                patience.say(f"{number} of {len(unknown)} files asked after at {without_secrets(place)}")
    return [
        source.shard(
            place=place,
            path=address[len(place) + 1 :],
            kind="url",
            format=kind,
            bytes=known[_key(address)]["bytes"],
            etag=known[_key(address)]["etag"],
        )
        for address, kind in found
    ]


def _key(address: str) -> str:
    """The address in the progress: its query may be secret, and may tell one file from another."""
    return f"url {without_secrets(address)} {hashlib.sha256(address.encode()).hexdigest()[:20]}"


def _expand(source: TextSource, patience: Patience) -> list[tuple[str, str]]:
    """(address, format) of every file that the source's URL means."""
    from braceexpand import braceexpand

    url, files = source.path, source.files

    # In a web address a question mark begins the query; elsewhere it is part of a glob.
    web = url.startswith(("http://", "https://"))
    bare, mark, query = url.partition("?") if web else (url, "", "")
    magic = re.compile(r"[*\[]" if web else r"[*?\[]")
    named: list[tuple[str, str]] = []
    for address in braceexpand(bare):
        kind = format_for(source, address)
        if magic.search(address):
            _, found = _ask(address, "glob", patience)
        elif kind is None or address.endswith("/"):
            folder, inside = _ask(address.rstrip("/") + "/", "find", patience)
            found = [name for name in inside if files == "**" or fnmatchcase(name.removeprefix(folder), files)]
        else:
            found = [address]
        named += [(name + mark + query, kind) for name in found if (kind := format_for(source, name)) is not None]
    if not named:
        raise RegrowError(
            f"{source.name}: no shard found there; check the address, the braces or the glob, "
            "and whether the server can list its files"
        )
    return named


def _ask(address: str, question: str, patience: Patience) -> tuple[str, list[str]]:
    """(full address of the folder, those of the files) that ``glob`` or ``find`` of the file system gives."""
    file_system, path = open_url(address)
    names = patience(without_secrets(address), lambda: getattr(file_system, question)(path))
    folder = file_system.unstrip_protocol(path).rstrip("/") + "/"
    return folder, [file_system.unstrip_protocol(name) for name in names]


def _common_folder(addresses: list[str]) -> str:
    """The folder, as far as all addresses share it; never less than the host."""
    folders = [address.partition("?")[0].split("/")[:-1] for address in addresses]
    shared = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    if len(shared) < 3:
        raise RegrowError("one source cannot lie on several hosts; make it several sources")
    return "/".join(shared)


def look_into(
    shards: Sequence[Shard], patience: Patience, done: Progress | None
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """(shard, entry of the progress) of each remote file; parquet with the documents of its row groups."""
    for number, shard in enumerate(shards, start=1):
        if shard.bytes == 0:
            yield shard, {"damage": f"shard {shard.name}: empty, 0 bytes; replace it or leave it out"}
        elif shard.format != "parquet":
            yield shard, {}
        else:
            key = f"{shard.name} {shard.revision} {shard.bytes} {shard.sha256 or shard.etag} {shard.text_key}"
            entry = done.known.get(key) if done else None
            if entry is None or "damage" in entry:
                patience.say(f"footer {number} of {len(shards)}: {shard.name}")
                entry = {"key": key} | _count_groups(shard, patience)
                if done and "damage" not in entry:
                    done.keep(entry)
            groups = None if entry.get("groups") is None else tuple(entry["groups"])
            documents = None if groups is None else sum(groups)
            yield replace(shard, groups=groups, documents=documents), entry


def _count_groups(shard: Shard, patience: Patience) -> dict[str, Any]:
    file_system, path = locate(shard)
    try:
        footer = patience(f"shard {shard.name}", lambda: read_footer(file_system, path, shard.bytes))
        metadata = parse_footer(footer)
        groups = row_counts(metadata)
    except NoRanges:
        return {"groups": None}  # It is fetched whole.
    except NotParquet as error:
        return {"damage": f"shard {shard.name}: {error}; replace it at its source or leave it out"}
    if not sum(groups):
        return {"empty": f"shard {shard.name}: {NO_ROWS}"}
    text_paths(metadata.schema.to_arrow_schema(), shard.text_key, shard.name)
    return {"groups": groups}
