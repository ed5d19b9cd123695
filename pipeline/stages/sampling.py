"""A teacher's answers in samples, as ``train.distill.samples`` wants them: where they are, and what is missing."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.stream.loader import fitting_workers, load_rows
from pipeline.errors import RegrowError
from pipeline.files import hash_json, of_bytes, require_space, take_lock, write_json
from pipeline.inputs import Inputs
from pipeline.life import Teller
from pipeline.model.describe import describe_folder
from pipeline.run import Run
from pipeline.stages.teaching import find_teacher, load_teacher, teacher_hashes
from pipeline.training.answers import FORMAT, AnswerStore, bytes_per_token
from pipeline.training.asking import Asking, ask
from pipeline.training.export import Origin
from pipeline.training.session import begin_reader
from pipeline.world import World


def answer_bytes(config: Config, folder: Path) -> float:
    """Bytes that a token's answer takes, estimated, of the teacher in ``folder``; a config.json there is enough."""
    asked = config.train.distill
    return bytes_per_token(asked.samples or 0, _vocabulary(config, folder), asked.temperature)


def _vocabulary(config: Config, folder: Path) -> int:
    """Rows of the head of the model in a folder."""
    head = describe_folder(folder, config.model.trust_remote_code).get_output_embeddings()
    return int(head.weight.shape[0])


def _identity(config: Config, run: Run, text: Inputs, origin: Origin) -> dict[str, Any]:
    """All that decides the answers, as it stands in identity.json: of the student the ids that both have alone."""
    asked, teacher = config.train.distill, find_teacher(config)
    both = [_vocabulary(config, folder) for folder in (origin.folder, teacher) if folder is not None]
    return {
        "teacher": teacher_hashes(config, run),
        "dtype": config.model.dtype,
        "temperature": asked.temperature,
        "samples": asked.samples,
        "seed": config.train.seed,
        "vocabulary": min(both),
        "attention": config.data.attention,
        "stream": asdict(text.identity),
        "format": FORMAT,
    }


def _find_store(config: Config, run: Run, text: Inputs, origin: Origin) -> AnswerStore:
    """The store of exactly this run's answers; other answers are in other folders beside it."""
    asked = config.train.distill
    if asked.samples is None or asked.store is None:
        raise RegrowError("train.distill.samples is not set: there are no answers to look for")
    identity = _identity(config, run, text, origin)
    folder = asked.store / hash_json(identity)[:16]
    if not (folder / "identity.json").exists():
        write_json(folder / "identity.json", identity)
    return AnswerStore(
        folder,
        lanes=text.lanes,
        row_length=config.data.row_length,
        samples=asked.samples,
        vocabulary=identity["vocabulary"],
    )


def open_answers(
    config: Config,
    run: Run,
    text: Inputs,
    origin: Origin,
    world: World,
    say: Teller,
    between: Callable[[], None] = lambda: None,
) -> AnswerStore | None:
    """The answers on all rows of the run; the teacher is loaded, and asked, only where some are missing. None where
    none are wanted. Every process calls it. ``between`` is called before each row, on every process as often: what it
    raises ends the asking there.

    RegrowError where there is no space for them, where another command is asking into the same folder, and where a
    file there is damaged.
    """
    if config.train.objective == "lm" or config.train.distill.samples is None:
        return None
    store = world.on_first(lambda: _find_store(config, run, text, origin))
    rows = config.steps * config.train.global_batch
    if world.on_first(lambda: bool(store.missing(rows))):

        def look(what: str) -> None:
            say.at(what)
            between()

        with _alone(store, world):
            # Another command may have ended in between.
            missing = world.on_first(lambda: store.missing(rows))
            _ask(config, text, store, missing, world, Teller(say.say, look))
    say(f"the teacher's answers on {rows:,} rows: {store.folder}")
    return store


@contextlib.contextmanager
def _alone(store: AnswerStore, world: World) -> Iterator[None]:
    """Hold the store, by the first process, until all are done."""
    with contextlib.ExitStack() as held:

        def take() -> None:
            file = held.enter_context((store.folder / ".lock").open("w"))
            if not take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, store.folder):
                raise RegrowError(f"{store.folder}: another command asks the teacher into it; start again when it ends")
            store.sweep()

        world.on_first(take)
        yield
        world.barrier()


def _ask(config: Config, text: Inputs, store: AnswerStore, missing: Sequence[range], world: World, say: Teller) -> None:
    """Ask about the ``missing`` blocks, each process about the rows of its own lanes."""
    data, asked = config.data, config.train.distill
    ends = config.steps * config.train.global_batch
    spans = [(blocks.start * store.block, min(ends, blocks.stop * store.block)) for blocks in missing]
    rows = sum(end - first for first, end in spans)
    needed = rows * data.row_length * bytes_per_token(store.samples, store.vocabulary, asked.temperature)
    world.on_first(lambda: require_space(store.folder, int(needed), "the teacher's answers"))
    teacher = load_teacher(config, world, lambda: 0, say)
    say(f"asking the teacher about {rows:,} rows once, for this run and others: about {of_bytes(needed)}")
    asking = Asking(asked.temperature, config.train.seed, data.attention == "within")
    workers, begin = fitting_workers(data.workers, text.lanes, world.size), time.perf_counter()
    for blocks, (first, end) in zip(missing, spans, strict=True):
        cursors = world.on_first(partial(store.cursors, blocks.start))
        stream = text.stream(start=first, cursors=cursors, rank=world.rank, processes=world.size)
        own = len(range(first + world.rank, end, world.size))
        with contextlib.closing(load_rows(stream, workers, begin_reader)) as taken:
            ask(teacher, islice(taken, own), store, asking, world.device, say.at)
    world.barrier()
    teacher.close()
    took = time.perf_counter() - begin
    size, speed = world.on_first(store.size), rows * data.row_length / took
    say(f"asked about {rows:,} rows in {took:.0f} s, {speed:,.0f} tokens/s; {of_bytes(size)} of answers are there now")
