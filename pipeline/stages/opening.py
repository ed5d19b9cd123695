"""Opening a training session: from the config to the micro-batch that fits, model, engine and rows."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.config import Config
from pipeline.data.remote.space import require_cache_space
from pipeline.data.stream.loader import fitting_workers
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.files import require_space
from pipeline.inputs import Inputs
from pipeline.life import Teller
from pipeline.model.attention import require_document_attention
from pipeline.model.costs import Trained, accumulation, mfu, model_flops_per_token, peak_flops
from pipeline.model.describe import as_trained, describe_folder
from pipeline.run import Run
from pipeline.stages.during import tasks_during
from pipeline.stages.teaching import find_teacher, open_teaching, teacher_bytes, teacher_flops
from pipeline.training.adapters import describe_adapters
from pipeline.training.answers import AnswerStore
from pipeline.training.checkpoint import Kept, Layout, checkpoint_bytes, clear_torn, complete_checkpoints
from pipeline.training.engine import Engine
from pipeline.training.export import Origin
from pipeline.training.fitting import Fit, ToFit, first_that_fits, keep_fit, kept_fit, plain_fit
from pipeline.training.frozen import count_saved
from pipeline.training.optimisation import Optimisation
from pipeline.training.recalled import Recalled
from pipeline.training.saving import Checkpoints
from pipeline.training.session import Judges, Rows, Session
from pipeline.training.teacher import Teaching
from pipeline.training.trained import told_of
from pipeline.world import World


def layout_of(config: Config, world: World, fit: Fit) -> Layout:
    """The layout of a run with this config on these processes, where ``fit`` was found to fit."""
    train, on_cpu = config.train, world.device.type == "cpu"
    # ZeRO 3 breaks a block into pieces, and compiling them has not been measured to be faster.
    compiled = not on_cpu and train.zero_stage < 3 if train.compile == "auto" else train.compile
    return Layout.of(world, fit, train.zero_stage, config.model.dtype, compiled)


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs of a token in ``training``, with the teacher's forward where it is asked then; and those of that forward,
    whenever it is asked: 0 without a ``teacher``."""

    training: float
    teacher: float


def open_session(
    config: Config,
    run: Run,
    text: Inputs,
    origin: Origin,
    layout: Layout,
    world: World,
    say: Teller,
    answers: AnswerStore | None = None,
) -> tuple[Session, FlopsPerToken]:
    """The session at its start, and the FLOPs of a token, once all that it needs is known to be there; ``answers`` are
    those of a teacher that was asked ahead."""
    folder, data, recipe = run.stage("train"), config.data, config.train
    model = origin.load_to_train(recipe.seed, attention=config.model.attention, device=world.device)
    if origin.lora is not None:
        say(describe_adapters(model, origin.lora))

    def beside() -> int:
        described = describe_folder(origin.folder, origin.trust_remote_code)
        planned = to_fit(config, as_trained(described, config.model.dtype, lora=origin.lora), world.size)
        return planned.needs(Fit(layout.micro_batch, layout.gradient_checkpointing))

    teaching = open_teaching(config, run, world, beside, say, answers)
    adapters = None if origin.lora is None else count_saved(model)
    own = model_flops_per_token(model, data.row_length, adapters)
    taught = world.on_first(lambda: teacher_flops(config, find_teacher(config)))
    flops = FlopsPerToken(own + (taught if answers is None else 0.0), taught)
    peak = peak_flops(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
    if data.attention == "within":
        world.on_first(lambda: require_document_attention(model))
    world.on_first(lambda: clear_torn(folder / "checkpoints"))
    on_all(world, lambda: _require_room(config, run, text, model, world))
    held_out = world.on_first(lambda: text.held_out_rows(data.row_length, "document", recipe.evaluate_rows))
    rows = Rows(
        text.identity,
        text.shard_names,
        lambda behind: text.stream(step=behind.step, cursors=behind.cursors, rank=world.rank, processes=world.size),
        _workers(text, world, say),
        within_documents=data.attention == "within",
    )
    engine = _engine(config, model, world, layout, teaching)
    for line in told_of(engine.model, engine.unreached, engine.narrowed, engine.router_coefficient, engine.head):
        say(line)

    def judge(engine: Engine, between: Callable[[], None]) -> dict[str, Any]:
        return perplexity(
            engine.engine,
            held_out,
            micro_batch=layout.micro_batch,
            device=world.device,
            head=engine.head,
            world=world,
            between=between,
        )

    judges = Judges(None if held_out is None else judge, tasks_during(config, run, origin, world, say))
    session = Session(
        engine,
        rows,
        folder,
        origin,
        Checkpoints(
            folder / "checkpoints",
            engine,
            layout,
            kept=_kept(config),
            background=recipe.save == "background",
            say=say,
        ),
        judges=judges,
        mfu=lambda speed: mfu(speed / world.size, flops.training, peak),
        say=say,
    )
    return session, flops


def find_fit(
    config: Config, run: Run, origin: Origin, world: World, say: Teller, answers: AnswerStore | None = None
) -> Fit:
    """The micro-batch of this run: as the config says or, for auto, as it was found for the same once. Every process
    asks for it."""
    recipe, folder = config.train, run.stage("train")
    if recipe.micro_batch != "auto":
        return Fit(recipe.micro_batch, recipe.gradient_checkpointing)
    found = world.on_first(lambda: kept_fit(folder, _asked(config, world)))
    if found is None:
        found = _try_fits(config, run, origin, world, say, answers)
    accumulated = accumulation(recipe.global_batch, found.micro_batch, world.size)
    say(
        f"micro-batch {found.micro_batch} x accumulation {accumulated} x {world.size}, recomputing "
        f"{found.gradient_checkpointing}"
    )
    return found


def keep_found(config: Config, run: Run, world: World, fit: Fit) -> None:
    """Keep what was found to fit, for later starts; the first process calls it, once it knows what it goes on from."""
    if config.train.micro_batch == "auto":
        keep_fit(run.stage("train"), fit, _asked(config, world))


def _asked(config: Config, world: World) -> dict[str, Any]:
    """All that a fit is found for."""
    train = config.train
    return {
        "processes": world.size,
        "device": world.device.type,
        "dtype": config.model.dtype,
        "row_length": config.data.row_length,
        "global_batch": train.global_batch,
        "zero_stage": train.zero_stage,
        "gradient_checkpointing": train.gradient_checkpointing,
        "compile": train.compile,
        **({} if train.objective == "lm" else {"teacher": train.distill.model_dump(mode="json", exclude={"store"})}),
        **({} if train.method == "full" else {"lora": train.lora.model_dump(mode="json")}),
    }


def to_fit(config: Config, trained: Trained, processes: int, teacher: int = 0) -> ToFit:
    """What a config asks to fit, beside so many bytes of a teacher on each device."""
    train = config.train
    return ToFit(
        trained,
        train.zero_stage,
        processes,
        config.data.row_length,
        train.global_batch,
        train.gradient_checkpointing,
        teacher,
    )


def _try_fits(config: Config, run: Run, origin: Origin, world: World, say: Teller, answers: AnswerStore | None) -> Fit:
    """What the device holds, by the memory plan and then by a forward and a backward with all that training holds."""
    described = describe_folder(origin.folder, origin.trust_remote_code)
    trained = as_trained(described, config.model.dtype, lora=origin.lora)
    held = world.on_first(lambda: teacher_bytes(config, find_teacher(config), world.size))
    wanted = to_fit(config, trained, world.size, held)
    if world.device.type != "cuda":
        return plain_fit(wanted)
    capacity = torch.cuda.get_device_properties(world.device).total_memory

    def attempt(fit: Fit) -> None:
        layout = layout_of(config, world, fit)
        model = origin.load_to_train(config.train.seed, attention=config.model.attention, device=world.device)
        teaching = open_teaching(config, run, world, lambda: wanted.needs(fit) - held, say, answers)
        engine = _engine(config, model, world, layout, teaching)
        try:
            shape = (fit.micro_batch, config.data.row_length)
            ids = torch.zeros(shape, dtype=torch.int64, device=world.device)
            known = None if answers is None else answers.alike(ids.numel())
            engine.backward(ids, ids.numel(), known=known)
            torch.cuda.synchronize()
        finally:
            engine.close()

    return first_that_fits(wanted.fits(capacity), attempt, say, capacity)


def _engine(
    config: Config, model: PreTrainedModel, world: World, layout: Layout, teaching: Teaching | Recalled | None
) -> Engine:
    recipe = config.train
    engine = Engine(
        model,
        world,
        Optimisation(recipe.learning_rate, recipe.betas, recipe.eps, recipe.weight_decay, recipe.no_decay, recipe.clip),
        micro_batch=layout.micro_batch,
        accumulation=accumulation(recipe.global_batch, layout.micro_batch, world.size),
        zero_stage=recipe.zero_stage,
        gradient_checkpointing=layout.gradient_checkpointing,
        compile_blocks=layout.compiled,
    )
    if teaching is not None:
        engine.learn_from(teaching)
    return engine


def _require_room(config: Config, run: Run, text: Inputs, model: PreTrainedModel, world: World) -> None:
    """RegrowError where this machine sees no room for all checkpoints and exports that will stand at once, beside those
    that are there, or for the remote shards that its lanes read at a time: before the first hour is paid for."""
    folder, data, recipe = run.stage("train"), config.data, config.train
    written, exported = len(complete_checkpoints(folder / "checkpoints")), len(list(folder.glob("exports/step-*")))
    checkpoints = max(1, _kept(config).at_once(config.steps, recipe.checkpoint_every) - written)
    exports = max(1, (1 if recipe.export_every is None else -(-config.steps // recipe.export_every)) - exported)
    needed = (
        checkpoints * checkpoint_bytes(count_saved(model)) + exports * model.num_parameters() * model.dtype.itemsize
    )
    what = f"{checkpoints} more checkpoints and {exports} exports (train.keep_checkpoints, keep_every, export_every)"
    require_space(folder, needed, what)
    own = -(-text.lanes * world.on_this_machine // world.size)
    require_cache_space(data.cache, text.corpus, own, data.cache_size)


def _kept(config: Config) -> Kept:
    return Kept(config.train.keep_checkpoints, config.train.keep_every)


def on_all(world: World, require: Callable[[], object]) -> None:
    """``require()`` on every process, for what may differ by machine. What it raises on any of them is raised by the
    first one, with the machine's name, and the others end."""
    problem = None
    try:
        require()
    except RegrowError as error:
        problem = (socket.gethostname(), str(error))
    problems = [found for found in world.gather(problem) if found]

    def settle() -> None:
        if problems:
            host, said = problems[0]
            raise RegrowError(said if host == socket.gethostname() else f"on {host}: {said}")

    world.on_first(settle)


def _workers(text: Inputs, world: World, say: Teller) -> int:
    """Reader processes: as many as the config wants, or the next lower number that divides the lanes."""
    wanted, lanes = text.config.data.workers, text.lanes
    workers = fitting_workers(wanted, lanes, world.size)
    if workers != wanted:
        say(f"{workers} workers for each process instead of {wanted}: they must divide {lanes} lanes")
    return workers
