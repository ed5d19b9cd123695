"""The command line: it parses, hands over, and turns failures into one clear message and an exit status.

Nothing here imports torch: help, status and config errors answer at once.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config import STAGES, Config, ConfigError, dump_config, json_schema, load_config
from pipeline.config.naming import name_keys
from pipeline.errors import RegrowError, for_a_file, of_system, print_any_letter
from pipeline.launch import END, TOLD, Place, PlaceError, find_place, report_to_launcher, take_place
from pipeline.run import Run

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130

LIBRARIES = ("torch", "transformers", "deepspeed")  # what a report of a fault should name, beside regrow

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file of configs/, or of your own.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that go before the file's.")
]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
Redo = Annotated[str | None, typer.Option(metavar="STAGE", help="Move this stage and all behind it aside first.")]


def _print_version(asked: bool) -> None:
    if asked:
        beside = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        print(f"regrow {version('regrow')} (Python {platform.python_version()}, {beside})")
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Prune a language model's blocks, regrow its quality."""
    print_any_letter()


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, until: Until = None, redo: Redo = None) -> None:
    """Carry out all stages; what is done is skipped, what was cut off is resumed."""
    _carry_out(_until(until), config, overrides, redo)


@app.command()
def chain(
    config: ConfigPath,
    overrides: Overrides = None,
    redo: Annotated[
        int | None, typer.Option(metavar="LINK", help="Move this link, from 1, and all behind it aside first.")
    ] = None,
) -> None:
    """Remove blocks in parts, with training between: runs NAME-1, NAME-2, ..., resuming. Needs chain.parts."""
    place = find_place()
    take_place(place)
    asked = _read(config, overrides)
    from pipeline.stages.chain import carry_out_chain

    carry_out_chain(asked, place, redo)


def _stage_command(stage: str, what: str) -> None:
    def command(config: ConfigPath, overrides: Overrides = None, redo: Redo = None) -> None:
        _carry_out([stage], config, overrides, redo)

    app.command(stage, help=what)(command)


_stage_command("data", "List the corpus and pin what it is.")
_stage_command("score", "Score every block in one sweep.")
_stage_command("prune", "Remove the least important blocks.")
_stage_command("train", "Continue pretraining the pruned model; resumes.")


@app.command()
def evaluate(
    config: ConfigPath,
    overrides: Overrides = None,
    redo: Redo = None,
    export: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="Judge this export of training alone (step-00000750), or all; any time."),
    ] = None,
) -> None:
    """Measure dense, pruned and regrown; or exports, while training goes on too."""
    if export is None:
        _carry_out(["evaluate"], config, overrides, redo)
        return
    if redo is not None:
        raise ConfigError("--redo goes with a stage, and an export is judged outside of all; leave out one of the two")
    place = find_place()
    take_place(place)
    asked = _of_one_run(_read(config, overrides))
    from pipeline.stages.exports import judge_exports

    judge_exports(export, asked, place, str(config), overrides or [])


_stage_command("report", "Draw the page and write the model card.")


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    until: Until = None,
    price: Annotated[
        float | None, typer.Option(metavar="DOLLARS", help="For an hour of one GPU.", min=0, max=1e6)
    ] = None,
) -> None:
    """What a run will cost: blocks, parameters, steps, FLOPs, memory, hours, disk. Needs no GPU and no weights."""
    asked = _read(config, overrides)
    if asked.chain.parts:
        from pipeline.commands.plan_chain import chain_text, plan_chain

        print(chain_text(plan_chain(asked, _until(until), price)))
        return
    from pipeline.commands.plan import plan as made_plan
    from pipeline.commands.plan_text import plan_text

    print(plan_text(made_plan(asked, _until(until), price)))


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or the config that it is begun by.")],
    overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until the run ends, or until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between two looks.", min=0.1, max=1e6)] = 5,
) -> None:
    """What is done and found, where training stands, how fast it goes, and who works in the run."""
    from pipeline.commands.status import look_at

    if not watch:
        print(look_at(run, overrides or []).text)
        return
    from pipeline.commands.watch import watch as go_on

    go_on(lambda: look_at(run, overrides or []), every)


@app.command()
def runs(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Of runs; run.folder's default.")] = None,
) -> None:
    """The runs of a folder, and what was set aside of each: stages, perplexity, size on disk, date."""
    from pipeline.commands.runs import runs_text

    print(runs_text(folder))


@app.command()
def restore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    aside: Annotated[str, typer.Argument(metavar="ASIDE", help="The number that regrow runs shows: 001.")],
) -> None:
    """Put stages that were set aside back in place, and set aside what stands there now."""
    from pipeline.stages.aside import restore as put_back

    put_back(Run(run), aside, print)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs, or of chains.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; without it compare.html beside the first run.")
    ] = None,
) -> None:
    """Runs beside one another on one page: curves, perplexities, tasks, cost, and what differs in their configs."""
    from pipeline.commands.compare import compare as compared

    print(compared(runs, out))


@app.command("data-show")
def data_show(
    config: ConfigPath,
    step: Annotated[int, typer.Option(metavar="N", help="The training step, from 1.")],
    overrides: Overrides = None,
    characters: Annotated[int, typer.Option(metavar="N", help="Of each document; 0 shows all.", min=0)] = 300,
) -> None:
    """The documents that a training step saw, decoded."""
    asked = _of_one_run(_read(config, overrides))
    from pipeline.commands.show import shown_step

    for line in shown_step(asked, str(config), step, characters):
        print(line)


@app.command("config")
def show_config(config: ConfigPath, overrides: Overrides = None) -> None:
    """The resolved config: every key, after extends and overrides."""
    print(for_a_file(dump_config(_read(config, overrides))), end="")


@app.command()
def schema() -> None:
    """The config's JSON schema, for editors."""
    print(json_schema())


def _read(path: Path, overrides: list[str] | None) -> Config:
    """The config; RegrowError where the working directory is gone: paths in it mean nothing then, and torch dies."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RegrowError(
            "the working directory was deleted or moved; cd to one that is there, and start again"
        ) from None
    return load_config(path, overrides or [])


def _of_one_run(config: Config) -> Config:
    """The config; ConfigError where it describes a chain of runs."""
    if config.chain.parts:
        name = config.run_folder
        raise ConfigError(
            f"chain.parts {config.chain.parts}: this config is a chain of runs; start it with regrow chain, name one "
            f"of them by its own config ({name}-1/config.yaml), or set chain.parts=null to remove all at once"
        )
    return config


def _carry_out(stages: list[str], path: Path, overrides: list[str] | None, redo: str | None) -> None:
    place = find_place()
    take_place(place)
    config = _of_one_run(_read(path, overrides))
    if redo is not None:
        redo = _stage(redo)
        if redo not in stages:
            raise ConfigError(f"--redo {redo}: this command carries out {', '.join(stages)} only; use regrow run")
    from pipeline.stages.sequence import carry_out

    carry_out(stages, config, place, str(path), redo)


def _until(last: str | None) -> list[str]:
    """The stages up to ``last``, or all."""
    return list(STAGES[: STAGES.index(_stage(last)) + 1] if last else STAGES)


def _stage(name: str) -> str:
    if name not in STAGES:
        raise ConfigError(f"{name!r} is not a stage; the stages are {', '.join(STAGES)}")
    return name


def main() -> Any:
    """Entry point: 0 when all went well, 1 after a RegrowError, 2 for a wrong command line, 130 when interrupted."""
    place = Place()
    try:
        place = find_place()
        app(prog_name="regrow")
    except SystemExit as ended:
        status = int(ended.code or 0)
        # typer turns Ctrl-C into this status.
        if status == INTERRUPTED and place.rank == 0:
            print("regrow: interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        return _leave(status, place)
    except (RegrowError, OSError) as met:
        name_keys(error := of_system(met) if isinstance(met, OSError) else met)
        # Mostly every rank meets the same error. Rank 0 speaks first; its launcher then ends the others.
        if place.rank != 0:
            time.sleep(2)
        if place.local_rank != 0 and isinstance(error, ConfigError | PlaceError):
            # All processes of a machine read the same; its first one has said it.
            time.sleep(END)
            return _leave(TOLD, place)
        rank = f" (rank {place.rank})" if place.rank else ""
        print(f"regrow{rank}: {error}", file=sys.stderr, flush=True)
        if place.launcher == "other":
            report_to_launcher(str(error))
        return _leave(TOLD if place.launcher == "regrow" else 1, place)


def _leave(status: int, place: Place) -> int:
    """Exit status of this process. A rank leaves at once: it neither waits for peers in a half-done collective, nor
    tears down DeepSpeed, which aborts now and then when all is done."""
    if place.launcher is not None:
        sys.stdout.flush()
        os._exit(status)
    return status
