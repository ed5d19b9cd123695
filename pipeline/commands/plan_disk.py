"""What a run will have on disk at once, for a plan, beside what is free where it is to lie."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from transformers import PreTrainedModel

from pipeline.checks import has_weights
from pipeline.config import Config
from pipeline.data.corpus.local import local_files
from pipeline.files import of_bytes
from pipeline.model.costs import Trained
from pipeline.model.describe import Sizes
from pipeline.places import is_here
from pipeline.training.checkpoint import Kept, checkpoint_bytes


@dataclass(frozen=True)
class Need:
    """What stands in ``folder`` at once, and its bytes; None where they cannot be told before the run."""

    folder: Path
    what: str
    bytes: int | None


def exports_of(config: Config) -> int:
    """Exports of a run: at each multiple of train.export_every, and at the last step."""
    every = config.train.export_every
    return 1 if every is None else -(-config.steps // every)


def disk_needs(
    config: Config,
    model: PreTrainedModel,
    trained: Trained,
    gone: int,
    begun: Path,
    states: int,
    corpus_tokens: int | None,
) -> list[Need]:
    """Checkpoints, exports, the pruned model, states of the sweep, copies of remote shards and models, and token ids.

    ``model``, on the meta device, is pruned by ``gone`` parameters and trained as ``trained`` says; its config.json
    lies in ``begun``. ``states``: bytes that the sweep keeps in files. ``corpus_tokens``: those of the whole corpus,
    where they are known.
    """
    run, train, data = config.run_folder, config.train, config.data
    weights = (Sizes.of(model).whole - gone) * getattr(torch, config.model.dtype).itemsize
    kept, exports = Kept(train.keep_checkpoints, train.keep_every), exports_of(config)
    checkpoints, each = kept.at_once(config.steps, train.checkpoint_every), checkpoint_bytes(trained.parameters)
    needs = [
        Need(run, f"{checkpoints} checkpoints of {of_bytes(each)} ({_kept_words(config)})", checkpoints * each),
        Need(run, f"{exports} exports of {of_bytes(weights)}", exports * weights),
        Need(run, "the pruned model", weights),
    ]
    if states:
        needs.append(Need(run, "states between blocks while scoring", states))
    if not Path(config.model.path).is_dir() and not has_weights(begun):
        size = Sizes.of(model).whole * (getattr(model.config, "dtype", None) or torch.bfloat16).itemsize
        needs.append(Need(Path(huggingface_hub.constants.HF_HUB_CACHE), f"{config.model.path}, fetched", size))
    if any("://" in one.path or local_files(one.path, one.files) is None for one in data.texts.values()):
        limit = "data.cache_size" if data.cache_size is not None else "as many as are read; data.cache_size limits them"
        needs.append(Need(data.cache, f"copies of remote shards ({limit})", data.cache_size))
    if data.tokenised is not None:
        size = 2 if model.config.get_text_config().vocab_size <= 1 << 16 else 4
        ids = None if corpus_tokens is None else corpus_tokens * size
        needs.append(Need(data.tokenised, f"the corpus as token ids, {size} bytes a token", ids))
    return needs


def _kept_words(config: Config) -> str:
    train = config.train
    always = "" if train.keep_every is None else f", keep_every {train.keep_every:,}"
    return (
        f"every {train.checkpoint_every:,} steps, keep_checkpoints {train.keep_checkpoints}{always}, one being written"
    )


def disks(needs: Sequence[Need], run: Path) -> list[dict[str, Any]]:
    """The needs by disk: ``folder`` (the first of them), ``items`` (``what``, ``bytes``), ``bytes`` together, what is
    ``free`` there, with what the ``run`` itself has there already, and whether that is ``enough``, with a tenth left
    as a run leaves it; None of both where that disk is not this machine's."""
    by_disk: dict[int | None, list[Need]] = defaultdict(list)
    for need in needs:
        by_disk[_disk(need.folder)].append(need)
    found = []
    for disk, there in by_disk.items():
        folder, needed, free = there[0].folder, sum(need.bytes or 0 for need in there), None
        if disk is not None:
            free = shutil.disk_usage(_existing(folder)).free + (_held(run) if _disk(run) == disk else 0)
        found.append(
            {
                "folder": str(folder),
                "bytes": needed,
                "free": free,
                "enough": None if free is None else free >= 1.1 * needed,
            }
            | {"items": [{"what": need.what, "bytes": need.bytes} for need in there]}
        )
    return found


def _existing(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _disk(folder: Path) -> int | None:
    return os.stat(_existing(folder)).st_dev if is_here(folder.expanduser()) else None


def _held(run: Path) -> int:
    """Bytes of the run's files; one that a run at work takes away meanwhile is none."""
    size = 0
    for folder, _, names in os.walk(run):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(folder, name)).st_size
    return size
