"""What a model is, from its config alone: shapes without memory, and how many parameters stand where."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.model.architecture import read_config
from pipeline.model.blocks import block_parameters
from pipeline.model.costs import Trained, meta_model, text_parameters
from pipeline.model.lora import Lora, adapter_sizes, kept_by_adapters


def describe_folder(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in ``folder`` on the meta device: its blocks, shapes and config, without weights.

    Raises RegrowError as ``read_config`` and ``meta_model`` do.
    """
    hf_config = read_config(folder, trust_remote_code)
    try:
        return meta_model(hf_config, trust_remote_code)
    except RegrowError as error:
        raise RegrowError(f"{folder / 'config.json'}: {error}", about=error.about) from None


def as_trained(model: PreTrainedModel, dtype: str, removed: Collection[int] = (), lora: Lora | None = None) -> Trained:
    """A model as training holds it, in ``dtype``; without blocks whose parameters are ``removed``. ``model`` may be on
    the meta device, and has no adapters yet: with ``lora`` they alone are trained. Where blocks have adapters of
    different sizes, the smallest are taken to be gone."""
    sizes = Sizes.of(model)
    trained = sum(parameter.numel() for parameter in text_parameters(model)) - sum(removed)
    frozen, weight_bytes, adapted = sizes.whole - sum(removed) - trained, 4 if dtype == "float32" else 2, 0
    if lora is not None:
        inside, outside = adapter_sizes(model, lora)
        frozen += trained
        trained = sum(sorted(inside)[len(removed) :]) + outside
        adapted = kept_by_adapters(model, lora, weight_bytes)
    # ZeRO stage 3 gathers blocks and embeddings as a whole.
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    gathered = [*sizes.blocks, *(end.get_parameter("weight").numel() for end in ends if end is not None)]
    return Trained(
        trained,
        max(gathered),
        model.config.get_text_config(),
        frozen=frozen,
        blocks=len(sizes.blocks) - len(removed),
        weight_bytes=weight_bytes,
        adapted=adapted,
    )


@dataclass(frozen=True)
class Sizes:
    """Parameters of each of a model's ``blocks``, and of the ``whole`` model, tied weights once.

    >>> Cut(parameters=Sizes.of(model).whole - 1).count(Sizes.of(model))
    1
    """

    blocks: tuple[int, ...]
    whole: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Sizes:
        """Those of a model; one on the meta device will do."""
        return cls(tuple(block_parameters(model)), sum(parameter.numel() for parameter in model.parameters()))
