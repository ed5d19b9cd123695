"""How long a part of a run takes: from the FLOPs of its forwards, and from how many forwards these are.

Training and scoring are bound by products, which a device does at the share of its peak that is planned with. A forward
of few tokens, above all one that generates a single token, waits for all weights to be read, or for the launches of all
blocks. What is in no figure: starts, loading, fetching, compiling, saving, and stage data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from pipeline.model.costs import attention_width, product_parameters
from pipeline.model.describe import Sizes


@dataclass(frozen=True)
class Chip:
    """What one process's device does: ``flops`` FLOP/s in products, ``bandwidth`` bytes/s at which weights are read,
    and ``block_seconds``, which a block's forward takes however few tokens it has."""

    flops: float
    bandwidth: float
    block_seconds: float = 0.0


#: Bytes/s of an H100 SXM's memory, from NVIDIA's data sheet.
BANDWIDTH = 3.35e12
#: Seconds of a block's launches in a forward: a micro-batch of 2 x 256 tokens through 21 blocks, forward and backward,
#: took 60 ms on an H200, its kernels 5 of them (docs/LOG.md); a third of it is the forward.
BLOCK_SECONDS = 0.060 / 21 / 3


@dataclass(frozen=True)
class Shape:
    """What a model's forward is counted by: ``blocks`` with ``inside`` parameters together, ``outside`` parameters of
    products beside them, attention's ``width``, and bytes of a weight."""

    blocks: int
    inside: int
    outside: int
    width: int
    value_bytes: int

    @classmethod
    def of(cls, model: PreTrainedModel, value_bytes: int, removed: Sequence[int] = ()) -> Shape:
        """That of a model, which may be on the meta device, without blocks of ``removed`` parameters."""
        blocks = Sizes.of(model).blocks
        outside = product_parameters(model) - sum(blocks)
        width = attention_width(model.config.get_text_config())
        return cls(len(blocks) - len(removed), sum(blocks) - sum(removed), outside, width, value_bytes)

    def block(self, length: int) -> float:
        """FLOPs of a block's forward for a token in rows of ``length``."""
        return 2 * self.inside / max(self.blocks, 1) + 4 * self.width * length

    def forward(self, length: int) -> float:
        """FLOPs of a forward for a token in rows of ``length``: a third of those of training."""
        return self.blocks * self.block(length) + 2 * self.outside

    @property
    def weights(self) -> int:
        """Bytes that a forward reads at least."""
        return (self.inside + self.outside) * self.value_bytes


@dataclass(frozen=True)
class Forwards:
    """So many ``times`` a forward of ``tokens`` tokens, in rows of about ``length``."""

    shape: Shape
    times: int
    tokens: int = 1
    length: int = 0

    def seconds(self, chip: Chip) -> float:
        """By whatever takes longest: reading weights, launching blocks, or the products."""
        shape = self.shape
        products = self.tokens * shape.forward(self.length) / chip.flops
        return self.times * max(shape.weights / chip.bandwidth, shape.blocks * chip.block_seconds, products)


@dataclass(frozen=True)
class Part:
    """A part of a stage: ``flops`` at the speed of products, and ``forwards`` that may be bound by less, which
    ``processes`` share. ``what`` says from what it is computed; a part that is ``beside`` the run is not of its time.
    """

    stage: str
    what: str
    flops: float = 0.0
    forwards: tuple[Forwards, ...] = ()
    processes: int = 1
    beside: bool = False

    def seconds(self, chip: Chip) -> float:
        """On so many of these devices at once."""
        return (self.flops / chip.flops + sum(one.seconds(chip) for one in self.forwards)) / self.processes


def timed(parts: Sequence[Part], chip: Chip, gpus: int, price: float | None) -> list[dict[str, Any]]:
    """A row for each part: ``stage``, ``what``, ``seconds``, the ``gpu_hours`` of all ``gpus``, which are held whatever
    they do, their ``dollars`` at ``price`` an hour (None without one), and ``beside``."""
    rows = []
    for part in parts:
        seconds = part.seconds(chip)
        hours = seconds * gpus / 3600
        dollars = None if price is None else hours * price
        rows.append(
            {"stage": part.stage, "what": part.what, "seconds": seconds, "gpu_hours": hours}
            | {"dollars": dollars, "beside": part.beside}
        )
    return rows
