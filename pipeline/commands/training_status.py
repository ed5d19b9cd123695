"""Where training stands, how its starts ended, and what came of it, from the line files and records of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.commands.telling import Line, ago, perplexity_of
from pipeline.config import load_written
from pipeline.reporting.numbers import finite
from pipeline.run import Run
from pipeline.stages.history import told_history
from pipeline.stopping import DONE, REQUEUE, STOP
from pipeline.training.metrics import WINDOW, last_lines, pace, read_lines


def training_lines(run: Run) -> tuple[str, list[Line]]:
    """Where a training that is not done stands, in words, and lines on what it left so far."""
    folder = run.stage("train")
    steps = load_written(run.folder / "config.yaml").steps
    below = [*_newest_checkpoint(folder), *_last_held_out(folder), *_skipped(folder), *_endings(folder)]
    lines = last_lines(folder / "metrics.jsonl", WINDOW)
    if not lines:
        return f"step 0 of {steps}", below
    last, (speed, seconds) = lines[-1], pace(lines)
    loss = f"loss {last['loss']:.4f}" if finite(last.get("loss")) else "loss not finite"
    left = timedelta(seconds=round((steps - last["step"]) * seconds))
    standing = [
        f"step {last['step']} of {steps}",
        "skipped" if last.get("skipped") else loss,
        f"{last['tokens']:,} tokens" if "tokens" in last else "",
        f"{speed:,.0f} tokens/s",
        _utilisation(lines),
        f"{left} left",
    ]
    return ", ".join(filter(None, standing)), below


def _utilisation(lines: list[dict[str, Any]]) -> str:
    """The MFU over the time of these steps; nothing without a known peak."""
    known = [(line["mfu"], line["seconds"]) for line in lines if finite(line.get("mfu"))]
    return f"MFU {100 * sum(mfu * took for mfu, took in known) / sum(took for _, took in known):.1f} %" if known else ""


def _newest_checkpoint(folder: Path) -> Iterator[Line]:
    complete = sorted((folder / "checkpoints").glob("step-????????/COMPLETE"))
    if not complete:
        yield Line("no checkpoint yet")
        return
    passing = ""
    # Of several the newest goes last; it may be gone all the same, with the whole folder.
    with contextlib.suppress(OSError):
        passing = f", {ago(complete[-1].stat().st_mtime)}"
    yield Line(f"newest checkpoint {complete[-1].parent.name}", passing)


def _last_held_out(folder: Path) -> Iterator[Line]:
    for line in last_lines(folder / "held_out.jsonl", 1):
        entry = {"value": line["held_out_perplexity"], "stderr": line.get("held_out_stderr"), "rows": line.get("rows")}
        yield Line(f"held-out {perplexity_of(entry)} at step {line['step']}")


def _skipped(folder: Path) -> Iterator[Line]:
    if skipped := read_lines(folder / "bad_steps.jsonl"):
        many = f"{len(skipped)} step{'s' * (len(skipped) > 1)} skipped"
        yield Line(f"{many}, the last one step {skipped[-1]['step']}, for {skipped[-1]['reason']}")


def _endings(folder: Path) -> Iterator[Line]:
    """What the files say by which training stops, or has ended."""
    if (folder / STOP).exists():
        yield Line(f"asked to stop by {folder / STOP}")
    if said := _read(folder / REQUEUE):
        yield Line(f"stopped by {said.get('why')} at step {said.get('step')}, {said.get('date')}; wants another start")
    if said := _read(folder / DONE):
        yield Line(f"training is done, {said.get('date')}; its record is still to be written")


def history_lines(run: Run, stage: str) -> Iterator[Line]:
    """How often a stage was started, and what it last failed by."""
    told = told_history(stage, run)
    starts = [line for line in told if line["event"] == "start"]
    failures = [line for line in told if line["event"] == "failure"]
    if starts:
        last = f"at {starts[-1]['date']} by host {starts[-1]['host']} pid {starts[-1]['pid']}"
        many = f"started {len(starts)} times, the last time {last}" if len(starts) > 1 else f"started once, {last}"
        yield Line(many)
    if failures:
        rank = "" if failures[-1]["rank"] is None else f"rank {failures[-1]['rank']}: "
        message = failures[-1]["message"].strip().partition("\n")[0]
        yield Line(f"last error {failures[-1]['date']}: {rank}{message}")


def model_lines(run: Run) -> Iterator[Line]:
    """Of a run that is far enough: each model's perplexity, the regrown one's folder, and the page."""
    results = run.stage("evaluate") / "results.json"
    found = _read(results).get("models", {}) if run.record("evaluate") else {}
    for name, model in found.items():
        if entry := (model.get("perplexity") or {}).get("held_out"):
            parameters = f", {model['parameters']:,} parameters" if "parameters" in model else ""
            yield Line(f"  {name:<9} {perplexity_of(entry)}{parameters}")
    trained = run.record("train")
    if trained and (export := trained.get("result", {}).get("export")):
        yield Line(f"  model     {run.folder / export}")
    if run.record("report"):
        yield Line(f"  page      {run.stage('report') / 'index.html'}")


def _read(path: Path) -> dict[str, Any]:
    """What a file says that comes and goes while one looks; nothing where it is not there, or not whole."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
