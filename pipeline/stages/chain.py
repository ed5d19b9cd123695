"""A chain's links, carried out in their order: each is a run of its own, and begins with what the one before it left.

The folder that bears the chain's name holds its config, its log and its lock, which keeps a second start of the chain
out; each link has its own lock while it is worked in. A link that is done is skipped stage by stage, as any run is, so
that the same command goes on wherever it was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pipeline.agent import Agent
from pipeline.chain import chain_links, stages_of
from pipeline.config import STAGES, Config, dump_config
from pipeline.config.naming import name_keys
from pipeline.display import display
from pipeline.errors import RegrowError
from pipeline.files import write_atomic
from pipeline.interrupt import interruptible, raise_if_interrupted
from pipeline.launch import Place
from pipeline.run import Run
from pipeline.stages.longer import is_asked_for_more
from pipeline.stages.sequence import carry_out_alone, carry_out_together, run_of
from pipeline.stages.stage import Ahead, load_stage
from pipeline.stages.standing import config_differences, is_due, stale
from pipeline.stages.warming import warm_agent
from pipeline.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def carry_out_chain(config: Config, place: Place, redo: int | None = None) -> None:
    """Carry out the links of a chain, skipping what is done; ``redo`` first moves that link, from 1, and all behind it
    aside.

    Raises ConfigError where the config states no chain, and RegrowError, naming the link, on all that a run meets.
    """
    links = chain_links(config)
    if redo is not None and not 1 <= redo <= len(links):
        raise RegrowError(f"--redo {redo}: the links of this chain are 1 to {len(links)}")
    if place.launcher is None:
        with interruptible(), _held(config, links, place, redo) as agent:
            for number, link in enumerate(links):
                with _named(number, links):
                    _begin(config, links, number)
                    carry_out_alone(stages_of(number, links), link, place, _path(link), agent=agent)
        return
    world = World.join(place)
    with ExitStack() as held:
        world.on_first(lambda: held.enter_context(_held(config, links, place, redo)))
        for number, link in enumerate(links):
            with _named(number, links):
                world.on_first(partial(_begin, config, links, number))
                carry_out_together(stages_of(number, links), link, world, place, _path(link))
    world.close()


def _path(link: Config) -> str:
    """Where a link's config stands once it has begun."""
    return str(link.run_folder / "config.yaml")


@contextmanager
def _held(config: Config, links: Sequence[Config], place: Place, redo: int | None) -> Iterator[Agent]:
    """Refuse what can be refused now, without a trace; then hold the chain, with what is to be done again moved aside.

    Gives the launching agent, which serves all links: what it imported need not be imported for each.
    """
    chain, runs = run_of(config), [run_of(link) for link in links]
    stages = [stage for stage in STAGES if chain.stage(stage).exists()]
    if stages:
        raise RegrowError(
            f"run {chain.name} has a stage {stages[0]} of its own, and is no chain; take another run.name for the chain"
        )
    for run in (chain, *runs):
        run.require_free()
    _require_as_long(links[: redo - 1] if redo else links, links)
    again = runs[redo - 1 :] if redo else []
    due = {
        stage
        for number, (link, run) in enumerate(zip(links, runs, strict=True))
        for stage in stages_of(number, links)
        if run in again or is_due(stage, link, run)
    }
    agent = warm_agent([stage for stage in STAGES if stage in due], links[0], place)
    try:
        notes = _refuse(links, place) if due else []
        with chain.lock():
            write_atomic(chain.folder / "config.yaml", dump_config(config))
            for run in again:
                with run.lock():
                    for folder in run.set_aside(list(STAGES)):
                        _say(chain, f"redo: moved aside to {folder}")
            for note in notes:
                _say(chain, note)
            yield agent
    finally:
        agent.end()


def _require_as_long(done: Sequence[Config], links: Sequence[Config]) -> None:
    """RegrowError where training of a link that stays is done, and more tokens are asked of it: alone it may go on, but
    the links behind it are made of what it was."""
    for number, link in enumerate(done):
        run = run_of(link)
        if is_asked_for_more(link, run):
            found = config_differences("train", run.record("train")["fingerprint"], link)
            with _named(number, links):
                raise stale("stage train is done, but not with this config", found, "train")


def _refuse(links: Sequence[Config], place: Place) -> list[str]:
    """What every link's start will refuse, as far as it can be told of the first one and of its model's shape."""
    from pipeline.model.describe import describe_folder
    from pipeline.model.load import resolve_model
    from pipeline.stages.preflight import preflight

    first = links[0]
    # All stages: those that only the last link has would be refused after the hours of the others.
    preflight(STAGES, first, place)
    model = describe_folder(resolve_model(first.model.path, first.model.revision), first.model.trust_remote_code)
    return look_ahead(links, model, place)


def look_ahead(links: Sequence[Config], model: PreTrainedModel, place: Place, elsewhere: bool = False) -> list[str]:
    """What scoring and pruning say of the links behind the first, a line each; ``model`` is that of the first one, on
    the meta device, and is changed.

    Raises RegrowError, naming the link, on what they refuse.
    """
    from pipeline.stages.train import require_recipe

    lines = []
    for number, link in enumerate(links):
        with _named(number, links):
            require_recipe(link)
    for number, (link, shape) in enumerate(zip(links, shapes(links, model), strict=False)):
        if number:
            ahead = Ahead(link, place, frozenset(STAGES), None, shape, elsewhere)
            with _named(number, links):
                said = [line for stage in ("score", "prune") for line in load_stage(stage).check(ahead)]
            lines += [f"link {number + 1}: {line}" for line in said]
    return lines


def shapes(links: Sequence[Config], model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """For each link the model that it begins with, as far as a description goes: ``model``, on the meta device, with as
    many blocks fewer as the links before it remove. Which go is not known: where these cannot, it ends there."""
    from pipeline.model.blocks import remove_blocks

    for link in links:
        yield model
        first = link.prune.protect_first
        try:
            remove_blocks(model, range(first, first + (link.prune.remove or 0)))
        except RegrowError:
            return


def _begin(config: Config, links: Sequence[Config], number: int) -> None:
    """Say which link is next, and give it the corpus as the first one listed it: nothing is listed or hashed again."""
    run, link = run_of(links[number]), links[number]
    _say(run_of(config), f"link {number + 1} of {len(links)}, run {run.name}: {link.prune.remove} blocks")
    first = run_of(links[0])
    if number == 0 or run.stage("data").exists():
        return
    with run.lock():
        scratch = run.folder / ".data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(first.stage("data"), scratch)
        shutil.copy(first.folder / "hashes.json", run.folder)
        scratch.rename(run.stage("data"))
        run.log(f"data: as run {first.name} listed it")


@contextmanager
def _named(number: int, links: Sequence[Config]) -> Iterator[None]:
    """Within the context an error says which link met it."""
    try:
        yield
    except RegrowError as error:
        name_keys(error)
        which = f"link {number + 1} of {len(links)}, run {links[number].run.name}"
        again = f"; in a chain that is --redo {number + 1}" if "--redo" in str(error) else ""
        raise RegrowError(f"{which}: {error}{again}") from error


def _say(chain: Run, line: str) -> None:
    raise_if_interrupted()
    display.say("chain", line)
    chain.log(f"chain: {line}")
