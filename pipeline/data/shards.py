"""Shards: listing them once, pinning what they are, and fetching one, verified, when it is needed.

A shard is one file of a corpus (jsonl, plain or as zst or gz, or parquet), in a local folder or in a data set on the
hub. The manifest lists every shard with its size, its sha256 and, for local files, its number of documents; nothing
else in the pipeline ever lists a corpus again, and a shard that is not what the manifest says is refused.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.data.documents import count_documents, format_of
from pipeline.run import RegrowError, first_line, hash_file, hash_json

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Shard:
    """One file of a corpus. ``place`` is a local folder or a hub data set; ``documents`` is None where unknown."""

    place: str
    path: str
    revision: str | None
    format: str
    bytes: int
    sha256: str | None
    documents: int | None
    text_key: str
    exclude_domains: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.place}/{self.path}"


def list_shards(
    path: str,
    *,
    files: str = "**",
    format: str = "auto",
    revision: str | None = None,
    text_key: str = "text",
    exclude_domains: Sequence[str] = (),
    hash_of: Callable[[Path], str] = hash_file,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Shard]:
    """Every shard of one source, by name. Local files are decoded and hashed, so that damage is met here.

    ``path`` is a folder, a glob or a file, or ``owner/name`` of a data set on the hub; ``files`` is a glob inside a
    folder or data set. Raises RegrowError when there is nothing, or a shard is damaged.
    """
    local = local_files(path, files)
    if local is None:
        if not HUB_NAME.fullmatch(path):
            raise RegrowError(f"data source {path!r}: no such file or folder, and not the name of a hub data set")
        return _list_hub(path, files, format, revision, text_key, tuple(exclude_domains))
    base, names = local
    shards = []
    for number, name in enumerate(names, start=1):
        file = base / name
        kind = format_of(file.name) if format == "auto" else format
        if kind is None:
            continue
        progress(f"shard {number} of {len(names)}: {name}")
        documents = count_documents(file, kind, text_key)
        shards.append(Shard(str(base), name, None, kind, file.stat().st_size, hash_of(file), documents, text_key,
                            tuple(exclude_domains)))  # fmt: skip
    if not shards:
        raise RegrowError(f"data source {path!r}: no .jsonl(.zst, .gz) or .parquet file in it (files: {files!r})")
    return shards


def local_files(path: str, files: str) -> tuple[Path, list[str]] | None:
    """(folder, file names in it), or None when ``path`` names nothing local."""
    root = Path(path).expanduser()
    if root.is_file():
        return root.parent, [root.name]
    if root.is_dir():
        found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        return root, sorted(name for name in found if files == "**" or fnmatchcase(name, files))
    matches = sorted(p for p in glob.glob(str(root), recursive=True) if Path(p).is_file())
    if matches:
        fixed = Path(*(part for part in _before_magic(root.parts)))
        return fixed, [Path(p).relative_to(fixed).as_posix() for p in matches]
    return None


def _before_magic(parts: Iterable[str]) -> Iterable[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _list_hub(
    name: str, files: str, format: str, revision: str | None, text_key: str, exclude_domains: tuple[str, ...]
) -> list[Shard]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        commit = api.dataset_info(name, revision=revision).sha
        tree = [entry for entry in api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
                if isinstance(entry, RepoFile)]  # fmt: skip
    except Exception as error:
        raise RegrowError(
            f"data source {name!r}: not a local folder, and the hub did not list it ({type(error).__name__}: "
            f"{first_line(error)}); check the name, the network and, for a gated data set, HF_TOKEN"
        ) from error
    shards = []
    for entry in sorted(tree, key=lambda entry: entry.path):
        kind = format_of(entry.path) if format == "auto" else format
        if kind is not None and (files == "**" or fnmatchcase(entry.path, files)):
            digest = entry.lfs.sha256 if entry.lfs else None
            shards.append(Shard(name, entry.path, commit, kind, entry.size, digest, None, text_key, exclude_domains))
    if not shards:
        raise RegrowError(f"data source {name!r}: no .jsonl(.zst, .gz) or .parquet file in it (files: {files!r})")
    return shards


def fetch(shard: Shard, cache: Path) -> Path:
    """A local path that holds exactly the shard of the manifest, downloaded into ``cache`` when it is on the hub.

    Raises RegrowError naming the shard when it is missing or its size or sha256 is another.
    """
    if shard.revision is None:
        path = Path(shard.place) / shard.path
    else:
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(shard.place, shard.path, repo_type="dataset", revision=shard.revision,
                                        local_dir=cache / shard.place))  # fmt: skip
        except Exception as error:
            reason = first_line(error)
            raise RegrowError(f"shard {shard.name}: the hub did not deliver it ({reason})") from error
    if not path.exists():
        raise RegrowError(f"shard {shard.name}: missing, though the manifest lists it; put it back, or redo stage data")
    size = path.stat().st_size
    if size != shard.bytes:
        raise RegrowError(f"shard {shard.name}: {size} bytes, the manifest says {shard.bytes}; it was cut or replaced")
    if shard.sha256 is not None and _digest(path, size, path.stat().st_mtime_ns) != shard.sha256:
        raise RegrowError(f"shard {shard.name}: its bytes are not those of the manifest (sha256 differs)")
    return path


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """sha256 of a file, taken once in a process: many lanes may read parts of one large shard."""
    return hash_file(path)


def build_manifest(corpus: Sequence[Shard], held_out: Sequence[Shard]) -> dict[str, Any]:
    """The manifest: what the data stage writes and everything later reads. Raises RegrowError on shared shards."""
    seen: dict[str, str] = {}
    for shard in corpus:
        for mark in _marks(shard):
            if mark in seen:
                raise RegrowError(f"shards {seen[mark]} and {shard.name} are the same file; list it once")
            seen[mark] = shard.name
    for shard in held_out:
        twin = next((seen[mark] for mark in _marks(shard) if mark in seen), None)
        if twin is not None:
            raise RegrowError(f"held-out shard {shard.name} is also in the corpus ({twin}); keep them apart")
    listed = {"shards": [asdict(shard) for shard in corpus], "held_out": [asdict(shard) for shard in held_out]}
    return {**listed, "hash": hash_json(listed)}


def _marks(shard: Shard) -> list[str]:
    """What tells that two shards are the same file: the name, and the content where the hub gives its sha256."""
    return [shard.name, *([shard.sha256] if shard.sha256 is not None else [])]


def read_manifest(manifest: dict[str, Any]) -> tuple[list[Shard], list[Shard]]:
    """(corpus, held-out) shards of a manifest that was read from JSON."""

    def shards(part: str) -> list[Shard]:
        return [Shard(**{**entry, "exclude_domains": tuple(entry["exclude_domains"])}) for entry in manifest[part]]

    return shards("shards"), shards("held_out")
