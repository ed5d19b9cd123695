"""How many lanes a run has: as its config states, as stage data chose, or as far as can be said before that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.data.corpus.local import local_files
from pipeline.data.formats.documents import format_for
from pipeline.data.shards import Shard
from pipeline.data.stream.parts import LANES, choose_lanes, fitting_lanes
from pipeline.files import read_json
from pipeline.following import lanes_before
from pipeline.inputs import text_source
from pipeline.launch import Place, count_processes, find_place


def training_processes(config: Config, place: Place) -> int:
    """Processes that will train, where a command stands at ``place``."""
    return place.world if place.launcher else count_processes(config.train.processes)


def lanes_for(config: Config, corpus: Sequence[Shard]) -> int:
    """The lanes that a corpus is dealt to. RegrowError where a source is too small for the processes.

    Those of the run before, where one is followed: another number would be another stream.
    """
    stated = config.data.lanes
    if stated != "auto":
        return stated
    if config.data.after is not None:
        return lanes_before(config)
    return choose_lanes(corpus, training_processes(config, find_place()))


def known_lanes(config: Config) -> int | None:
    """The lanes of a run; None where stage data has them still to choose."""
    stated, manifest = config.data.lanes, _manifest(config)
    if stated != "auto":
        return stated
    return read_json(manifest).get("lanes") if manifest.is_file() else None


def lanes_ahead(config: Config, processes: int) -> list[str]:
    """A line on what ``data.lanes: auto`` is or will be, or why that cannot be known yet; none where a number is
    stated."""
    if config.data.lanes != "auto":
        return []
    known = known_lanes(config)
    if known is not None:
        return [f"data.lanes auto: {known:,}, as stage data chose"]
    if config.data.after is not None:
        return ["data.lanes auto: as many as the run of data.after has"]
    enough = max(LANES, processes)
    keys = [key for key in config.data.texts if key != "data.held_out"]
    unsure = [key for key in keys if _files(config, key) < enough]
    if unsure:
        return [
            f"data.lanes auto: {fitting_lanes(enough, processes):,} where every source has so many shards or "
            f"documents, else fewer; stage data chooses, once it has counted those of {', '.join(unsure)}"
        ]
    return [f"data.lanes auto: {fitting_lanes(enough, processes):,}; every source has so many shards"]


def _manifest(config: Config) -> Path:
    return config.run_folder / "data" / "manifest.json"


def _files(config: Config, key: str) -> int:
    """Shards of a source that lie here, by their names."""
    source = text_source(config, key)
    here = None if "://" in source.path else local_files(source.path, source.files)
    return 0 if here is None else sum(format_for(source, name) is not None for name in here[1])
