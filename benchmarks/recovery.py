"""Ways to regrow, side by side: arms that differ in a few keys, on the same cuts, the same rows and as many tokens.

    python benchmarks/recovery.py GRID CONFIG [--only NAME ...] [--tasks] [--table]

GRID (benchmarks/recovery.yaml) names cuts and arms, each by the keys that it sets; CONFIG is the rest. Each cut is
scored and pruned once; each arm is an ordinary run that takes these stages (run.from), is trained, and has its
exports judged on texts; with --tasks the last one is asked the tasks too. What is done is skipped, so that the same
command goes on behind a kill. The figures go to the run folder's recovery.json and, as a table, to recovery.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from commands import carry_out

from pipeline.config import load_config
from pipeline.config.reading import yaml_reader
from pipeline.files import write_atomic, write_json
from pipeline.run import Run
from pipeline.stages.report import flops_of
from pipeline.training.metrics import read_lines

ROOT = Path(__file__).parent.parent
NO_TASKS = "evaluate.tasks.names=[]"
#: Seconds that one command may take.
LIMIT = 12 * 3600


@dataclass(frozen=True)
class Grid:
    """``cuts`` and ``arms`` by name: the overrides that make them; ``chains`` names the arms that remove in steps."""

    cuts: dict[str, list[str]]
    arms: dict[str, list[str]]
    chains: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Grid:
        """The grid in a YAML file."""
        tree = yaml_reader("safe").load(path)
        return cls(dict(tree["cuts"]), dict(tree["arms"]), tuple(tree.get("chains", ())))


def main() -> int:
    parser = argparse.ArgumentParser(description="Arms of recovery, side by side.")
    parser.add_argument("grid", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="arms, or cuts, by name")
    parser.add_argument("--tasks", action="store_true", help="ask each arm's last export the tasks of CONFIG")
    parser.add_argument("--table", action="store_true", help="write the table of what is done, and start nothing")
    parser.add_argument("--shares", nargs="+", type=float, help="judge the exports at these shares of the steps alone")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time: on a GPU several keep it busy")
    asked = parser.parse_args()
    grid = Grid.read(asked.grid)
    # CONFIG need not state a cut.
    folder = load_config(asked.config, ["run.name=recovery", *next(iter(grid.cuts.values()))]).run.folder
    names = [name for name in asked.only if name not in {*grid.cuts, *grid.arms}]
    if names:
        parser.error(f"the grid has no {', '.join(names)}; it has {', '.join([*grid.cuts, *grid.arms])}")
    if not asked.table:
        pairs = list(chosen(grid, asked.only))
        cuts = {cut for cut, arm in pairs if arm not in grid.chains}
        # Each thread waits for the commands of an arm; arms of a cut take its stages.
        with ThreadPoolExecutor(asked.jobs) as pool:
            made = dict(zip(cuts, pool.map(lambda cut: make_cut(asked.config, grid, cut), cuts), strict=True))
            wanted = [(cut, arm) for cut, arm in pairs if made.get(cut, True)]

            def carry_out_arm(pair: tuple[str, str]) -> bool:
                return train_arm(asked.config, grid, *pair, folder, tasks=asked.tasks, shares=asked.shares)

            ended = list(pool.map(carry_out_arm, wanted))
        if not all([*made.values(), *ended]):
            return 1
    figures = [found for cut in grid.cuts for arm in grid.arms if (found := arm_figures(folder, grid, cut, arm))]
    write_json(folder / "recovery.json", figures)
    write_atomic(folder / "recovery.md", "".join(tables(figures)))
    print((folder / "recovery.md").read_text())
    return 0


def chosen(grid: Grid, only: list[str]) -> Iterator[tuple[str, str]]:
    """The pairs of a cut and an arm that are asked for."""
    cuts = [name for name in grid.cuts if name in only] or list(grid.cuts)
    arms = [name for name in grid.arms if name in only] or list(grid.arms)
    return ((cut, arm) for cut in cuts for arm in arms)


def make_cut(config: Path, grid: Grid, cut: str) -> bool:
    """Score and prune for all arms of a cut; False where it failed."""
    return regrow("run", config, f"run.name={cut}-cut", *grid.cuts[cut], "--until", "prune")


def train_arm(
    config: Path, grid: Grid, cut: str, arm: str, folder: Path, *, tasks: bool, shares: Sequence[float] | None
) -> bool:
    """Carry out an arm and judge its exports, all or those at ``shares`` of its steps; False where a command failed."""
    words = [*grid.cuts[cut], *grid.arms[arm]]
    if arm in grid.chains:
        if not regrow("chain", config, f"run.name={cut}-{arm}", *words, NO_TASKS):
            return False
        # Its last link is a run like those of the other arms, made from the config that the chain has given it.
        asked = load_config(config, [f"run.name={cut}-{arm}", *words]).evaluate.tasks.names
        words = [f"evaluate.tasks.names=[{', '.join(asked)}]"]
        config = last_link(folder, cut, arm) / "config.yaml"
    else:
        words = [f"run.name={cut}-{arm}", f"run.from={cut}-cut", *words]
        if not regrow("train", config, *words):
            return False
    exports = sorted(path.name for path in (run_of(folder, grid, cut, arm) / "train" / "exports").iterdir())
    judged = exports if shares is None else at_shares(exports, shares)
    for export in ["all"] if judged == exports else judged:
        if not regrow("evaluate", config, *words, NO_TASKS, "--export", export):
            return False
    return not tasks or regrow("evaluate", config, *words, "--export", exports[-1])


def at_shares(exports: list[str], shares: Sequence[float]) -> list[str]:
    """Of a run's exports, in order, those first reached behind each share of its steps."""
    steps = {int(name.rpartition("-")[2]): name for name in exports}
    last = max(steps)
    return sorted({steps[min(step for step in steps if step >= share * last)] for share in shares})


def last_link(folder: Path, cut: str, arm: str) -> Path:
    """The run folder of a chain's last link."""
    return max(folder.glob(f"{cut}-{arm}-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]))


def run_of(folder: Path, grid: Grid, cut: str, arm: str) -> Path:
    """The run folder whose exports are an arm's."""
    return last_link(folder, cut, arm) if arm in grid.chains else folder / f"{cut}-{arm}"


def regrow(stage: str, *words: object) -> bool:
    """Run the command, printing what it prints; whether it ended well."""
    begin = monotonic()
    ended = carry_out([sys.executable, "-m", "pipeline", stage, *map(str, words)], ROOT, LIMIT)
    print(f"# regrow {stage} {words[1]}: exit {ended.status}, {monotonic() - begin:.0f} s", flush=True)
    return ended.status == 0


def arm_figures(folder: Path, grid: Grid, cut: str, arm: str) -> dict[str, Any] | None:
    """What an arm came to, None where it is not done: at each judged step perplexity by text; at the last, tasks."""
    links = list(folder.glob(f"{cut}-{arm}-[0-9]*"))
    if arm in grid.chains and not links:
        return None
    run = Run(run_of(folder, grid, cut, arm))
    record, curve = run.record("train"), run.stage("evaluate") / "curve.jsonl"
    if record is None or not curve.exists():
        return None
    lines = sorted(read_lines(curve), key=lambda line: line["step"])
    result = record["result"]
    before = result["before"]
    # A chain's last link counts its own tokens alone.
    earlier = sum(one["tokens"] for one in before)
    trained = [*(Run(folder / one["run"]).record("train")["result"] for one in before), result]
    return {
        "cut": cut,
        "arm": arm,
        "flops": sum(map(flops_of, trained)),
        # Spent before the first step, however many follow: on healing, and on answers that were asked ahead.
        "flops_before": sum(flops_of(one) - one["flops"] for one in trained),
        "tokens": sum(one["tokens"] for one in trained),
        "seconds": sum(one["seconds"] for one in trained),
        "points": [
            {"step": line["step"], "tokens": earlier + line["tokens"], "perplexity": line["perplexity"]}
            for line in lines
            if not line["tasks"]
        ],
        "tasks": next((line["tasks"] for line in reversed(lines) if line["tasks"]), {}),
    }


def tables(figures: list[dict[str, Any]]) -> Iterator[str]:
    """A table for each cut: the last export of each arm, by text and task."""
    for cut in dict.fromkeys(found["cut"] for found in figures):
        arms = [found for found in figures if found["cut"] == cut]
        texts = list(arms[0]["points"][-1]["perplexity"])
        tasks = list(dict.fromkeys(task for found in arms for task in found["tasks"]))
        yield f"### {cut}\n\n| arm | {' | '.join([*texts, *tasks])} | tokens | FLOPs | seconds |\n"
        yield f"| --- |{' ---: |' * (len(texts) + len(tasks) + 3)}\n"
        for found in arms:
            last = found["points"][-1]["perplexity"]
            values = [f"{last[text]['value']:.2f}" for text in texts]
            values += [share_words(found["tasks"].get(task)) for task in tasks]
            values += [f"{found['tokens']:,}", f"{found['flops']:.2e}", f"{found['seconds']:.0f}"]
            yield f"| {found['arm']} | {' | '.join(values)} |\n"
        yield "\n"


def share_words(entry: dict[str, Any] | None) -> str:
    """A task's value with its standard error, in percent; a dash where it was not asked."""
    if entry is None:
        return "-"
    error = entry.get("stderr")
    return f"{100 * entry['value']:.1f}" + (f" ± {100 * error:.1f}" if error and math.isfinite(error) else "")


if __name__ == "__main__":
    raise SystemExit(main())
