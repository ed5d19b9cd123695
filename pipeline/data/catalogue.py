"""Catalogue: what files the hub or a server has, and what they say of each.

A hub data set is pinned to one commit, whose tree gives the size and the sha256 (or git blob id) of every file. A
file at a URL is pinned by the size and the ETag that its server gives.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any

from pipeline.data.progress import Progress
from pipeline.data.remote import open_url, patiently, state_of
from pipeline.data.shards import Shard, without_secrets
from pipeline.run import RegrowError

#: Files that are asked after at a time: one after the other, 59,166 would take an hour.
AT_ONCE = 8
#: Answers after which a line says how many came.
TOLD = 1000


def list_hub(
    name: str,
    revision: str | None,
    files: str,
    format_for: Callable[[str], str | None],
    common: dict[str, Any],
    patience: dict[str, Any],
) -> list[Shard]:
    """The shards of the hub data set ``name`` under the glob ``files``, at the commit of ``revision`` or the newest."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    what = f"data source {name!r} (not a local path, so a data set on the hub)"
    commit = patiently(what, lambda: api.dataset_info(name, revision=revision).sha, **patience)

    def tree() -> list[RepoFile]:
        entries = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
        return [entry for entry in entries if isinstance(entry, RepoFile)]

    return [
        Shard(
            **common,
            place=name,
            path=entry.path,
            kind="hub",
            revision=commit,
            format=kind,
            bytes=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            etag=None if entry.lfs else entry.blob_id,
            documents=None,
            groups=None,
        )
        for entry in patiently(what, tree, **patience)
        if (kind := format_for(entry.path)) is not None and (files == "**" or fnmatchcase(entry.path, files))
    ]


def list_urls(
    url: str,
    files: str,
    format_for: Callable[[str], str | None],
    common: dict[str, Any],
    patience: dict[str, Any],
    done: Progress | None,
) -> list[Shard]:
    """The shards at a URL, which may hold braces or a glob, or name a folder, in which ``files`` is a glob.

    ``done`` keeps what the server says of each address; what it said before is not asked again.
    """
    found = _expand(url, files, format_for, patience)
    place = _common_folder([address for address, _ in found])

    def ask(address: str) -> dict[str, Any]:
        size, etag = patiently(without_secrets(address), lambda: state_of(*open_url(address)), **patience)
        return {"key": _key(address), "bytes": size, "etag": etag}

    known = dict(done.known) if done else {}
    unknown = [address for address, _ in found if _key(address) not in known]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, answer in enumerate(pool.map(ask, unknown), start=1):
            known[answer["key"]] = answer
            if done:
                done.keep(answer)
            if number % TOLD == 0:
                patience["say"](f"{number} of {len(unknown)} files asked after at {without_secrets(place)}")
    return [
        Shard(
            **common,
            place=place,
            path=address[len(place) + 1 :],
            kind="url",
            revision=None,
            format=kind,
            bytes=known[_key(address)]["bytes"],
            sha256=None,
            etag=known[_key(address)]["etag"],
            documents=None,
            groups=None,
        )
        for address, kind in found
    ]


def _key(address: str) -> str:
    """The address in the progress: its query may be secret, and may tell one file from another."""
    return f"url {without_secrets(address)} {hashlib.sha256(address.encode()).hexdigest()[:20]}"


def _expand(
    url: str, files: str, format_for: Callable[[str], str | None], patience: dict[str, Any]
) -> list[tuple[str, str]]:
    """(address, format) of every file that the URL means."""
    from braceexpand import braceexpand

    # In a web address a question mark begins the query; elsewhere it is part of a glob.
    web = url.startswith(("http://", "https://"))
    bare, mark, query = url.partition("?") if web else (url, "", "")
    magic = re.compile(r"[*\[]" if web else r"[*?\[]")
    named: list[tuple[str, str]] = []
    for address in braceexpand(bare):
        kind = format_for(address)
        if magic.search(address):
            _, found = _ask(address, "glob", patience)
        elif kind is None or address.endswith("/"):
            folder, inside = _ask(address.rstrip("/") + "/", "find", patience)
            found = [name for name in inside if files == "**" or fnmatchcase(name.removeprefix(folder), files)]
        else:
            found = [address]
        named += [(name + mark + query, kind) for name in found if (kind := format_for(name)) is not None]
    if not named:
        raise RegrowError(
            f"data source {without_secrets(url)!r}: no shard found there; check the address, the braces or the glob, "
            "and whether the server can list its files"
        )
    return named


def _ask(address: str, question: str, patience: dict[str, Any]) -> tuple[str, list[str]]:
    """(full address of the folder, those of the files) that ``glob`` or ``find`` of the file system gives."""
    file_system, path = open_url(address)
    names = patiently(without_secrets(address), lambda: getattr(file_system, question)(path), **patience)
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
