"""What healing has found, block by block: in words and JSON, and in files from which a killed one goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.files import read_json, replacing, write_json


@dataclass(frozen=True)
class HealedBlock:
    """A kept block whose ``layer`` was fitted so that it hands on the dense state behind the blocks ``removed``.

    Indices are the dense model's; ``removed`` is empty where the blocks before it are gone. ``before`` and ``after``
    are the relative errors of its states, mean |r| / |t| over the tokens kept from the fit of ``tokens``; where the fit
    came no nearer it is not ``kept``, and the layer is as it was.
    """

    block: int
    removed: list[int]
    layer: str
    tokens: int
    before: float
    after: float
    kept: bool

    def told(self) -> str:
        """In a line."""
        gone = f"behind it {_run(self.removed)} gone" if self.removed else "what stood before it is gone"
        where = f"block {self.block} ({gone})"
        came = f"relative error {self.before:.4f} -> {self.after:.4f} on kept text"
        return f"healed {where}: {came}" if self.kept else f"{where} is left as it was: {came}"


def _run(removed: list[int]) -> str:
    return f"{removed[0]} is" if len(removed) == 1 else f"{removed[0]} to {removed[-1]} are"


class Progress:
    """Files of a healing in ``folder``: for each position in the pruned model that is done, what was found, and the
    layer's new weights. A position is done when its JSON is there, which is written last, and names ``text``, the hash
    of what is healed on."""

    def __init__(self, folder: Path, text: str = ""):
        self.folder, self.text = folder, text

    def known(self, position: int) -> HealedBlock | None:
        """What was found at a position; None where it is not done."""
        about = read_json(self._about(position)) if self._about(position).exists() else {}
        return HealedBlock(**about["found"]) if about.get("text") == self.text else None

    def keep(self, position: int, layer: nn.Module, found: HealedBlock) -> None:
        """Note a position as done."""
        from safetensors.torch import save_file

        if found.kept:
            weights = {name: value.cpu().contiguous() for name, value in layer.named_parameters(recurse=False)}
            with replacing(self._weights(position)) as path:
                save_file(weights, path)
        write_json(self._about(position), {"text": self.text, "found": asdict(found)})

    def restore(self, position: int, layer: nn.Module, found: HealedBlock) -> None:
        """Give a layer the weights that were found for it."""
        from safetensors.torch import load_file

        if found.kept:
            with torch.no_grad():
                for name, value in load_file(self._weights(position)).items():
                    layer.get_parameter(name).copy_(value)

    def _about(self, position: int) -> Path:
        return self.folder / f"healing-{position:04d}.json"

    def _weights(self, position: int) -> Path:
        return self.folder / f"healing-{position:04d}.safetensors"
