"""Adapters on a model: put there by peft, merged into the weights at the end, and kept in peft's own form.

The model stays what it is, with peft's layers in the place of those that get an adapter. Adapters have the model's
dtype, and from there on whatever is trained has: fp32 master weights, moments and sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from pipeline.model.lora import Lora, find_targets
from pipeline.training.frozen import count_saved, leave_out_frozen

if TYPE_CHECKING:
    from peft import LoraConfig

#: The name that peft gives to an only adapter, which stands in its parameters' names.
NAME = "default"
#: What peft's own model puts before a name.
PREFIX = "base_model.model."


def add_adapters(model: PreTrainedModel, lora: Lora, seed: int) -> None:
    """Give ``model`` its adapters, in place: they alone are trained from here on, and its outputs are what they were.

    A is drawn by ``seed`` alone, and the same on every process; training's random state does not move. Raises
    RegrowError as ``find_targets`` does.
    """
    from peft import inject_adapter_in_model

    config = _config(model, lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=NAME)
    leave_out_frozen(model)


def describe_adapters(model: nn.Module, lora: Lora) -> str:
    """One line for people on a model that has its adapters."""
    trained = count_saved(model)
    whole = sum(parameter.numel() for parameter in model.parameters()) - trained
    return (
        f"LoRA: {trained:,} parameters are trained beside {whole:,} frozen ones ({trained / whole:.2%}); rank "
        f"{lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {', '.join(lora.targets)}"
    )


@torch.no_grad()
def merge_adapters(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], lora: Lora) -> None:
    """Add the adapters' ``weights``, by their names in the model that has them, to a ``model`` without: summed in fp32
    and rounded once to each weight's dtype. A layer whose adapter is not there stays as it is."""
    for name, linear in find_targets(model, lora.targets).items():
        a, b = (weights.get(f"{name}.lora_{factor}.{NAME}.weight") for factor in "AB")
        if a is not None and b is not None:
            product = b.float() @ a.float()
            linear.weight.copy_(linear.weight.float() + lora.scale * product)


def save_adapters(folder: Path, model: PreTrainedModel, weights: Mapping[str, torch.Tensor], lora: Lora) -> None:
    """Write adapters as peft's PeftModel.from_pretrained reads them, to be put on ``model``, which has none."""
    folder.mkdir(parents=True)
    _config(model, lora).save_pretrained(str(folder))
    named = {
        f"{PREFIX}{name.replace(f'.{NAME}.', '.')}": value.contiguous()
        for name, value in weights.items()
        if f".{NAME}." in name
    }
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _config(model: PreTrainedModel, lora: Lora) -> LoraConfig:
    """peft's words for it. Layers outside of the text's blocks that have a target's name are left out by theirs."""
    from peft import LoraConfig

    chosen = find_targets(model, lora.targets)
    others = [
        name for name, _ in model.named_modules() if name not in chosen and name.rpartition(".")[2] in lora.targets
    ]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        exclude_modules=others or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
