"""Whether what a stage left still stands: what it was made from then, beside what it would be made from now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config, completed
from pipeline.errors import RegrowError
from pipeline.files import hash_json
from pipeline.fingerprints import compare_fingerprints, is_of_format
from pipeline.run import Run
from pipeline.stages.growing import earlier_outputs, grows, reopen
from pipeline.stages.longer import BEHIND, is_asked_for_more, lengthens, reopen_training
from pipeline.stages.stage import Stage, load_stage


def fingerprint_of(known: Stage, config: Config, run: Run) -> dict[str, Any]:
    """What the stage would be made from now; the stages that it reads are done."""
    return {
        "config": config.read_by(known.name),
        "inputs": known.inputs(config, run),
        "upstream": {earlier: hash_json(run.record(earlier)["outputs"]) for earlier in known.upstream},
        "format": known.format,
    }


def differences(known: Stage, then: Mapping[str, Any], now: Mapping[str, Any], run: Run, oldest: int) -> list[str]:
    """What differs between a stage's fingerprint ``then`` and that of ``now``, a phrase each.

    A key that the release of then did not know counts as its default, a format from ``oldest`` on as today's. A stage
    of several criteria that has grown counts as it was, for those that are not made of all of it.
    """
    then = {**then, "config": completed(then["config"], known.name)}
    if oldest <= then["format"] <= known.format:
        then["format"] = known.format
    if not known.made_anew:
        then["upstream"] = {
            earlier: now["upstream"].get(earlier) if value in earlier_outputs(run.record(earlier)) else value
            for earlier, value in then["upstream"].items()
        }
    return compare_fingerprints(then, now)


def config_differences(stage: str, fingerprint: Mapping[str, Any], config: Config) -> list[str]:
    """What differs in the config's values alone, a phrase each."""
    then = completed(fingerprint["config"], stage)
    return compare_fingerprints({"config": then}, {"config": config.read_by(stage)})


def is_due(stage: str, config: Config, run: Run) -> bool:
    """Whether a command will carry the stage out, as far as the config says: it is not done, or does itself anew."""
    record = run.record(stage)
    if record is None:
        return True
    now, then = config.read_by(stage), completed(record["fingerprint"]["config"], stage)
    if then == now:
        # What is made of a training that goes on is made again.
        return stage in BEHIND and is_asked_for_more(config, run)
    # Not loaded without need: a command that has imported torch starts its processes slower.
    return lengthens(stage, then, now) or load_stage(stage).made_anew or grows(load_stage(stage), then, now)


def begin_again(
    known: Stage,
    config: Config,
    run: Run,
    record: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    found: list[str],
    say: Callable[[str], None],
) -> None:
    """Make a stage that is done, with what was ``found`` to differ, one that is begun, where nothing is lost by it:
    it is made anew each time, or made more of, or goes on. RegrowError for any other."""
    listed = "; ".join(found)
    if known.made_anew:
        for folder in run.set_aside([known.name]):
            say(f"made anew ({listed}); what there was is in {folder}")
        return
    then, now = completed(record["fingerprint"]["config"], known.name), fingerprint["config"]
    asked = {**record["fingerprint"], "config": now}
    more, longer = grows(known, then, now), lengthens(known.name, then, now)
    if not (more or longer) or differences(known, asked, fingerprint, run, known.readable_from):
        aside = fitting_aside(known, run, fingerprint)
        raise stale(f"stage {known.name} is done, but not with this config", found, known.name, aside)
    if longer:
        reopen_training(config, run, record, fingerprint, say)
        return
    say(f"grows ({listed}); what there is stays")
    reopen(known, run, record, fingerprint)


def require_done(stage: str, config: Config, run: Run, config_path: str) -> None:
    """Refuse to build on a stage that is missing, was done with another config, cannot be read, or has lost a file."""
    record, known = run.require(stage, config_path), load_stage(stage)
    then = record["fingerprint"]
    # What it read is not looked at again.
    now = {**then, "config": config.read_by(stage), "format": known.format}
    if found := differences(known, then, now, run, known.readable_from):
        longer = lengthens(stage, completed(then["config"], stage), now["config"])
        how = f", and may go on with it (regrow {stage})" if longer else ""
        raise stale(f"stage {stage} is done, but not with this config{how}", found, stage)
    for name, entry in record["outputs"].items():
        path = run.stage(stage) / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise RegrowError(
                f"{path}: missing or of another size than when stage {stage} wrote it; put it back, or "
                f"add --redo {stage}"
            )


def require_readable(stages: Iterable[str], run: Run) -> None:
    """Refuse what another version left of ``stages`` and this one cannot read, before those ahead of it work."""
    for stage in stages:
        record, known = run.record(stage), load_stage(stage)
        then = record["fingerprint"]["format"] if record else known.format
        if not (known.made_anew or known.readable_from <= then <= known.format):
            found = compare_fingerprints({"format": then}, {"format": known.format})
            raise stale(f"stage {stage} is done, but not with this config", found, stage)


def fitting_aside(known: Stage, run: Run, fingerprint: Mapping[str, Any]) -> Path | None:
    """The newest aside of the run in which the stage was done with this fingerprint."""
    for folder in reversed(run.asides()):
        record = Run(folder).record(known.name)
        if record and not differences(known, record["fingerprint"], fingerprint, run, known.readable_from):
            return folder
    return None


def stale(what: str, found: list[str], stage: str | None = None, aside: Path | None = None) -> RegrowError:
    """Says what differs, and what to do; ``stage``: that which may be done again; ``aside``: where it stands as it is
    asked for."""
    listed, again = "\n  ".join(found), f", or add --redo {stage}" if stage else ""
    if aside is not None:
        again = f", or put back what was done with it: regrow restore {aside.parent.parent} {aside.name}{again}"
    back = "Go on with that version" if all(map(is_of_format, found)) else "Change it back"
    return RegrowError(f"{what}:\n  {listed}\n{back}, or take another run.name{again}")
