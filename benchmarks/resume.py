"""A run whose training is killed and resumed, against the same run left alone: are the exports' bytes the same?

    python benchmarks/resume.py                       # the demo's config, deterministic
    python benchmarks/resume.py --quick               # a small random model with the demo's tokenizer, for a CPU
    python benchmarks/resume.py --config FILE [section.key=value ...]

The straight run goes to the end of stage train. The other starts from a copy of what it pruned; once half of the steps
are logged, the command and all that it started get SIGKILL, wherever they stand, and the same command is given again.
Compared are the sha256 of the exported weights, and the loss and the gradient norm of every step. Exit status 1 where
they differ, or where there was no checkpoint to go on from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from commands import Ended, carry_out, kill_tree, start
from machine import show
from shapes import random_model, vicuna
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pipeline.launch import name_accelerator

ROOT = Path(__file__).parent.parent
DEMO = ROOT / ".cache" / "demo"
#: On a GPU kernels are deterministic only when asked; what does not reach the weights is left out.
ALWAYS = ["train.deterministic=true", "prune.compare.enabled=false"]
QUICK = [
    "score.criteria=[ppl]",
    "score.sequences=2",
    "score.length=32",
    "score.processes=1",
    "prune.remove=2",
    "prune.protect_first=1",
    "prune.protect_last=1",
    "prune.processes=1",
    "data.row_length=64",
    "train.tokens=10240",
    "train.evaluate_rows=4",
    "train.processes=1",
]
LIMIT = 600


def write_small_model(folder: Path) -> Path:
    """A random model of 6 small blocks with the demo's tokenizer, as a Hugging Face folder."""
    name_accelerator()
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    config = vicuna(blocks=6, width=64)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = None
    torch.manual_seed(0)
    random_model(config, torch.device("cpu"), torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def regrow(*words: object) -> list[str]:
    """The command line of ``regrow WORDS``."""
    return [sys.executable, "-m", "pipeline", *map(str, words)]


def finished(ended: Ended) -> Ended:
    """The same, or the end of this process where the command did not end well."""
    if ended.status != 0:
        sys.exit("the run did not end in " + (f"{LIMIT} s" if ended.status is None else f"0 but {ended.status}"))
    return ended


def logged(run: Path) -> list[list[Any]]:
    """Step, loss and gradient norm of every whole line of metrics.jsonl."""
    path = run / "train" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [[line[name] for name in ("step", "loss", "grad_norm")] for line in whole]


def kill_after(step: int, command: list[str], run: Path) -> int:
    """Start a command and kill it with all that it started once ``step`` is logged; the last step logged by then."""
    # Into a file: nobody reads a pipe meanwhile, and a full one would stop the command.
    path = run.with_suffix(".log")
    with path.open("w") as log, path.open() as said:
        process, begin = start(command, ROOT, log), monotonic()
        try:
            while len(logged(run)) < step and process.poll() is None and monotonic() - begin < LIMIT:
                sleep(0.01)
                print(said.read(), end="", flush=True)
            alive = process.poll() is None
        finally:
            kill_tree(process)
        print(said.read(), end="", flush=True)
    last = len(logged(run))
    if not alive or last < step:
        sys.exit(f"it could not be killed behind step {step}: it ended by itself, or was not there in {LIMIT} s")
    return last


def newest_checkpoint(run: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    found = (run / "train" / "checkpoints").glob("step-*/COMPLETE")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)


def export_of(run: Path) -> dict[str, str]:
    """sha256 of each file of weights that the run exported, by its path."""
    folder = run / "train" / "exports"
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def main() -> None:
    """Run straight, run killed, and print the figures."""
    parser = argparse.ArgumentParser(description="A run killed in training and resumed, against the same left alone.")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--quick", action="store_true", help="a small random model with the demo's tokenizer")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        small = [f"model.path={write_small_model(Path(scratch, 'model'))}", *QUICK] if arguments.quick else []
        given = [arguments.config, *ALWAYS, *small, *arguments.overrides]
        straight, killed = (Path(scratch, name, "run") for name in ("straight", "killed"))
        where = {run: ["run.name=run", f"run.folder={run.parent}"] for run in (straight, killed)}

        whole = finished(carry_out(regrow("run", *given, *where[straight], "--until", "train"), ROOT, LIMIT))
        shutil.copytree(straight, killed, ignore=shutil.ignore_patterns("train"))
        steps, command = len(logged(straight)), regrow("train", *given, *where[killed])
        last = kill_after(steps // 2 + 1, command, killed)
        checkpoint = newest_checkpoint(killed)
        print(f"killed after step {last} of {steps}, with a checkpoint of step {checkpoint}", flush=True)
        again = finished(carry_out(command, ROOT, LIMIT))

        export, resumed = export_of(straight), export_of(killed)
        same_steps = logged(straight) == logged(killed)
    same = bool(export) and export == resumed and same_steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = {
        "config": arguments.config.name,
        "steps": steps,
        "killed_after": last,
        "resumed_at": checkpoint,
        "straight_seconds": whole.seconds,
        "resume_seconds": again.seconds,
        "same_steps": same_steps,
        "same_bytes": export == resumed,
        "same": same,
        "export": export,
        "resumed_export": resumed,
    }
    show(
        device,
        figures,
        {
            "Config": f"{arguments.config.name}{', quick' if arguments.quick else ''}",
            "Steps": f"{steps}",
            "Killed after": f"step {last}",
            "Resumed at": f"step {checkpoint}",
            "Straight": f"{whole.seconds:.0f} s",
            "Resumed": f"{again.seconds:.0f} s",
            "Losses and norms": "the same" if same_steps else "DIFFERENT",
            "Export": f"the same, sha256 {next(iter(export.values()))[:12]}" if same else "DIFFERENT",
        },
    )
    if not same or not checkpoint:
        sys.exit("a resumed run must go on from a checkpoint and end in the same losses, norms and bytes")


if __name__ == "__main__":
    main()
