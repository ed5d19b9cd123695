"""What a stage is: its place among the others, what it reads, how it is looked at beforehand, and its work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.launch import Place
from pipeline.life import Teller
from pipeline.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.data.tokens import Encoder
    from pipeline.world import World


@dataclass(frozen=True)
class Ahead:
    """What is known before any stage starts: the stages that are ``due`` in this run, and the place of this process.

    ``encoder`` is that of the dense model's tokenizer and ``model`` that model on the meta device; None where no due
    stage reads it. ``elsewhere``: the run is only planned here, for ``place`` on another machine, whose sources need
    not be on this one; then ``encoder`` is None where the tokenizer is not.
    """

    config: Config
    place: Place
    due: frozenset[str]
    encoder: Encoder | None
    model: PreTrainedModel | None
    elsewhere: bool = False


def nothing_to_say(ahead: Ahead) -> list[str]:
    """The check of a stage that cannot be refused beforehand."""
    return []


@dataclass(frozen=True)
class Stage:
    """One stage. ``work(config, run, world, say)`` does a process's share of it and gives the record's result.

    ``upstream`` are the stages whose outputs it reads; ``format`` is raised when what it writes changes; ``inputs``
    gives hashes of what else it reads, by name; ``launched`` says whether several processes share the work.
    ``check`` gives lines that people should know, or raises RegrowError, before any stage starts. ``reads_model``:
    whether it reads the dense model's folder. ``progress_fits_any_config``: begun with one config, it may go on with
    another, because its progress says of every part what it was made from. ``readable``: the oldest format that later
    stages can read, 0 where only today's is. ``grows_by``: a key with a list of what is made, each by itself, so that
    more of it is made beside what there is. ``made_anew``: it is cheap, and made again whenever anything differs.
    """

    name: str
    upstream: tuple[str, ...]
    format: int
    work: Callable[[Config, Run, World, Teller], dict[str, Any]]
    inputs: Callable[[Config, Run], dict[str, str]]
    launched: Callable[[Config], bool]
    check: Callable[[Ahead], list[str]] = nothing_to_say
    reads_model: bool = False
    progress_fits_any_config: bool = False
    readable: int = 0
    grows_by: str | None = None
    made_anew: bool = False

    @property
    def readable_from(self) -> int:
        """The oldest format of a record that stands."""
        return self.readable or self.format


def load_stage(name: str) -> Stage:
    """The stage of that name, with what its work imports: torch, for most."""
    return importlib.import_module(f"pipeline.stages.{name}").STAGE
