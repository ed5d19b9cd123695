"""Exports: the weights of a run at one step, as a plain Hugging Face folder that is whole or not there.

Of adapters it holds the model with all of them merged, and beside it, in ``adapter/``, they themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from pipeline.files import require_space
from pipeline.model.files import weight_files
from pipeline.model.load import copy_companions, load_model
from pipeline.model.lora import Lora
from pipeline.model.scratch import new_weights
from pipeline.training.adapters import add_adapters, merge_adapters, save_adapters
from pipeline.training.engine import Engine

#: The folder in an export that holds the adapters in peft's form.
ADAPTER = "adapter"


@dataclass(frozen=True)
class Origin:
    """The model that training begins with: its folder, and how it is loaded. ``dtype`` is that of its weights.

    With ``seed`` only its shape is taken, and the weights are drawn. ``lora``: the adapters that alone are trained,
    None where all is.
    """

    folder: Path
    dtype: str
    trust_remote_code: bool = False
    seed: int | None = None
    lora: Lora | None = None

    def load(self, **how: Any) -> PreTrainedModel:
        """The model; ``how`` as ``load_model`` takes it (attention, device)."""
        how |= {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        return load_model(self.folder, **how) if self.seed is None else new_weights(self.folder, self.seed, **how)

    def load_to_train(self, seed: int, **how: Any) -> PreTrainedModel:
        """The model with its adapters, where it is trained by them; ``seed`` is that of their first values."""
        model = self.load(**how)
        if self.lora is not None:
            add_adapters(model, self.lora, seed)
        return model


def write_export(engine: Engine, origin: Origin, target: Path) -> Path:
    """Write the engine's weights to ``target``, with what else lies in the origin's folder; every process calls it.

    They are written beside and moved into place. Raises RegrowError where there is no room, and OSError where they
    cannot be written.
    """
    weights = engine.weights()
    if weights is not None:
        scratch = target.with_name(f".{target.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        size = sum(value.nbytes for value in weights.values())
        if origin.lora is not None:
            size += sum(file.stat().st_size for file in weight_files(origin.folder))
        require_space(target.parent, size, f"export {target.name}")
        model = origin.load()
        if origin.lora is None:
            load_trained(model, weights, engine.unreached)
        else:
            save_adapters(scratch / ADAPTER, model, weights, origin.lora)
            merge_adapters(model, weights, origin.lora)
        try:
            model.save_pretrained(scratch)
        except SafetensorError as error:
            # Its writer says in words of its own that a disk is full or a quota is met.
            raise OSError(f"{scratch}: cannot be written ({error})") from error
        copy_companions(origin.folder, scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    engine.world.barrier()
    return target


def load_trained(model: nn.Module, weights: Mapping[str, torch.Tensor], left_alone: Collection[str]) -> None:
    """Give the pruned ``model`` an engine's ``weights``, all but buffers and ``left_alone``: it keeps these bit for
    bit, which an engine may have rounded."""
    own = {*left_alone, *(name for name, _ in model.named_buffers())}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in own}
    model.load_state_dict({**weights, **kept})
