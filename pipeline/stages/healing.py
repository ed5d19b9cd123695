"""The model that training begins with: the pruned one, or that one healed first, as train.heal says.

A healed model is a folder, train/healed, whole or not there; once it is there nothing is healed again. What was fitted
before a kill stands in train/progress.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.config import Config
from pipeline.errors import RegrowError
from pipeline.files import of_bytes, read_json, write_json
from pipeline.inputs import Inputs
from pipeline.model.blocks import find_blocks
from pipeline.model.costs import forward_flops_per_token
from pipeline.model.load import load_model, save_whole
from pipeline.model.replacement import EXPERTS
from pipeline.run import Run
from pipeline.stages import score
from pipeline.training.export import Origin
from pipeline.training.healed import HealedBlock, Progress
from pipeline.training.healing import Text, heal
from pipeline.world import World

#: Fits are judged on one sequence of so many, and made on the others.
JUDGED_EVERY = 8


def healing_hashes(config: Config, run: Run) -> dict[str, str]:
    """The dense model's files by their content, where healing reads them."""
    return {} if config.train.heal == "none" else score.inputs(config, run)


def begin_with(
    config: Config,
    run: Run,
    pruned: Origin,
    world: World,
    say: Callable[[str], None],
    between: Callable[[], None] = lambda: None,
) -> Origin:
    """What training begins with: ``pruned`` as it is, or healed. Every process asks; the first time, all heal.
    ``between`` is called behind each border, on every process: what it raises stops the healing there."""
    if config.train.heal == "none":
        return pruned
    origin = replace(pruned, folder=run.stage("train") / "healed")
    if not world.on_first(origin.folder.is_dir):
        _heal(config, run, pruned, world, say, between)
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    return origin


def read_healing(config: Config, run: Run) -> dict[str, Any] | None:
    """What the record of training says of healing; None where there was none."""
    return None if config.train.heal == "none" else read_json(run.stage("train") / "healing.json")


def check_heal(config: Config, model: PreTrainedModel | None) -> None:
    """RegrowError where healing is asked for of a model that has nothing to fit, as far as its structure tells.

    ``model`` is the dense one, on the meta device; None where it is not here.
    """
    if config.train.heal == "none" or model is None:
        return
    if all(any(EXPERTS.search(name) for name, _ in block.named_modules()) for block in find_blocks(model)):
        raise RegrowError(
            f"train.heal {config.train.heal}: every block of {type(model).__name__} is a mixture of experts, without "
            "one layer that could be fitted; set train.heal=none"
        )


def _heal(
    config: Config,
    run: Run,
    pruned: Origin,
    world: World,
    say: Callable[[str], None],
    between: Callable[[], None],
) -> None:
    asked, text, folder = config.train.healing, Inputs(config, run), run.stage("train")
    sequences = world.on_first(text.for_healing)
    dense = load_model(text.model, dtype=pruned.dtype, trust_remote_code=pruned.trust_remote_code)
    model = pruned.load()
    own = -(-sequences.numel() // world.size)
    states = 2 * own * 4 * model.config.get_text_config().hidden_size
    say(f"healing on {sequences.numel():,} tokens; their states take {of_bytes(states)} of each process's memory")

    def told(line: str) -> None:
        # Every process says each border, once it is kept.
        say(line)
        between()

    found = heal(
        dense,
        model,
        read_json(run.stage("prune") / "prune.json")["kept"],
        _own_text(sequences, asked.micro_batch, world),
        ridge=asked.ridge,
        progress=Progress(folder / "progress", score.hash_ids(sequences)),
        world=world,
        say=told,
    )
    forwards = sum(forward_flops_per_token(one, asked.length) for one in (dense, model))
    cost = {"tokens": sequences.numel(), "flops": sequences.numel() * forwards}
    world.on_first(lambda: _write(model, found, cost, pruned, run, say))


def _own_text(sequences: torch.Tensor, micro_batch: int, world: World) -> Text:
    """This process's share of the sequences (N, T): of both kinds a run of neighbours."""
    judged = torch.arange(len(sequences)) % JUDGED_EVERY == JUDGED_EVERY - 1
    shares = (rows.tensor_split(world.size)[world.rank] for rows in (sequences[~judged], sequences[judged]))
    fit, judge = ([batch for batch in share.split(micro_batch) if len(batch)] for share in shares)
    return Text(fit, judge)


def _write(
    model: PreTrainedModel,
    found: list[HealedBlock],
    cost: dict[str, Any],
    pruned: Origin,
    run: Run,
    say: Callable[[str], None],
) -> None:
    """Write train/healing.json and then train/healed, by which a later start sees that all is done."""
    folder, changed = run.stage("train"), [one for one in found if one.kept]
    write_json(folder / "healing.json", {**cost, "blocks": [asdict(one) for one in found]})
    text = model.config.get_text_config()
    text.regrow = {**(getattr(text, "regrow", None) or {}), "healed_blocks": [one.block for one in changed]}
    save_whole(model, folder / "healed", pruned.folder, "the healed model")
    say(f"healed {len(changed)} of {len(found)} blocks: training begins with {folder / 'healed'}")
