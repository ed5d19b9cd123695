"""The state of a run, read from its folder alone: stages done, training's place, speed and time left."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import STAGES, load_config
from pipeline.run import RegrowError, Run
from pipeline.training.metrics import pace, read_lines


def status_text(folder: Path) -> str:
    """Lines for people. Raises RegrowError when ``folder`` is not a run's folder."""
    run = Run(folder)
    if not (folder / "config.yaml").exists():
        raise RegrowError(f"{folder}: not a run's folder (no config.yaml in it); runs live in {folder.parent}")
    lines = [f"run {run.name} in {folder}", f"  {run.holder() or 'no command works in it now'}"]
    for stage in STAGES:
        record = run.record(stage)
        if record is not None:
            lines.append(f"  {stage:<9} done      {record['finished']}, {record['seconds']:.1f} s")
        elif (run.stage(stage) / "progress").exists():
            lines.append(f"  {stage:<9} begun     {_progress(run, stage)}".rstrip())
        else:
            lines.append(f"  {stage:<9} not begun")
    return "\n".join(lines)


def _progress(run: Run, stage: str) -> str:
    if stage == "score":
        return f"{len(list((run.stage(stage) / 'progress').glob('batch-*.json')))} micro-batches swept"
    if stage != "train":
        return ""
    recipe = load_config(run.folder / "config.yaml")
    steps = -(-recipe.train.tokens // (recipe.train.global_batch * recipe.data.row_length))
    lines = read_lines(run.stage("train") / "metrics.jsonl")
    if not lines:
        return f"step 0 of {steps}"
    last, (speed, seconds) = lines[-1], pace(lines)
    saved = sorted(path.parent.name for path in (run.stage("train") / "checkpoints").glob("*/COMPLETE"))
    return (
        f"step {last['step']} of {steps}, loss {last['loss']:.4f}, {speed:,.0f} tokens/s, "
        f"{(steps - last['step']) * seconds / 3600:.2f} h left, newest checkpoint {saved[-1] if saved else 'none'}"
    )
