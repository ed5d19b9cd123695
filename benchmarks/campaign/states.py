"""Two checkpoints as the states that they hold, whatever layouts they were written in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipeline.files import read_json

#: Of state.json: what does not depend on the layout.
KEPT = ("step", "tokens", "identity", "lanes", "optimizer", "engine")
#: What each parameter has.
KINDS = ("master", "exp_avg", "exp_avg_sq")


def differing_state(first: Path, second: Path) -> Iterator[str]:
    """What two checkpoints of one step hold otherwise: any bit of a parameter's master weight or moments, its count of
    updates, the settings of its group, the position in the rows."""
    ours, theirs = (read_json(folder / "state.json") for folder in (first, second))
    yield from (f"{name} is another in state.json" for name in KEPT if ours[name] != theirs[name])
    found, expected = whole_state(first), whole_state(second)
    yield from (f"{name} is in one alone" for name in sorted(found.keys() ^ expected.keys()))
    for name in sorted(found.keys() & expected.keys()):
        if not torch.equal(found[name], expected[name]):
            yield f"{name} has other values"
    for folder, state in zip((first, second), (ours, theirs), strict=True):
        if (held := counted(folder)) != sizes(state):
            yield f"{folder.name} holds {sum(held.values())} values of {sum(sizes(state).values())}"


def sizes(state: dict[str, Any]) -> dict[str, int]:
    """How many values each trained parameter has, by its name."""
    return {name: size for group in state["optimizer"] for name, size in group["parameters"].items()}


def counted(folder: Path) -> dict[str, int]:
    """How many values of each parameter the files of a checkpoint hold together."""
    held: Counter[str] = Counter()
    for path in folder.glob("rank-*.safetensors"):
        with safe_open(path, "pt") as file:
            held.update({name: place[1] for name, place in json.loads(file.metadata()["fragments"]).items()})
    return dict(held)


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, put together of the pieces in all files, bit for bit as int32; each parameter's
    count of updates; and the buffers."""
    size = sizes(read_json(folder / "state.json"))
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith("buffer/")]  # noqa: SIM118 - it is no dict
            found |= {name: file.get_tensor(name) for name in names}
            for name, (offset, length, updates) in json.loads(file.metadata()["fragments"]).items():
                found[f"updates/{name}"] = torch.tensor(updates)
                for kind in KINDS:
                    whole = found.setdefault(f"{kind}/{name}", torch.zeros(size[name], dtype=torch.int32))
                    whole[offset : offset + length] = file.get_tensor(f"{kind}/{name}").view(torch.int32)
    return found
