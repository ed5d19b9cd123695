"""A training that is done and is asked for more tokens: where its schedule allows it goes on from a checkpoint, and
ends in the bytes of a run that had asked for them at once.

It allows that where every step that is kept had the rate that it would have now. What there was is kept first, in
aside/NUMBER: the files of train, and all that was made of them; ``progress/shorter.json`` says where.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, Config, completed
from pipeline.errors import RegrowError
from pipeline.files import link_or_copy, read_json, require_space, write_json
from pipeline.run import Run
from pipeline.stages.aside import followers
from pipeline.stages.curve import forget_behind, require_unjudged
from pipeline.stages.rates import first_other_rate, rate_at, rising_steps
from pipeline.stages.stage import load_stage
from pipeline.training.metrics import cut_lines

STAGE = "train"
#: What is made of it, and made again.
BEHIND = STAGES[STAGES.index(STAGE) + 1 :]
SHORTER = "shorter.json"
#: The keys of train that decide how many steps there are, and their rates.
KEYS = ("tokens", "learning_rate", "final_learning_rate", "warmup", "warmup_steps", "schedule", "decay")
#: Schedules that stay at one rate, from the warm-up to a decay if there is one.
LEVEL = ("constant", "wsd")


def lengthens(stage: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a config's values ask a stage that was done with others for more tokens, and else at most for other
    rates."""
    if stage != STAGE or then["train.tokens"] >= now["train.tokens"]:
        return False
    apart = {f"train.{name}": None for name in KEYS}
    return {**then, **apart} == {**now, **apart}


def is_asked_for_more(config: Config, run: Run) -> bool:
    """Whether the run's training is done, and the config asks for more of it."""
    record = run.record(STAGE)
    return record is not None and lengthens(STAGE, _values(record), config.read_by(STAGE))


def _values(record: Mapping[str, Any]) -> dict[str, Any]:
    return completed(record["fingerprint"]["config"], STAGE)


@dataclass(frozen=True)
class Start:
    """Where a training of ``done`` steps goes on from: the checkpoint of ``step``."""

    step: int
    done: int

    def told(self, steps: int) -> str:
        """That it goes on, in words, to the last one of so many steps."""
        again = f"; steps {self.step + 1} to {self.done} are done again" if self.step < self.done else ""
        return f"goes on from step {self.step} to step {steps}{again}"


def find_start(config: Config, run: Run, record: Mapping[str, Any]) -> Start:
    """Where the training of that record goes on with this config, which asks for more of it. RegrowError where it
    cannot, with the reason and what can be done."""
    # Imports torch, which a command that only looks need not wait for.
    from pipeline.training.checkpoint import complete_checkpoints, missing_file, step_of

    then, folder = _as_recorded(config, record), run.stage(STAGE) / "checkpoints"
    if record["fingerprint"]["format"] != load_stage(STAGE).format:
        raise _refusal("another version of regrow trained it, and this one does not go on from there", then, config)
    other = first_other_rate(then, config)
    if other is not None:
        _require_level(then, config, other)
    there = complete_checkpoints(folder)
    left = [path for path in there if step_of(path) <= (then.steps if other is None else other)]
    if not left:
        before = "" if other is None else f" of step {other} or before ({_rates(then, config, other)})"
        kept = f"the oldest is {there[0].name} (train.keep_every keeps more)" if there else "none is left"
        if record.get("taken"):
            kept += f"; it was taken from {record['taken']}, which may go on itself"
        raise _refusal(f"it needs a checkpoint{before}, and of those in {folder} {kept}", then, config)
    if (lost := missing_file(left[-1])) is not None:
        raise _refusal(f"{lost} is missing, or of another size than when it was written", then, config)
    return Start(step_of(left[-1]), then.steps)


def _as_recorded(config: Config, record: Mapping[str, Any]) -> Config:
    """The config with the steps and rates of the training that is done."""
    values = _values(record)
    recorded = {name: values[f"train.{name}"] for name in KEYS}
    return config.model_copy(update={"train": config.train.model_copy(update=recorded)})


def _require_level(then: Config, now: Config, other: int) -> None:
    """RegrowError where rates differ from the step ``other`` on, and no checkpoint that is worth going back to can lie
    before it."""
    if not {then.train.schedule, now.train.schedule} <= set(LEVEL):
        raise _refusal(f"its rates hang on the number of steps: {_rates(then, now, other)}", then, now)
    if rising_steps(then) != rising_steps(now):
        reason = f"the warm-up had {rising_steps(then):,} steps, and would have {rising_steps(now):,}"
        raise _refusal(reason, then, now, f"add train.warmup_steps={rising_steps(then)}")
    if other == 0:
        raise _refusal(f"the rates are others: {_rates(then, now, other)}", then, now)


def _rates(then: Config, now: Config, step: int) -> str:
    return f"step {step + 1} had {rate_at(then, step):.4g}, and would have {rate_at(now, step):.4g}"


def _refusal(reason: str, then: Config, now: Config, *first: str) -> RegrowError:
    """``first``: a way out before those that there are always."""
    folder = now.run_folder
    ways = (
        *first,
        f"go back to train.tokens={then.train.tokens}",
        "train its export on, with a schedule of its own: "
        f"run.name=OTHER run.from={now.run.name} train.init={folder} data.after={folder}",
        "add --redo train to begin again",
    )
    return RegrowError(
        f"stage train is done with {then.steps:,} steps (train.tokens {then.train.tokens:,}, {then.train.schedule}), "
        f"and cannot go on to {now.steps:,} ({now.train.tokens:,}, {now.train.schedule}): {reason}\n"
        f"Either {', or '.join(ways)}"
    )


def reopen_training(
    config: Config, run: Run, record: Mapping[str, Any], fingerprint: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Make a training that is done one that was begun with this fingerprint, with what there was kept aside. Killed
    on the way it is done as it was, until its record goes, last of all. RegrowError as ``find_start``, and while a job
    judges its exports."""
    from pipeline.training.checkpoint import complete_checkpoints, folder_of, step_of

    start, folder = find_start(config, run, record), run.stage(STAGE)
    require_unjudged(run)
    begun = folder_of(folder / "checkpoints", start.step)
    # As many bytes again will be written next.
    require_space(folder, sum(path.stat().st_size for path in begun.iterdir()), "another checkpoint")
    kept = _keep(run, record, begun)
    name = kept.relative_to(run.folder).as_posix()
    write_json(folder / "progress" / SHORTER, {"record": record, "aside": name})
    write_json(folder / "progress" / "started.json", fingerprint)
    run.set_aside(list(BEHIND), kept)
    for path in complete_checkpoints(folder / "checkpoints"):
        if step_of(path) > start.step:
            (kept / STAGE / "checkpoints").mkdir(exist_ok=True)
            path.rename(kept / STAGE / "checkpoints" / path.name)
    if start.step < start.done:
        forget_behind(run, start.step)
    run.unfinish(STAGE)
    say(f"{start.told(config.steps)}; what there was, and what was made of it, is in {kept}")
    for other in followers(run):
        say(f"run {other.name} goes on from this one, and was made of what is in {kept}")


def _keep(run: Run, record: Mapping[str, Any], begun: Path) -> Path:
    """The folder under aside/ that holds the training's results and record, linked or copied: all or, whatever
    happens, none. With them the checkpoint ``begun``, which the longer training takes away in time: what is put back
    can go on again."""
    for folder in run.asides():
        # By a command that was killed behind this.
        if Run(folder).record(STAGE) == record:
            return folder
    scratch = run.folder / f".{STAGE}.kept"
    shutil.rmtree(scratch, ignore_errors=True)
    stage = run.stage(STAGE)
    files = [stage / name for name in run.results(STAGE)]
    for path in (*files, *begun.iterdir()):
        link_or_copy(path, scratch / path.relative_to(stage))
    write_json(scratch / "stage.json", record)
    target = run.new_aside()
    scratch.rename(target / STAGE)
    return target


def forget_end(config: Config, run: Run, step: int) -> None:
    """Where training resumes at the ``step`` that was its last one: what it had for that alone goes, so that the files
    are those of a run that had asked for more at once. It is kept aside."""
    shorter, folder = _shorter(run), run.stage(STAGE)
    if shorter is None or shorter["record"]["result"]["steps"] != step:
        return
    # Made again where the config has one at this step.
    shutil.rmtree(run.folder / shorter["record"]["result"]["export"], ignore_errors=True)
    every = {"held_out.jsonl": config.train.evaluate_every, "tasks.jsonl": config.evaluate.during.every}
    for name, steps in every.items():
        if step != config.steps and not (steps and step % steps == 0):
            cut_lines(folder / name, lambda line: line["step"] == step)


def _shorter(run: Run) -> dict[str, Any] | None:
    path = run.stage(STAGE) / "progress" / SHORTER
    return read_json(path) if path.exists() else None


def earlier_ends(run: Run) -> list[dict[str, Any]]:
    """Where the training had ended before it went on, the first time first: ``steps``, ``tokens``, ``finished``, and
    the folder ``aside`` in the run that keeps it."""
    shorter = _shorter(run)
    if shorter is None:
        return []
    record, aside = shorter["record"], shorter["aside"]
    ended = {**{name: record["result"][name] for name in ("steps", "tokens")}, "finished": record["finished"]}
    return [*record["result"].get("lengthened", []), {**ended, "aside": aside}]


def would_go_on(config: Config) -> list[str]:
    """What ``reopen_training`` would do or refuse, in a line, where training is done and is asked for more."""
    run = Run(config.run_folder)
    record = run.record(STAGE)
    if record is None or not is_asked_for_more(config, run):
        return []
    try:
        told = find_start(config, run, record).told(config.steps)
    except RegrowError as error:
        return [str(error).replace("\n", ". ")]
    return [f"train is done, and {told}; the figures here are of all steps"]
