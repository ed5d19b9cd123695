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


def describe_folder(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in ``folder`` on the meta device: its blocks, shapes and config, without weights.

    Raises RegrowError as ``read_config`` and ``meta_model`` do.
    """
    hf_config = read_config(folder, trust_remote_code)
    try:
        return meta_model(hf_config, trust_remote_code)
    except RegrowError as error:
        raise RegrowError(f"{folder / 'config.json'}: {error}") from None


def as_trained(model: PreTrainedModel, dtype: str, removed: Collection[int] = ()) -> Trained:
    """A model as training holds it, in ``dtype``; without blocks whose parameters are ``removed``. ``model`` may be on
    the meta device."""
    sizes = Sizes.of(model)
    trained = sum(parameter.numel() for parameter in text_parameters(model)) - sum(removed)
    # ZeRO stage 3 gathers blocks and embeddings as a whole.
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    gathered = [*sizes.blocks, *(end.get_parameter("weight").numel() for end in ends if end is not None)]
    return Trained(
        trained,
        max(gathered),
        model.config.get_text_config(),
        frozen=sizes.whole - sum(removed) - trained,
        blocks=len(sizes.blocks) - len(removed),
        weight_bytes=4 if dtype == "float32" else 2,
    )


@dataclass(frozen=True)
class Sizes:
    """Parameters of each of a model's ``blocks``, and of the ``whole`` model, tied weights once."""

    blocks: tuple[int, ...]
    whole: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Sizes:
        """Those of a model; one on the meta device will do."""
        return cls(tuple(block_parameters(model)), sum(parameter.numel() for parameter in model.parameters()))
