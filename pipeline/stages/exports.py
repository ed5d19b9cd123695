"""Judging exports of training, a job of its own, while training goes on or behind it.

It reads train/exports and what stage data wrote, and adds lines to evaluate/curve.jsonl. The run's lock, its
config.yaml and the records of its stages are left alone: they are those of the command that holds the run.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.display import display
from pipeline.errors import RegrowError
from pipeline.files import read_json
from pipeline.interrupt import interruptible
from pipeline.launch import TOLD, Place, count_processes
from pipeline.life import Teller, telling
from pipeline.run import Run
from pipeline.stages.curve import add_line, claim, lines_of_step
from pipeline.stages.sequence import say_line
from pipeline.stages.standing import config_differences, require_done, stale
from pipeline.stages.told import told
from pipeline.stages.warming import warm_agent
from pipeline.world import World

if TYPE_CHECKING:
    from pipeline.stages.exam import Exam, Sitting

#: Stands for every export that is there.
ALL = "all"


def judge_exports(asked: str, config: Config, place: Place, config_path: str, overrides: list[str]) -> None:
    """Judge the export ``asked``, by its folder's name, or ALL; what was judged by the same protocol is skipped.

    Raises RegrowError where there is no such export, training or data are of another config, or whatever judging meets.
    """
    run = Run(config.run_folder)
    if place.launcher == "regrow":
        # The command that started us has looked.
        world = World.join(place)
        _take_part(asked, config, run, world)
        world.close()
    elif place.launcher == "other":
        world = World.join(place)
        world.on_first(lambda: _look(asked, config, run, config_path))
        _take_part(asked, config, run, world)
        world.close()
    else:
        with interruptible():
            _alone(asked, config, run, config_path, overrides)


def _alone(asked: str, config: Config, run: Run, config_path: str, overrides: list[str]) -> None:
    """As the command: look, then have the agent start the processes."""
    exports_named(asked, run)
    agent = warm_agent(["evaluate"], config, Place())
    try:
        _look(asked, config, run, config_path)
        words = ["evaluate", config_path, *overrides, "--export", asked]
        status = agent.launch(words, count_processes(config.evaluate.processes))
    finally:
        agent.end()
    if status == TOLD:
        raise SystemExit(1)
    if status != 0:
        raise RegrowError("the exports were not judged (the message stands above); the same command goes on from there")


def exports_named(asked: str, run: Run) -> list[Path]:
    """The folders of the exports that are asked for, the first steps first. RegrowError where there are none."""
    there = sorted((run.stage("train") / "exports").glob("step-*"))
    found = there if asked == ALL else [path for path in there if path.name == asked]
    if not found:
        listed = ", ".join(path.name for path in there) or "none; train.export_every has training write some"
        what = "no export" if asked == ALL else f"no export {asked}"
        raise RegrowError(f"--export {asked}: {what} in {run.stage('train') / 'exports'}; there are: {listed}")
    return found


def _look(asked: str, config: Config, run: Run, config_path: str) -> None:
    """Refuse what can be refused before anything is computed."""
    from pipeline.stages.exam import check_exam

    with told("evaluate", run):
        require_done("data", config, run, config_path)
        _require_trained(config, run)
        for line in check_exam(config, exports_named(asked, run)[0]):
            say_line(run, "evaluate", line)


def _require_trained(config: Config, run: Run) -> None:
    """RegrowError where training goes on, or was done, with another config: of what, the exports do not say."""
    record = run.record("train")
    begun = record["fingerprint"] if record else read_json(run.stage("train") / "progress" / "started.json")
    if found := config_differences("train", begun, config):
        raise stale("the exports are of a training with another config", found)


def _take_part(asked: str, config: Config, run: Run, world: World) -> None:
    """This process's share of all exports that are asked for."""
    from pipeline.stages.exam import Exam

    def say(line: str) -> None:
        if world.rank == 0:
            say_line(run, "evaluate", line)

    with closing(display), told("evaluate", run, world.rank), telling(say) as say:
        exports = world.on_first(lambda: exports_named(asked, run))
        exam = Exam(config, run, exports[0], world, say)
        for export in exports:
            with ExitStack() as held:
                sitting = world.on_first(lambda export=export, held=held: _begin(exam, export, run, held, say))
                if sitting is not None:
                    _judge(exam, sitting, config, run, world, say)


def _begin(exam: Exam, export: Path, run: Run, held: ExitStack, say: Teller) -> Sitting | None:
    """What is known of an export before it is judged, which is ``held`` from then on; None where it need not be."""
    holder = held.enter_context(claim(run, export.name))
    if holder is not None:
        say(f"{export.name}: {holder} is judging it, left to that")
        return None
    sitting = exam.sitting(export)
    before = lines_of_step(run, sitting.step)
    if any((line["sha256"], line["protocol"]) == (sitting.sha256, exam.protocol) for line in before):
        say(f"{export.name}: judged before by the same protocol, skipped")
        return None
    if any(line["protocol"] != exam.protocol for line in before):
        say(f"{export.name}: judged before by another protocol; this gets a line of its own")
    return sitting


def _judge(exam: Exam, sitting: Sitting, config: Config, run: Run, world: World, say: Teller) -> None:
    """Judge an export on every process; the first one adds its line."""
    begin = time.monotonic()
    found = exam.judge(sitting, say)
    line: dict[str, Any] = {
        "step": sitting.step,
        # Every row is of one length, so that a step has as many tokens as any other.
        "tokens": sitting.step * config.tokens_per_step,
        "export": sitting.export.relative_to(run.folder).as_posix(),
        "sha256": sitting.sha256,
        "protocol": exam.protocol,
        **found,
        "processes": world.size,
        "seconds": time.monotonic() - begin,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }

    def finish() -> None:
        sitting.require_unchanged()
        added = add_line(run, line)
        exam.clear(sitting)
        say(f"{sitting.export.name}: " + (f"judged in {line['seconds']:.1f} s" if added else "judged meanwhile"))

    world.on_first(finish)
