"""Models that are larger than one device: their weights lie on several, in host memory and on disk, by accelerate.

accelerate says which module lies where, and brings a module's weights to the device that computes when its forward
begins. Here stands what that needs to be told: how much may lie where, and how weights on disk are read. They stay in
the model's own safetensors, and only what transformers converts while it loads (fused experts, files of torch's .bin)
is written anew. Files are read and not mapped, since what is mapped counts as memory, and put where all weights are on
a CPU: kernels round differently for memory that is not aligned.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate.big_modeling
import safetensors
import torch
import transformers.integrations.accelerate
import transformers.modeling_utils
from accelerate.utils import OffloadedWeightsLoader, get_balanced_memory
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from pipeline.errors import RegrowError
from pipeline.files import of_bytes, require_space
from pipeline.memory import give_back_at_once
from pipeline.model.files import weight_files
from pipeline.model.headers import converters, opened

#: accelerate's names of the places that are no GPU's number.
HOST, DISK = "cpu", "disk"
#: Kernels on a CPU want weights at multiples of so many bytes.
LINE = 64


@dataclass(frozen=True)
class Dispatch:
    """How a model is spread: bytes of weights that may lie on each GPU, by its number, and in host memory, and the
    ``folder`` for weights that must be written anew to be read from disk. Without GPUs the host computes."""

    gpus: Mapping[int, int]
    host: int
    folder: Path

    def map(self, model: PreTrainedModel) -> dict[str, int | str]:
        """The place of each module of ``model``, which may be on the meta device: a GPU's number, ``cpu`` or ``disk``.

        GPUs are filled evenly, then host memory, then the disk has the rest; where something lies elsewhere, there is
        room kept for the largest module to be brought in. RegrowError where the model does not say what must stay
        together.
        """
        whole = sorted(model._no_split_modules or ())
        if not whole:
            raise RegrowError(
                f"{type(model).__name__}: it does not say which of its modules must lie on one device "
                "(_no_split_modules), so that it cannot be spread; set model.dispatch=false"
            )
        memory = get_balanced_memory(model, {**self.gpus, HOST: self.host}, no_split_module_classes=whole)
        return dict(
            accelerate.infer_auto_device_map(
                model, memory, no_split_module_classes=whole, dtype=model.dtype, clean_result=False
            )
        )

    def arguments(self, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
        """What ``from_pretrained`` is told to spread the model in ``folder``, of which ``model`` is a hollow copy.

        The folder of ``Dispatch`` is emptied. RegrowError as ``map``, where the embeddings do not fit, and where the
        disk has no space for what must be written.
        """
        self.clear()
        self.folder.mkdir(parents=True)
        places = self.map(model)
        self._require_embeddings(model, places)
        give_back_at_once()
        anew = bool(converters(model)) or weight_files(folder)[0].suffix != ".safetensors"
        if anew and DISK in places.values():
            require_space(self.folder, lying(model, places)[DISK], f"the part of {folder} that no device holds")
        return {"device_map": places, "offload_folder": str(self.folder)}

    def clear(self) -> None:
        """Delete what was written; the model must be gone."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _require_embeddings(self, model: PreTrainedModel, places: Mapping[str, int | str]) -> None:
        """RegrowError where the embeddings, or a head that is tied to them, do not lie where the model computes: its
        device is told by them, and weights that are brought in apart are no longer tied."""
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        ends = {embeddings, head} if head is not None and head.weight is embeddings.weight else {embeddings}
        apart = [
            name for name, module in model.named_modules() if module in ends and _place(name, places) in self._away
        ]
        if apart:
            key = "model.device_memory" if self.gpus else "model.host_memory"
            have = max(self.gpus.values()) if self.gpus else self.host
            raise RegrowError(
                f"{key}: {of_bytes(have)} do not hold the embeddings ({', '.join(apart)}: "
                f"{of_bytes(embeddings.weight.nbytes)}) beside room for the largest module that is brought in, and "
                "they must lie where the model computes; raise it"
            )

    @property
    def _away(self) -> set[str]:
        """Places whose weights are brought in for a forward."""
        return {HOST, DISK} if self.gpus else {DISK}


def lying(model: PreTrainedModel, places: Mapping[str, int | str] | None = None) -> dict[int | str, int]:
    """Bytes of a model's parameters, tied ones once, in each place: of a map, or where they were loaded to."""
    if places is None:
        device = model.device
        # Where all found room on one device, accelerate has nothing to say.
        places = getattr(model, "hf_device_map", {"": HOST if device.index is None else device.index})
    found: Counter[int | str] = Counter()
    for name, parameter in model.named_parameters():
        found[_place(name, places)] += parameter.nbytes
    return dict(found)


def _place(name: str, places: Mapping[str, int | str]) -> int | str:
    """The place of a module or a parameter: that of the nearest module around it."""
    around = [module for module in places if not module or name == module or name.startswith(f"{module}.")]
    return places[max(around, key=len)]


def place_words(lies: Mapping[int | str, int]) -> str:
    """How much lies where, for a line of text: ``60.00 GB on GPU 0, 12.00 GB in host memory, 3.00 GB on disk``."""
    names = {HOST: "in host memory", DISK: "on disk"}
    order = sorted(lies, key=lambda place: (isinstance(place, str), str(place)))
    return ", ".join(f"{of_bytes(lies[place])} {names.get(str(place), f'on GPU {place}')}" for place in order)


def values_of(model: PreTrainedModel) -> Iterable[tuple[str, torch.Tensor]]:
    """Name and value of every parameter, one after the other, wherever it lies."""
    for name, parameter in model.named_parameters():
        yield name, load_offloaded_parameter(model, name) if parameter.is_meta else parameter


@contextlib.contextmanager
def read_not_mapped() -> Iterator[None]:
    """Within the context transformers reads the files that it loads, and accelerate is given ``FromFiles``."""

    def unmapped(*arguments: Any, **settings: Any) -> Any:
        return safetensors.safe_open(*arguments, **{**settings, "backend": "pread"})

    given = (
        (transformers.modeling_utils, "safe_open", unmapped),
        (transformers.integrations.accelerate, "safe_open", unmapped),
        (accelerate.big_modeling, "OffloadedWeightsLoader", FromFiles),
    )
    before = [getattr(module, name) for module, name, _ in given]
    try:
        for module, name, instead in given:
            setattr(module, name, instead)
        yield
    finally:
        for (module, name, _), own in zip(given, before, strict=True):
            setattr(module, name, own)


class FromFiles(OffloadedWeightsLoader):
    """accelerate's weights that lie elsewhere, by the names of parameters; on disk they are in safetensors."""

    def __getitem__(self, key: str) -> torch.Tensor:
        if key in self.state_dict:
            return self.state_dict[key]
        held = self.index[key]
        with opened(Path(held["safetensors_file"])) as tensors:
            value = tensors.get_tensor(held["weight_name"]).to(getattr(torch, held["dtype"]))
        return aligned(value).to(self.device or HOST)


def aligned(value: torch.Tensor) -> torch.Tensor:
    """The tensor, copied where its memory on a CPU does not begin at a cache line."""
    return value.clone() if value.device.type == "cpu" and value.data_ptr() % LINE else value
