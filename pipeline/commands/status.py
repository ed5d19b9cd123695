"""The state of a run, read from its folder alone: stages done, training's place, speed and time left."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.chain import chain_links
from pipeline.config import STAGES, Config, load_config, load_written
from pipeline.config.reading import yaml_reader
from pipeline.errors import RegrowError
from pipeline.run import Run
from pipeline.training.metrics import pace, read_lines


def status_text(folder: Path) -> str:
    """Lines for people, of a chain those of all its links. Raises RegrowError when ``folder`` is not a run's folder."""
    run = Run(folder)
    # Of a name that no file can have too, or of a folder that one may not look into.
    if not os.path.isfile(folder / "config.yaml"):
        raise RegrowError(f"{folder}: not a run's folder (no config.yaml in it); runs live in {folder.parent}")
    if _states_chain(folder / "config.yaml"):
        return "\n".join(_chain_lines(run, load_config(folder / "config.yaml")))
    return "\n".join(_run_lines(run))


def _states_chain(path: Path) -> bool:
    """Whether a config is that of a chain. Of a run nothing else of it is read: one of another version has a status."""
    tree = yaml_reader("safe").load(path)
    chain = tree.get("chain") if isinstance(tree, dict) else None
    return isinstance(chain, dict) and bool(chain.get("parts"))


def _chain_lines(chain: Run, config: Config) -> list[str]:
    """Of a chain who works in it, and all lines of each link that has begun."""
    links = chain_links(config)
    lines = [f"chain {chain.name} in {chain.folder}, {len(links)} links", f"  {_worker(chain)}"]
    for link in links:
        run = Run(link.run_folder)
        begun = (run.folder / "config.yaml").is_file()
        lines += _run_lines(run) if begun else [f"run {run.name} not begun"]
    return lines


def _run_lines(run: Run) -> list[str]:
    lines = [f"run {run.name} in {run.folder}", f"  {_worker(run)}"]
    for stage in STAGES:
        record = run.record(stage)
        if record is not None:
            lines.append(f"  {stage:<9} done      {record['finished']}, {record['seconds']:.1f} s")
        elif (run.stage(stage) / "progress").exists():
            lines.append(f"  {stage:<9} begun     {_progress(run, stage)}".rstrip())
        else:
            lines.append(f"  {stage:<9} not begun")
    return lines


def _worker(run: Run) -> str:
    """Who works in the run, in words."""
    try:
        holder = run.holder()
    except RegrowError as error:
        return f"whether a command works in it cannot be told: {error}"
    return f"in use by {holder}" if holder else "no command works in it now"


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


def _progress(run: Run, stage: str) -> str:
    if stage == "score":
        return _swept(run.stage(stage) / "progress")
    if stage != "train":
        return ""
    steps = load_written(run.folder / "config.yaml").steps
    lines = read_lines(run.stage("train") / "metrics.jsonl")
    if not lines:
        return f"step 0 of {steps}"
    last, (speed, seconds) = lines[-1], pace(lines)
    loss = "skipped" if last.get("skipped") else f"loss {last['loss']:.4f}"
    saved = sorted(path.parent.name for path in (run.stage("train") / "checkpoints").glob("*/COMPLETE"))
    return (
        f"step {last['step']} of {steps}, {loss}, {speed:,.0f} tokens/s, "
        f"{(steps - last['step']) * seconds / 3600:.2f} h left, newest checkpoint {saved[-1] if saved else 'none'}"
    )
