"""What a model is, from its config alone: shapes without memory, and how many parameters stand where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.errors import RegrowError
from pipeline.model.architecture import read_config
from pipeline.model.blocks import block_parameters
from pipeline.model.costs import meta_model


def describe_folder(folder: Path, trust_remote_code: bool = False) -> nn.Module:
    """The model in ``folder`` on the meta device: its blocks, shapes and config, without weights.

    Raises RegrowError as ``read_config`` and ``meta_model`` do.
    """
    hf_config = read_config(folder, trust_remote_code)
    try:
        return meta_model(hf_config, trust_remote_code)
    except RegrowError as error:
        raise RegrowError(f"{folder / 'config.json'}: {error}") from None


@dataclass(frozen=True)
class Sizes:
    """Parameters of each of a model's ``blocks``, and of the ``whole`` model, tied weights once."""

    blocks: tuple[int, ...]
    whole: int

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Those of a model; one on the meta device will do."""
        return cls(tuple(block_parameters(model)), sum(parameter.numel() for parameter in model.parameters()))
