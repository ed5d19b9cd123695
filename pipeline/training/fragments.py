"""What a process holds of all that training moves: pieces of master weights and of AdamW's moments, at any ZeRO stage.

DeepSpeed 0.19 flattens the parameters of a group and gives each process a stretch of that (ZeRO 1 and 2), or a stretch
of each parameter (ZeRO 3); without ZeRO every process has all of it. Told by parameter, offset and length these pieces
are the same thing at every stage and on any number of processes. The weights that a model computes with are not among
them: they are the masters, rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.training.engine import Engine

#: What is held of a parameter: the weight that updates are made to, and AdamW's two moments.
KINDS = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Values ``offset`` to ``offset + length`` of the flattened parameter ``name``.

    ``values`` by KINDS are (length,) fp32, views of what the optimizer works on: what is written to them is trained on.
    ``updates`` is AdamW's count of them, a scalar fp32 that pieces may share.
    """

    name: str
    offset: int
    length: int
    values: dict[str, torch.Tensor]
    updates: torch.Tensor

    def part(self, number: int, parts: int) -> Fragment:
        """The piece of this one that is the ``number``-th of ``parts`` that are about equal; it may be empty."""
        begin, end = (self.length * at // parts for at in (number, number + 1))
        values = {kind: value[begin:end] for kind, value in self.values.items()}
        return Fragment(self.name, self.offset + begin, end - begin, values, self.updates)


def held(engine: Engine) -> list[Fragment]:
    """All that this process holds; together the processes hold every trained parameter whole.

    AdamW's moments are made here where it has not made them yet, as it makes them itself: zero.
    """
    adamw = _adamw(engine)
    fragments = []
    for name, offset, length, master, begin in _places(engine):
        state = adamw.state[master]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for kind in KINDS[1:]:
                state[kind] = torch.zeros_like(master, memory_format=torch.preserve_format).detach()
        whole = {KINDS[0]: master, **{kind: state[kind] for kind in KINDS[1:]}}
        values = {kind: value.detach().view(-1)[begin : begin + length] for kind, value in whole.items()}
        fragments.append(Fragment(name, offset, length, values, state["step"]))
    return fragments


def own(engine: Engine) -> list[Fragment]:
    """What this process writes of that it holds: together they write every trained parameter once."""
    fragments = held(engine)
    if engine.zero_stage == 0:
        fragments = [fragment.part(engine.world.rank, engine.world.size) for fragment in fragments]
    return [fragment for fragment in fragments if fragment.length]


def take_up(engine: Engine) -> None:
    """Have the model compute with the masters as they are now; every process calls it."""
    optimizer = engine.optimizer
    if engine.zero_stage in (1, 2):
        optimizer.update_lp_params()
    elif engine.zero_stage == 3:
        # What its step does behind the update.
        optimizer.checkpoint_event_prologue()
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()


def groups(engine: Engine) -> list[dict[str, Any]]:
    """AdamW's groups as they stand: ``lr``, ``betas``, ``eps``, ``weight_decay``, and their ``parameters`` by name with
    the number of values of each."""
    sizes = {name: getattr(value, "ds_numel", value.numel()) for name, value in engine.model.named_parameters()}
    settings = ("lr", "betas", "eps", "weight_decay")
    return [
        {**{name: group[name] for name in settings}, "parameters": {name: sizes[name] for name in names}}
        for group, names in zip(_adamw(engine).param_groups, _names(engine), strict=True)
    ]


def set_groups(engine: Engine, saved: list[dict[str, Any]]) -> str | None:
    """Give AdamW's groups the settings of ``saved`` (of ``groups``); what is wrong, where it has other parameters."""
    there, here = ([group["parameters"] for group in found] for found in (saved, groups(engine)))
    if there != here:
        pairs = [{(name, size) for part in found for name, size in part.items()} for found in (there, here)]
        differing = sorted(name for name, _ in pairs[0] ^ pairs[1])
        return f"trained otherwise: {', '.join(differing[:3])}" if differing else "decayed otherwise"
    for group, entry in zip(_adamw(engine).param_groups, saved, strict=True):
        group.update(lr=entry["lr"], betas=tuple(entry["betas"]), eps=entry["eps"], weight_decay=entry["weight_decay"])
    return None


def buffers(engine: Engine) -> dict[str, torch.Tensor]:
    """The model's buffers that belong to its state: the same on every process."""
    kept = engine.model.state_dict().keys()
    return {name: value for name, value in engine.model.named_buffers() if name in kept}


def _adamw(engine: Engine) -> Any:
    return engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer


def _parameters(engine: Engine) -> list[list[nn.Parameter]]:
    """The parameters of each stretch that the optimizer works on."""
    optimizer = engine.optimizer
    if engine.zero_stage == 0:
        return [group["params"] for group in optimizer.param_groups]
    if engine.zero_stage == 3:
        return optimizer.fp16_groups
    return optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups


def _masters(engine: Engine) -> list[torch.Tensor]:
    """The fp32 weights of each of these stretches, of this process, under ZeRO."""
    optimizer = engine.optimizer
    if engine.zero_stage == 0:
        return []
    if engine.zero_stage == 3:
        return optimizer.fp32_partitioned_groups_flat
    if hasattr(optimizer, "bf16_groups"):
        return optimizer.fp32_groups_flat_partition
    return optimizer.single_partition_of_fp32_groups


def _names(engine: Engine) -> list[list[str]]:
    """The names of the parameters of each of AdamW's groups, in their order."""
    named = {id(value): name for name, value in engine.model.named_parameters()}
    found = [[named[id(value)] for value in part] for part in _parameters(engine)]
    if engine.zero_stage < 3:
        return found
    # ZeRO 3 takes large groups in several parts.
    joined: list[list[str]] = [[] for _ in _adamw(engine).param_groups]
    for number, part in enumerate(found):
        joined[engine.optimizer.sub_group_to_group_id[number]] += part
    return joined


def _places(engine: Engine) -> Iterator[tuple[str, int, int, torch.Tensor, int]]:
    """Of each piece that this process holds: the parameter's name, offset and length in it, the tensor that the
    optimizer works on, and where in that it begins."""
    stage = engine.zero_stage
    named = {id(value): name for name, value in engine.model.named_parameters()}
    masters = _masters(engine)
    for number, part in enumerate(_parameters(engine)):
        begin = 0
        for parameter in part:
            name = named[id(parameter)]
            if stage == 0:
                yield name, 0, parameter.numel(), parameter, 0
            elif stage == 3:
                stretch = parameter.partition_numel()
                offset = stretch * engine.world.rank
                # The last stretches are padded: these values are nobody's.
                length = max(0, min(stretch, parameter.ds_numel - offset))
                if length:
                    yield name, offset, length, masters[number], begin
                begin += stretch
            elif parameter._hp_mapping is not None:
                mapping = parameter._hp_mapping
                in_model, in_master = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield name, in_model.start, in_model.numel, masters[number], in_master.start
