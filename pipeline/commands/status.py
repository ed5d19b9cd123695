"""The state of a run, read from its folder alone: what is done and found, where training stands, and who works in it.

Nothing is written, and nothing is waited for. What is being written while it is read (a last line, a checkpoint that
goes) is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.chain import chain_links, stages_of
from pipeline.commands.holder import look_at_holder
from pipeline.commands.telling import Line, under
from pipeline.commands.training_status import history_lines, model_lines, training_lines
from pipeline.config import STAGES, Config, ConfigError, load_config
from pipeline.config.reading import yaml_reader
from pipeline.errors import RegrowError
from pipeline.run import Run


@dataclass(frozen=True)
class Status:
    """What is told of a run or a chain; whether a command works in it, and whether nothing is left to do."""

    lines: tuple[Line, ...]
    held: bool
    done: bool

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)


def look_at(place: Path, overrides: Sequence[str] = ()) -> Status:
    """The status of a run by its folder, or by the config (a YAML file, with ``overrides``) that it is begun by; of a
    chain that of all its links. RegrowError where ``place`` is neither."""
    config = _config_of(place, overrides)
    run = Run(place if config is None else config.run_folder)
    written = run.folder / "config.yaml"
    if not os.path.isfile(written):
        if config is None:
            raise RegrowError(
                f"{place}: not a run's folder (no config.yaml in it), nor a config (a .yaml file); runs live in "
                f"{place.parent}"
            )
        if not config.chain.parts:
            return Status((_not_begun(run),), held=False, done=False)
    elif config is None and _states_chain(written):
        config = load_config(written)
    if config is not None and config.chain.parts:
        return _of_chain(run, config)
    holder, held = look_at_holder(run)
    return Status((*_head(f"run {run.name} in {run.folder}", holder), *_stage_lines(run)), held, _is_done(run, STAGES))


def _config_of(place: Path, overrides: Sequence[str]) -> Config | None:
    """The config at ``place``; None where that is no file."""
    # Of a name that no file can have too, or of a folder that one may not look into.
    if os.path.isfile(place) or (place.suffix in (".yaml", ".yml") and not os.path.isdir(place)):
        return load_config(place, overrides)
    if overrides:
        raise ConfigError(f"{place}: a run's folder holds its config; {overrides[0]} goes with a config's file")
    return None


def _states_chain(path: Path) -> bool:
    """Whether a config is that of a chain. Of a run nothing else of it is read: one of another version has a status."""
    tree = yaml_reader("safe").load(path)
    chain = tree.get("chain") if isinstance(tree, dict) else None
    return isinstance(chain, dict) and bool(chain.get("parts"))


def _of_chain(chain: Run, config: Config) -> Status:
    """Who works in a chain, and all lines of each link that has begun."""
    links = chain_links(config)
    holder, held = look_at_holder(chain)
    lines = list(_head(f"chain {chain.name} in {chain.folder}, {len(links)} links", holder))
    runs = [Run(link.run_folder) for link in links]
    for run in runs:
        if os.path.isfile(run.folder / "config.yaml"):
            worker, works = look_at_holder(run)
            # The chain's command holds the link that it is at: once is enough.
            lines += _head(f"run {run.name} in {run.folder}", worker if works and not held else None)
            lines += _stage_lines(run)
        else:
            lines.append(_not_begun(run))
    done = all(_is_done(run, stages_of(number, links)) for number, run in enumerate(runs))
    return Status(tuple(lines), held, done)


def _not_begun(run: Run) -> Line:
    return Line(f"run {run.name} not begun: there is no {run.folder}")


def _head(title: str, holder: Line | None) -> Iterator[Line]:
    yield Line(title)
    if holder is not None:
        yield holder


def _is_done(run: Run, stages: Sequence[str]) -> bool:
    return all((run.stage(stage) / "stage.json").exists() for stage in stages)


def _stage_lines(run: Run) -> Iterator[Line]:
    for stage in STAGES:
        record = run.record(stage)
        if record is not None:
            yield Line(f"  {stage:<9} done      {record['finished']}, {record['seconds']:.1f} s")
        elif (run.stage(stage) / "progress").exists():
            yield from _begun(run, stage)
        else:
            yield Line(f"  {stage:<9} not begun")
    yield from model_lines(run)


def _begun(run: Run, stage: str) -> Iterator[Line]:
    below = list(history_lines(run, stage))
    standing = ""
    if stage == "score":
        standing = _swept(run.stage(stage) / "progress")
    elif stage == "train":
        standing, more = training_lines(run)
        below = [*more, *below]
    yield Line(f"  {stage:<9} begun     {standing}".rstrip())
    yield from map(under, below)


def _swept(progress: Path) -> str:
    """How far the sweep is: a file for each micro-batch that is done, or files named after the block they enter."""
    by_block = list(progress.glob("states-*"))
    if not by_block:
        return f"{len(list(progress.glob('batch-*.json')))} micro-batches swept"
    entering: dict[tuple[Path, str], int] = {}
    for path in progress.glob("states-*/*-*.states"):
        number, _, block = path.stem.partition("-")
        entering[path.parent, number] = max(int(block), entering.get((path.parent, number), 0))
    if entering:
        return f"{min(entering.values())} blocks swept"
    finished = any(path.stem.isdigit() for folder in by_block for path in folder.glob("*.json"))
    return "all blocks swept" if finished else "0 blocks swept"
