"""Trainings that are killed at any moment, in any way, and started again: do they end as if nothing had happened?

    python benchmarks/faults.py --folder DIR [--cases 60] [--seed 0] [--only NUMBER ...]
    python benchmarks/faults.py --folder DIR --elastic 6 [--seed 0] [--only NUMBER ...]
    python benchmarks/faults.py --folder DIR [--elastic 6] --table

Each case is one training of a tiny model by two processes under ZeRO 1, 2 or 3. It is killed where the seed and the
case's number say (in its start, a step, an evaluation, at a file of a save or an export, ...), by SIGKILL or a signal
that asks it to end, sent to its command, agent, one rank, a reader or all; some are killed once more on their way on.
Then the same command goes to the end. What must hold: exports and checkpoints have the bytes of the undisturbed
training, so have held_out.jsonl and samples.jsonl, metrics.jsonl has each step once, the complete checkpoints are whole
after each kill, and nothing is left running.

With --elastic it is chains: one training that goes on with other numbers of processes and under other ZeRO stages,
ended at each change; samples must stay, and the state that is taken up must be the one that was saved, bit for bit.

Each case or chain adds a line of JSON to DIR/cases.jsonl or DIR/chains.jsonl (--results); what has one is not done
again, so that the same command goes on behind an interruption. What failed keeps its folder, DIR/case/SEED-NUMBER or
DIR/chain/SEED-NUMBER. Exit status 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from shutil import rmtree
from time import monotonic
from typing import Any

from campaign.cases import Kill, draw_case
from campaign.checks import damage, differences, newest, torn
from campaign.setting import Setting
from campaign.table import chain_table, table
from campaign.watching import Start, left_running

from pipeline.stopping import STOPPED
from pipeline.training.metrics import read_lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Trainings that are killed and started again.")
    parser.add_argument("--folder", type=Path, required=True, help="where runs are made, and failed ones kept")
    parser.add_argument("--results", type=Path, help="the file of results; DIR/cases.jsonl, or DIR/chains.jsonl")
    parser.add_argument("--cases", type=int, default=60, help="the cases from number 0 on")
    parser.add_argument("--elastic", type=int, help="the chains from number 0 on, in the place of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", type=int, help="the cases, or chains, of these numbers alone")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and start nothing")
    asked = parser.parse_args()
    kind, count = ("case", asked.cases) if asked.elastic is None else ("chain", asked.elastic)
    results = asked.results or asked.folder / f"{kind}s.jsonl"
    if not asked.table:
        # Ignored where a shell has started this in the background, and then in all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        carry_out(kind, due(results, asked.seed, asked.only or range(count)), asked.seed, asked.folder, results)
    lines = read_lines(results)
    print("\n".join(table(lines) if kind == "case" else chain_table(lines)))
    return int(any(line["wrong"] for line in lines))


def due(results: Path, seed: int, numbers: Iterable[int]) -> list[int]:
    """The numbers that have no line yet."""
    done = {(line["seed"], line["number"]) for line in read_lines(results)}
    return [number for number in numbers if (seed, number) not in done]


def carry_out(kind: str, numbers: list[int], seed: int, folder: Path, results: Path) -> None:
    """Carry out the cases, or chains, of these numbers, a line in ``results`` for each."""
    outcome = case_outcome
    if kind == "chain":
        # It needs torch, which cases do without.
        from campaign.chains import chain_outcome as outcome
    setting = Setting(folder) if numbers else None
    results.parent.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        begin, before = monotonic(), cpu_seconds()
        found = outcome(seed, number, setting, folder.absolute() / kind / f"{seed}-{number}")
        spent = {"seconds": monotonic() - begin, "cpu_seconds": cpu_seconds() - before}
        line = {"number": number, "seed": seed, **found, **spent, "code": setting.code, "date": f"{date.today()}"}
        said = "; ".join(line["wrong"]) or "as it should be"
        print(f"{kind} {number}: {line['seconds']:.0f} s, {said}", flush=True)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def case_outcome(seed: int, number: int, setting: Setting, folder: Path) -> dict[str, Any]:
    """Carry out one case in ``folder``, which stays where something was wrong."""
    case = draw_case(seed, number)
    reference, pace = setting.reference(case.zero_stage)
    run = setting.begin(folder)
    words = [f"train.zero_stage={case.zero_stage}", f"data.workers={case.workers}"]
    met, wrong = [], []
    for kill in case.kills:
        start = Start(setting.train(folder, *words), run)
        done, saved = start.follow(kill, pace), newest(run / "train")
        seconds = start.end()
        met.append({**where(start), "ended": how(start, done), "seconds": seconds})
        wrong += after_kill(start, kill, done, run, saved)
        if not done:
            break
    last = Start(setting.train(folder, *words), run)
    last.end()
    wrong += [f"left running: {process}" for process in left_running(run)]
    if last.status != 0:
        wrong.append(f"the last start ended with {last.status}: {last.last_words()}")
    else:
        wrong += differences(run, reference)
    if not wrong:
        rmtree(folder)
    return {**asdict(case), "met": met, "wrong": wrong}


def where(start: Start) -> dict[str, Any]:
    """Where a killed run was: the last step that it said, what it was writing, and whether it had ended; and whether it
    printed a traceback."""
    writing = [*torn(start.train), *start.train.glob("exports/.step-*")]
    return {
        "step": start.step,
        "torn": [path.name for path in writing],
        "done": (start.train / "stage.json").exists(),
        "traceback": "Traceback" in start.text(),
    }


def how(start: Start, done: bool) -> str:
    """How a command ended that was to be killed."""
    if start.status == STOPPED:
        return "saved"
    return ("went on" if done else "passed") if start.status == 0 else "at once"


def after_kill(start: Start, kill: Kill, done: bool, run: Path, saved: int) -> Iterator[str]:
    """What is wrong behind a kill. ``saved``: the step of the newest checkpoint when it was sent."""
    yield from (f"left running after the kill: {process}" for process in left_running(run))
    if start.status is None:
        yield f"the command did not end after {kill.signal} to {kill.receiver}"
    elif not done and start.status != 0:
        yield f"the command ended with {start.status} before it was killed: {start.last_words()}"
    if newest(run / "train") < saved:
        yield f"the checkpoint of step {saved} was complete, and is not any more"
    if start.status == STOPPED and not (run / "train" / "REQUEUE").exists():
        yield f"exit status {STOPPED}, and no train/REQUEUE"
    yield from damage(run / "train")


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it has waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    sys.exit(main())
