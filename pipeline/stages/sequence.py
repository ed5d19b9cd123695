"""The stages in their order: which are done, which are stale, and carrying one out where this process stands.

A stage whose record has the fingerprint of today is skipped; one whose record differs is refused, with what differs;
everything else is carried out. Alone on a machine this process holds the run's lock and starts torchrun for the
stages that want it; under a launcher it takes its place among the others.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, Config, dump_config
from pipeline.launch import TOLD, Place, World, count_processes, interruptible, launch
from pipeline.run import (
    RegrowError,
    Run,
    compare_fingerprints,
    first_line,
    hash_json,
    read_json,
    write_atomic,
    write_json,
)

VERSIONS = ("regrow", "torch", "transformers", "deepspeed", "datasets", "accelerate", "tokenizers", "safetensors")


def carry_out(stages: list[str], config: Config, place: Place, config_path: str, redo: str | None = None) -> None:
    """Carry out ``stages`` in order, skipping what is done; ``redo`` first moves that stage and all behind it aside.

    Raises RegrowError on a stale stage, a missing upstream stage, a held lock, or whatever a stage meets.
    """
    run = Run(config.run.folder / config.run.name)
    if place.launcher == "regrow":
        # The command that started us holds the lock and has checked this one stage.
        world = World(place)
        _take_part(stages[0], config, run, world)
        world.close()
    elif place.launcher == "other":
        world = World(place)
        with run.lock() if world.rank == 0 else nullcontext():
            if world.rank == 0:
                _prepare(stages, config, run, place, redo)
            _all_together(stages, config, run, world, place, config_path)
        world.close()
    else:
        with interruptible(), run.lock():
            _prepare(stages, config, run, place, redo)
            for stage in stages:
                _alone(stage, config, run, config_path)


def _alone(stage: str, config: Config, run: Run, config_path: str) -> None:
    module = _module(stage)
    fingerprint = _due(stage, config, run, config_path)
    if fingerprint is None:
        return
    if not module.launched(config):
        _take_part(stage, config, run, World(Place(), use_gpu=False), fingerprint)
        return
    processes = count_processes(getattr(config, stage).processes)
    run.log(f"{stage}: starting {processes} process{'es' * (processes > 1)}")
    status = launch([stage, str(run.folder / "config.yaml")], processes)
    if status == TOLD:
        raise SystemExit(1)
    if status != 0 or run.record(stage) is None:
        raise RegrowError(
            f"stage {stage} did not finish (its message stands above, and in {run.folder / 'log.txt'}); "
            "the same command goes on from where it was"
        )


def _all_together(stages: list[str], config: Config, run: Run, world: World, place: Place, config_path: str) -> None:
    for stage in stages:
        fingerprint = world.from_first(_due(stage, config, run, config_path) if world.rank == 0 else None)
        if fingerprint is None:
            continue
        shared = _module(stage).launched(config)
        if shared or world.rank == 0:
            # By itself, but with no more threads than its place has: the stages behind it compute with the same.
            own = world if shared else World(Place(local_world=place.local_world), use_gpu=False)
            _take_part(stage, config, run, own, fingerprint)
        world.barrier()


def _due(stage: str, config: Config, run: Run, config_path: str) -> dict[str, Any] | None:
    """The fingerprint of a stage that is to be carried out, after noting the start; None when it is done already."""
    module = _module(stage)
    # The last one first: the command that it names brings those before it too.
    for earlier in reversed(module.UPSTREAM):
        _require(earlier, config, run, config_path)
    fingerprint = {
        "config": config.read_by(stage),
        "inputs": module.inputs(config, run),
        "upstream": {earlier: hash_json(run.record(earlier)["outputs"]) for earlier in module.UPSTREAM},
        "format": module.FORMAT,
    }
    record, started = run.record(stage), run.stage(stage) / "progress" / "started.json"
    if record is not None:
        differences = compare_fingerprints(record["fingerprint"], fingerprint)
        if differences:
            raise _stale(f"stage {stage} is done, but not with this config", differences, stage)
        _say(run, stage, "done before, skipped")
        return None
    if started.exists() and not getattr(module, "PROGRESS_FITS_ANY_CONFIG", False):
        differences = compare_fingerprints(read_json(started), fingerprint)
        if differences:
            raise _stale(f"stage {stage} was begun with another config", differences, stage)
    run.keep_hashes()
    write_json(started, fingerprint)
    write_atomic(run.folder / "config.yaml", dump_config(config))
    return fingerprint


def _require(stage: str, config: Config, run: Run, config_path: str) -> None:
    """Refuse to build on a stage that is missing, was done with another config, or has lost a file."""
    record = run.require(stage, config_path)
    done_with = {"config": record["fingerprint"]["config"]}
    differences = compare_fingerprints(done_with, {"config": config.read_by(stage)})
    if differences:
        raise _stale(f"stage {stage} is done, but not with this config", differences, stage)
    for name, entry in record["outputs"].items():
        path = run.stage(stage) / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise RegrowError(f"{path}: missing or of another size than when stage {stage} wrote it; put it back, or "
                              f"add --redo {stage}")  # fmt: skip


def _stale(what: str, differences: list[str], stage: str) -> RegrowError:
    listed = "\n  ".join(differences)
    return RegrowError(f"{what}:\n  {listed}\nChange it back, take another run.name, or add --redo {stage}")


def _take_part(stage: str, config: Config, run: Run, world: World, fingerprint: dict[str, Any] | None = None) -> None:
    """Do this process's share of a stage; the first process writes the stage's record at the end."""
    begin = time.time()

    def say(line: str) -> None:
        if world.rank == 0:
            _say(run, stage, line)

    say(f"started: {world.size} process{'es' * (world.size > 1)}, {world.threads} threads each, {world.device}")
    try:
        result = _module(stage).work(config, run, world, say)
        if world.rank == 0:
            _finish(stage, config, run, world, fingerprint, result, time.time() - begin)
            say(f"done in {time.time() - begin:.1f} s")
        world.barrier()
    except Exception as error:
        told = _told(error, stage, world)
        run.log(f"{stage}: rank {world.rank}: {told or repr(error)}")
        if told is None:
            raise
        raise told from error


def _finish(
    stage: str, config: Config, run: Run, world: World, fingerprint: dict[str, Any] | None, result: Any, seconds: float
) -> None:
    """Write the stage's record."""
    run.finish(stage, {
        "stage": stage, "fingerprint": fingerprint or read_json(run.stage(stage) / "progress" / "started.json"),
        "result": result, "outputs": run.outputs(stage),
        "seeds": {key: value for key, value in config.read_by(stage).items() if key.endswith(".seed")},
        "versions": {name: version(name) for name in VERSIONS}, "hardware": _hardware(world),
        "processes": world.size, "seconds": seconds, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    })  # fmt: skip


def _told(error: Exception, stage: str, world: World) -> RegrowError | None:
    """What a person should be told of an error, or None where only the traceback says it."""
    import torch

    if isinstance(error, RegrowError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return RegrowError(
            f"stage {stage}: rank {world.rank} ran out of GPU memory ({first_line(error)}); lower the stage's "
            "micro_batch, or for training raise train.zero_stage or set train.gradient_checkpointing"
        )
    if isinstance(error, RuntimeError) and ("closed by peer" in str(error) or "reset by peer" in str(error)):
        # Another process is gone. Its launcher saw that, or will, says so, and ends this one meanwhile.
        time.sleep(5)
        return RegrowError(f"stage {stage}: rank {world.rank} lost another rank, whose message says why")
    if isinstance(error, OSError):
        return RegrowError(
            f"stage {stage}: {error.strerror or first_line(error)}: {error.filename or 'no file named'}; nothing "
            "finished was lost, the same command goes on from there"
        )
    return None


def _prepare(stages: list[str], config: Config, run: Run, place: Place, redo: str | None) -> None:
    """Refuse what can be refused now, then move aside what is to be done again."""
    again = STAGES[STAGES.index(redo) :] if redo else ()
    due = [stage for stage in stages if stage in again or run.record(stage) is None]
    if due:
        # Imported here: a second start, which the lock refuses, need not wait for torch.
        from pipeline.stages.preflight import preflight

        preflight(due, config, place)
    for folder in run.set_aside(list(again)):
        _say(run, redo or "", f"redo: moved aside to {folder}")


def _module(stage: str) -> Any:
    return importlib.import_module(f"pipeline.stages.{stage}")


def _say(run: Run, stage: str, line: str) -> None:
    print(f"[{stage}] {line}", flush=True)
    run.log(f"{stage}: {line}")


def _hardware(world: World) -> dict[str, str]:
    import torch

    device = "CPU"
    if world.device.type == "cuda":
        device = f"{world.size} x {torch.cuda.get_device_name(world.device)}"
    return {
        "device": device,
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
