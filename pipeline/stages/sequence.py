"""The stages in their order: which are done, which are stale, and carrying one out where this process stands.

A stage whose record has the fingerprint of today is skipped; one whose record differs is refused, with what differs;
everything else is carried out. Alone on a machine this process holds the run's lock and has the launching agent start
the processes of the stages that want several; under a launcher it takes its place among the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from pipeline.agent import UNNOTED, Agent
from pipeline.config import STAGES, Config, dump_config
from pipeline.display import display
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_atomic, write_json
from pipeline.interrupt import interruptible, raise_if_interrupted
from pipeline.launch import TOLD, Place, count_processes
from pipeline.life import telling
from pipeline.run import Run
from pipeline.stages.command import note_command, noted_command
from pipeline.stages.growing import lineage
from pipeline.stages.hardware import hardware
from pipeline.stages.history import note_silence, note_start
from pipeline.stages.stage import load_stage
from pipeline.stages.standing import (
    begin_again,
    differences,
    fingerprint_of,
    fitting_aside,
    is_due,
    require_done,
    require_readable,
    stale,
)
from pipeline.stages.stops import requests_noted, stop_before_next
from pipeline.stages.taking import take, takeable
from pipeline.stages.told import told
from pipeline.stages.warming import warm_agent
from pipeline.stopping import STOPPED
from pipeline.world import World

VERSIONS = ("regrow", "torch", "transformers", "deepspeed", "datasets", "accelerate", "tokenizers", "safetensors")


def carry_out(stages: list[str], config: Config, place: Place, config_path: str, redo: str | None = None) -> None:
    """Carry out ``stages`` in order, skipping what is done; ``redo`` first moves that stage and all behind it aside.

    Raises RegrowError on a stale stage, a missing upstream stage, a held lock, or whatever a stage meets.
    """
    if place.launcher == "regrow":
        # The command that started us holds the lock and has checked this one stage.
        world = World.join(place)
        _take_part(stages[0], config, run_of(config), world)
        world.close()
    elif place.launcher == "other":
        world = World.join(place)
        carry_out_together(stages, config, world, place, config_path, redo)
        world.close()
    else:
        with interruptible():
            carry_out_alone(stages, config, place, config_path, redo)


def run_of(config: Config) -> Run:
    """The run that a config describes."""
    return Run(config.run_folder)


def carry_out_together(
    stages: list[str], config: Config, world: World, place: Place, config_path: str, redo: str | None = None
) -> None:
    """``carry_out`` under somebody else's launcher, whose processes are ``world``; each of them calls it."""
    run = run_of(config)
    with ExitStack() as held:
        world.on_first(lambda: held.enter_context(_held(stages, config, run, place, redo)))
        _all_together(stages, config, run, world, place, config_path)


def carry_out_alone(
    stages: list[str],
    config: Config,
    place: Place,
    config_path: str,
    redo: str | None = None,
    agent: Agent | None = None,
) -> None:
    """``carry_out`` where no launcher is; with ``agent``, which goes on afterwards, or with one of its own."""
    run = run_of(config)
    with _held(stages, config, run, place, redo, agent) as at_work:
        for stage in stages:
            at_work.require_unasked()
            _alone(stage, config, run, config_path, at_work)


def _alone(stage: str, config: Config, run: Run, config_path: str, agent: Agent) -> None:
    fingerprint = _due(stage, config, run, config_path)
    if fingerprint is None:
        return
    if not load_stage(stage).launched(config):
        _by_itself(stage, config, run, Place(), fingerprint)
        return
    processes = count_processes(getattr(config, stage).processes)
    raise_if_interrupted()
    run.log(f"{stage}: starting {processes} process{'es' * (processes > 1)}")
    status = agent.launch([stage, str(run.folder / "config.yaml")], processes)
    if status in (TOLD, STOPPED):
        raise SystemExit(1 if status == TOLD else status)
    done = run.record(stage) is not None
    if status == UNNOTED and not done:
        print(f"regrow: stopped by {agent.asked} before it had begun; the same command goes on", flush=True)
        raise SystemExit(STOPPED)
    if status not in (0, UNNOTED) or not done:
        note_silence(stage, run)
        raise RegrowError(
            f"stage {stage} did not finish (its message stands above, and in {run.folder / 'log.txt'}); "
            "the same command goes on from where it was"
        )


def _all_together(stages: list[str], config: Config, run: Run, world: World, place: Place, config_path: str) -> None:
    for stage in stages:
        fingerprint = world.on_first(partial(_due, stage, config, run, config_path))
        if fingerprint is None:
            continue
        if load_stage(stage).launched(config):
            _take_part(stage, config, run, world, fingerprint)
            stop_before_next(stage, stages, world)
            world.barrier()
        else:
            world.on_first(partial(_by_itself, stage, config, run, place, fingerprint))


def _by_itself(stage: str, config: Config, run: Run, place: Place, fingerprint: dict[str, Any]) -> None:
    """A stage of one process, with no more threads than its place has: the stages behind it compute with the same."""
    _take_part(stage, config, run, World.join(Place(local_world=place.local_world), use_gpu=False), fingerprint)


def _due(stage: str, config: Config, run: Run, config_path: str) -> dict[str, Any] | None:
    """The fingerprint of a stage that is to be carried out, after noting the start; None when it is done already."""
    with told(stage, run):
        return _begun(stage, config, run, config_path)


def _begun(stage: str, config: Config, run: Run, config_path: str) -> dict[str, Any] | None:
    known = load_stage(stage)
    # The last one first: the command that it names brings those before it too.
    for earlier in reversed(known.upstream):
        require_done(earlier, config, run, config_path)
    fingerprint = fingerprint_of(known, config, run)
    record, started = run.record(stage), run.stage(stage) / "progress" / "started.json"
    if record is not None:
        found = differences(known, record["fingerprint"], fingerprint, run, known.readable_from)
        if not found:
            say_line(run, stage, "done before, skipped")
            return None
        begin_again(known, config, run, record, fingerprint, found, partial(say_line, run, stage))
    elif started.exists() and not known.progress_fits_any_config:
        found = differences(known, read_json(started), fingerprint, run, known.format)
        if found:
            aside = fitting_aside(known, run, fingerprint)
            raise stale(f"stage {stage} was begun with another config", found, stage, aside)
    run.keep_hashes()
    write_json(started, fingerprint)
    note_command(stage, run)
    note_start(stage, run)
    write_atomic(run.folder / "config.yaml", dump_config(config))
    return fingerprint


def _take_part(stage: str, config: Config, run: Run, world: World, fingerprint: dict[str, Any] | None = None) -> None:
    """Do this process's share of a stage; the first process writes the stage's record at the end."""
    begin = time.monotonic()

    def say(line: str) -> None:
        if world.rank == 0:
            say_line(run, stage, line)

    # Closed last: what an error says is to stand below the bar.
    with closing(display), requests_noted(stage, config, run, world), told(stage, run, world.rank), telling(say) as say:
        say(f"started: {world.size} process{'es' * (world.size > 1)}, {world.threads} threads each, {world.device}")
        result = load_stage(stage).work(config, run, world, say)
        if world.rank == 0:
            _finish(stage, config, run, world, fingerprint, result, time.monotonic() - begin)
            say(f"done in {time.monotonic() - begin:.1f} s")
        world.barrier()


def _finish(
    stage: str,
    config: Config,
    run: Run,
    world: World,
    fingerprint: dict[str, Any] | None,
    result: dict[str, Any],
    seconds: float,
) -> None:
    """Write the stage's record."""
    run.finish(
        stage,
        {
            "stage": stage,
            "fingerprint": fingerprint or read_json(run.stage(stage) / "progress" / "started.json"),
            "result": result,
            "outputs": run.outputs(stage),
            "seeds": {key: value for key, value in config.read_by(stage).items() if key.endswith(".seed")},
            "versions": {name: version(name) for name in VERSIONS},
            "hardware": hardware(world),
            "processes": world.size,
            "command": noted_command(stage, run),
            "seconds": seconds,
            **lineage(run, stage),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


@contextmanager
def _held(
    stages: list[str], config: Config, run: Run, place: Place, redo: str | None, agent: Agent | None = None
) -> Iterator[Agent]:
    """Refuse what can be refused now, without a trace; then hold the run, with what is to be done again moved aside."""
    # A second start is refused at once: it need not wait for torch.
    run.require_free()
    again = STAGES[STAGES.index(redo) :] if redo else ()
    due = [stage for stage in stages if stage in again or is_due(stage, config, run)]
    notes, wanted = [], takeable(stages, again, config, run)
    own = warm_agent(due, config, place) if agent is None else None
    try:
        if due:
            from pipeline.stages.preflight import preflight

            require_readable([stage for stage in stages if stage not in due], run)
            notes = preflight(due, config, place)
        with run.lock():
            for folder in run.set_aside(list(again)):
                say_line(run, redo or "", f"redo: moved aside to {folder}")
            for note in notes:
                say_line(run, due[0], note)
            take(wanted, config, run, partial(say_line, run))
            yield agent or own
    finally:
        if own is not None:
            own.end()


def say_line(run: Run, stage: str, line: str) -> None:
    """Print a line of a stage, and write it to the log."""
    raise_if_interrupted()
    display.say(stage, line)
    run.log(f"{stage}: {line}")
