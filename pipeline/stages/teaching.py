"""The teacher of a run, as ``train.objective`` and ``train.distill`` ask for it: found, checked, loaded, counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError
from pipeline.files import of_bytes, read_json
from pipeline.life import Teller
from pipeline.loading import loading, weight_bytes
from pipeline.memory import available_memory
from pipeline.model.costs import forward_flops_per_token
from pipeline.model.describe import describe_folder
from pipeline.model.load import load_model, model_files
from pipeline.origins import WORDS, check_dense, check_named, dense_folder, model_folder, require_same_tokens
from pipeline.run import Run
from pipeline.training.answers import AnswerStore
from pipeline.training.recalled import Recalled
from pipeline.training.teacher import Teacher, Teaching
from pipeline.world import World

KEY = "train.distill.teacher"


def find_teacher(config: Config) -> Path | None:
    """The folder of the teacher's model, None where none is asked for. RegrowError where the key names no model."""
    if config.train.objective == "lm":
        return None
    named = config.train.distill.teacher
    return dense_folder(config) if named == "dense" else model_folder(named, KEY, ("dense",))


def teacher_hashes(config: Config, run: Run) -> dict[str, str]:
    """sha256 of the teacher's files, by their names."""
    folder = find_teacher(config)
    return {} if folder is None else {f"teacher/{path.name}": run.hash_of(path) for path in model_files(folder)}


def check_teacher(config: Config, encoder: Encoder | None, elsewhere: bool = False) -> list[str]:
    """Whether the teacher is one for the text's tokens. Returns a line if it is not here.

    RegrowError where there is none in its folder (``elsewhere``: unless it may be on another machine), where its ids
    are not those of ``encoder``, and where states are to be met that are not the dense model's.
    """
    asked, init = config.train.distill, config.train.init
    if config.train.objective != "lm" and asked.hidden and init not in WORDS:
        raise RegrowError(
            f"train.distill.hidden {asked.hidden:g}: which blocks of the dense model those of train.init {init} are is "
            "not known; set hidden: 0"
        )
    if config.train.objective != "lm" and asked.samples is not None and config.data.after is not None:
        raise RegrowError(
            "train.distill.samples with data.after: answers are kept from the first row of the stream on, and the rows "
            "of this run begin behind another's; set train.distill.samples: null"
        )
    if config.train.objective == "lm" or asked.teacher == "dense":
        # The model that is pruned has its own tokens; model.dense is looked at by check_dense.
        return check_dense(config, encoder, elsewhere) if config.train.objective != "lm" else []
    if asked.hidden:
        raise RegrowError(
            f"train.distill.hidden {asked.hidden:g}: only the dense model is known to have the blocks that are left; "
            f"set {KEY}: dense, or hidden: 0"
        )
    return check_named(
        config, KEY, asked.teacher, lambda: model_folder(asked.teacher, KEY, ("dense",)), encoder, elsewhere
    )


def require_known_tokens(config: Config, encoder: Encoder) -> None:
    """RegrowError where an id of the text, which ``encoder`` makes, is another token for the teacher."""
    folder = find_teacher(config)
    if folder is not None:
        require_same_tokens(encoder, folder, KEY, config.model.trust_remote_code)


def teacher_bytes(config: Config, folder: Path | None, processes: int, sharded: bool | None = None) -> int:
    """Bytes of the teacher's weights on each device, ``sharded`` or not; None: as the config says, whole for auto. None
    of them where it is asked ahead: then it does not stand beside the student."""
    sharded = config.train.distill.sharded is True if sharded is None else sharded
    if folder is None or config.train.distill.offloaded or config.train.distill.samples is not None:
        return 0
    whole = weight_bytes(describe_folder(folder, config.model.trust_remote_code), config.model.dtype)
    return -(-whole // processes) if sharded else whole


def teacher_flops(config: Config, folder: Path | None) -> float:
    """FLOPs of the teacher's forward for a token."""
    if folder is None:
        return 0.0
    return forward_flops_per_token(describe_folder(folder, config.model.trust_remote_code), config.data.row_length)


def is_sharded(config: Config, folder: Path | None, world: World, beside: Callable[[], int]) -> bool:
    """Whether the teacher's weights are split, where training takes ``beside()`` bytes of each device."""
    asked = config.train.distill
    if asked.offloaded or asked.sharded is True:
        return True
    if asked.sharded is False or config.train.zero_stage < 3:
        return False
    if world.device.type == "cuda":
        room = torch.cuda.get_device_properties(world.device).total_memory
    else:
        room = available_memory() // world.on_this_machine
    return beside() + teacher_bytes(config, folder, world.size, sharded=False) > room


def load_teacher(config: Config, world: World, beside: Callable[[], int], say: Teller) -> Teacher:
    """The teacher that the config names, beside ``beside()`` bytes on each device. Every process calls it."""
    folder = world.on_first(lambda: find_teacher(config))
    model = load_model(folder, device=world.device, **loading(config, config.model.dtype))
    offloaded = config.train.distill.offloaded
    sharded = world.on_first(lambda: is_sharded(config, folder, world, beside))
    size = of_bytes(model.get_memory_footprint())
    where = "in host memory" if offloaded else "split over the processes" if sharded else "on each device"
    say(f"teacher: {folder.name}, {size} of weights {where}")
    return Teacher(model, world, sharded=sharded, offloaded=offloaded)


def open_teaching(
    config: Config,
    run: Run,
    world: World,
    beside: Callable[[], int],
    say: Teller,
    answers: AnswerStore | None = None,
) -> Teaching | Recalled | None:
    """What is learnt from the teacher, which is loaded, or from its stored ``answers``; None where none is asked for.
    Every process calls it.

    ``beside()``: bytes that training takes of each device.
    """
    train, asked = config.train, config.train.distill
    if train.objective == "lm":
        return None
    share = 1.0 if train.objective == "distill" else asked.weight
    if answers is not None:
        return Recalled(answers, share, asked.temperature)
    teacher = load_teacher(config, world, beside, say)
    return Teaching(teacher, share, asked.temperature, asked.hidden, _common_blocks(config, run))


def _common_blocks(config: Config, run: Run) -> tuple[int, ...]:
    """The dense model's block for each of the student's, in their order."""
    prune = read_json(run.stage("prune") / "prune.json")
    # Where runs before this one removed blocks, the numbers of the first dense model.
    first = prune.get("first")
    begun = range(len(prune["kept"]) + len(prune["removed"])) if first is None else first["kept"]
    gone = [] if config.train.init == "dense" else prune["removed"] if first is None else first["removed"]
    return tuple(block for block in begun if block not in gone)
