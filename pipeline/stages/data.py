"""Stage data: list the corpus and the held-out documents once, check them, and pin what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Config, Source
from pipeline.data.documents import format_of
from pipeline.data.lanes import split_into_parts
from pipeline.data.shards import Shard, build_manifest, list_shards, local_files
from pipeline.launch import World
from pipeline.run import Run, write_json

FORMAT = 1
UPSTREAM: tuple[str, ...] = ()
LAUNCHED = False


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The files of local sources by their content; a hub data set is named by the config's revision."""
    held_out = [config.data.held_out] if config.data.held_out else []
    files: list[Path] = []
    for source in (*config.data.sources, *held_out):
        base, names = local_files(source.path, source.files) or (Path(), [])
        files += [base / name for name in names if source.format != "auto" or format_of(name)]
    return {str(path): run.hash_of(path) for path in files}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write data/manifest.json."""

    def shards(source: Source) -> list[Shard]:
        return list_shards(
            source.path, files=source.files, format=source.format, revision=source.revision,
            text_key=source.text_key, exclude_domains=source.exclude_domains, hash_of=run.hash_of, progress=say,
        )  # fmt: skip

    corpus = [shard for source in config.data.sources for shard in shards(source)]
    held_out = shards(config.data.held_out) if config.data.held_out else []
    manifest = build_manifest(corpus, held_out)
    parts = split_into_parts(corpus, config.data.lanes)
    write_json(run.stage("data") / "manifest.json", manifest)
    counts = [shard.documents for shard in corpus]
    return {
        "shards": len(corpus),
        "parts": len(parts),
        "bytes": sum(shard.bytes for shard in corpus),
        "documents": None if None in counts else sum(counts),
        "held_out_shards": len(held_out),
        "manifest": manifest["hash"],
    }
