"""Cases of going on in another layout: checkpoints of every stage, taken up by every stage on other processes.

State is compared, not losses: every group's settings, and every parameter's master weight, moments and count of
updates, gathered whole by the process that wrote it and by the one that took it up.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.engine import Engine
from pipeline.training.fragments import groups, held, own
from pipeline.training.loop import Position, train_steps
from pipeline.training.restoring import load_checkpoint
from pipeline.training.saving import Checkpoints
from tests.training.kit import BATCH, PEAK, STEPS, Case, new_engine, share, text, train
from tests.training.layout import LAYOUT
from tests.training.lowrank import LORA, adapted

#: Steps behind the checkpoint whose losses are compared.
LATER = 20


def whole(engine: Engine) -> dict[str, torch.Tensor]:
    """Masters, moments and counts of every parameter, put together from what all processes hold; flat, fp32."""
    mine = [(part.name, part.offset, part.values, float(part.updates)) for part in held(engine)]
    pieces = [piece for share in engine.world.gather(mine) for piece in share]
    ends: dict[str, int] = {}
    for name, offset, values, _ in pieces:
        ends[name] = max(ends.get(name, 0), offset + len(values["master"]))
    found = {
        f"{kind}/{name}": torch.full((end,), float("nan"))
        for name, end in ends.items()
        for kind in ("master", "exp_avg", "exp_avg_sq")
    }
    for name, offset, values, updates in pieces:
        for kind, value in values.items():
            found[f"{kind}/{name}"][offset : offset + len(value)] = value
        found[f"updates/{name}"] = torch.tensor([updates])
    return found


def unrounded(engine: Engine, state: dict[str, torch.Tensor]) -> list[str]:
    """Parameters of this process's model that are not the masters rounded to their dtype, bit for bit."""
    wrong = []
    for name, parameter in engine.model.named_parameters():
        if f"master/{name}" not in state:
            continue
        rounded = state[f"master/{name}"].to(parameter.dtype)
        if engine.zero_stage == 3:
            stretch = parameter.partition_numel()
            begin = stretch * engine.world.rank
            end = min(begin + stretch, len(rounded))
            same = torch.equal(parameter.ds_tensor.data[: max(0, end - begin)], rounded[begin:end])
            if parameter.data.numel() == len(rounded):  # one that stays whole
                same = same and torch.equal(parameter.data.view(-1), rounded)
        else:
            same = torch.equal(parameter.data.view(-1), rounded)
        if not same:
            wrong.append(name)
    return wrong


def later(engine: Engine, data: torch.Tensor) -> list[float]:
    """Losses of the steps behind the checkpoint."""
    rows = share(data, engine.world, STEPS * BATCH)
    steps = train_steps(engine, rows, Position(STEPS), steps=STEPS + LATER, rate=lambda step: PEAK)
    return [step.loss for step in steps]


def engine_for(case: Case, kind: str) -> Engine:
    return new_engine(case, 1, model=adapted(case, LORA) if kind == "lora" else None)


def written(case: Case, kind: str = "all") -> dict[str, Any]:
    """Three steps, a checkpoint, the whole state beside it, and twenty steps more."""
    data = text(BATCH * (STEPS + LATER))
    root = case.folder / f"{kind}-{case.world.size}-{case.zero_stage}"
    engine = engine_for(case, kind)
    train(engine, data[: BATCH * STEPS], STEPS)
    state = whole(engine)
    layout = replace(LAYOUT, processes=case.world.size, zero_stage=case.zero_stage, dtype="")
    checkpoints = Checkpoints(root, engine, layout)
    checkpoints.save(STEPS, {"step": STEPS})
    wrong = case.world.gather(unrounded(engine, state))
    size = case.world.gather(sum(value.nbytes for part in own(engine) for value in part.values.values()))
    losses = later(engine, data)
    checkpoints.wait()
    if case.world.rank == 0:
        save_file(state, root / "whole.safetensors")
        (root / "known.json").write_text(json.dumps({"losses": losses, "layout": asdict(layout)}))
    engine.close()
    return {"unrounded": wrong, "losses": losses, "bytes": size}


def written_lora(case: Case) -> dict[str, Any]:
    """The same of adapters alone."""
    return written(case, "lora")


def taken_up(case: Case) -> dict[str, Any]:
    """Every checkpoint that there is, also of the launches on other processes, taken up by this stage."""
    roots = sorted(path.parent for path in case.folder.parent.glob("training-*/*/known.json"))
    found = {root.name: _take_up(case, root) for root in roots}
    return {name: entry for name, entry in found.items() if case.world.rank == 0}


def _take_up(case: Case, root: Path) -> dict[str, Any]:
    known = json.loads((root / "known.json").read_text())
    engine = engine_for(case, root.name.split("-")[0])
    layout = replace(LAYOUT, processes=case.world.size, zero_stage=case.zero_stage, dtype="")
    folder, state = newest_checkpoint(root, layout, case.world)
    for group in engine.optimizer.param_groups:
        group["lr"] = -1.0
    torch.manual_seed(0)
    load_checkpoint(folder, engine, case.world, seed=7)
    here, there = whole(engine), load_file(root / "whole.safetensors")
    counters = {name: getattr(engine.engine, name) for name in state["engine"]}
    found = {
        "names": sorted(here.keys() ^ there.keys()),
        "differing": [name for name in here if name in there and not torch.equal(here[name], there[name])],
        "groups": json.loads(json.dumps(groups(engine))) == state["optimizer"],
        "rates": sorted({group["lr"] for group in state["optimizer"]}),
        "decays": sorted({group["weight_decay"] for group in state["optimizer"]}),
        "counters": counters == state["engine"],
        "unrounded": [name for wrong in case.world.gather(unrounded(engine, here)) for name in wrong],
        "drawn": case.world.gather(torch.rand(1).item()),
        "changed": layout.change(state["layout"]),
        "least_update": min(float(value) for name, value in there.items() if name.startswith("updates/")),
    }
    # One of another stage each, so that all pairs of stages need not be trained.
    if root.name.split("-")[2] == str((case.zero_stage + 1) % 4):
        losses = later(engine, text(BATCH * (STEPS + LATER)))
        found["apart"] = max(abs(one - two) for one, two in zip(losses, known["losses"], strict=True))
        found["learnt"] = losses[0] - losses[-1]
    engine.close()
    return found
