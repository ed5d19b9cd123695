"""LoRA's arithmetic: which linear layers get an adapter, and how large adapters are.

Beside the frozen product W x of a layer stands (alpha / r) B A x, with A of r x inputs and B of outputs x r, which
alone are trained (Hu et al. 2021, arXiv 2106.09685, section 4.1). B begins at zero, so that at first all is as it was.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from pipeline.errors import RegrowError
from pipeline.model.structure import find_blocks


@dataclass(frozen=True)
class Lora:
    """Adapters as a run has them: ``targets`` are names of linear layers inside a block, or the head's; ``dropout`` is
    that of what goes into an adapter."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor of an adapter's product."""
        return self.alpha / self.rank

    def size(self, linear: nn.Linear) -> int:
        """Parameters of the adapter of a layer."""
        return self.rank * (linear.in_features + linear.out_features)


def find_targets(model: nn.Module, targets: Collection[str]) -> dict[str, nn.Linear]:
    """The model's linear layers that ``targets`` name, by their whole names: those inside its blocks, and the head.

    ``model`` has no adapters yet, and may be on the meta device. Raises RegrowError, with the names that would do, on
    one that no layer has, on an embedding's, and on that of a head which is tied to it.
    """
    blocks, head, words = find_blocks(model), model.get_output_embeddings(), model.get_input_embeddings()
    within = {id(module) for module in blocks.modules()}
    found, refused = {}, {}
    for name, module in model.named_modules():
        short = name.rpartition(".")[2]
        if module is head and head.weight is words.weight:
            refused[short] = "is tied to the embedding, which an adapter cannot follow"
        elif module is words:
            refused[short] = "is the embedding, a table and no product"
        elif isinstance(module, nn.Linear) and (id(module) in within or module is head):
            found[name] = module
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in found))
    for target in targets:
        if target not in known:
            why = refused.get(target, f"is no linear layer of {type(model).__name__}")
            raise RegrowError(
                f"train.lora.targets: {target} {why}; take names from those that are: {', '.join(known) or 'none'}"
            )
    return {name: module for name, module in found.items() if name.rpartition(".")[2] in targets}


def adapter_sizes(model: nn.Module, lora: Lora) -> tuple[list[int], int]:
    """Parameters of the adapters in each block, and of those outside of them. Raises RegrowError as ``find_targets``
    does."""
    targets = find_targets(model, lora.targets)
    chosen = {id(linear) for linear in targets.values()}
    inside = [sum(map(lora.size, _chosen(block, chosen))) for block in find_blocks(model)]
    return inside, sum(map(lora.size, targets.values())) - sum(inside)


def kept_by_adapters(model: nn.Module, lora: Lora, weight_bytes: int) -> int:
    """Bytes of a token that autograd keeps for the adapters of a block, in a model of ``weight_bytes`` a value: of each
    its input behind the dropout, the dropout's mask, and A's output. The most of any block. An estimate, and a high
    one: what frozen layers no longer keep is not taken off."""
    chosen = {id(linear) for linear in find_targets(model, lora.targets).values()}
    mask = 1 if lora.dropout else 0
    return max(
        sum((weight_bytes + mask) * linear.in_features + weight_bytes * lora.rank for linear in _chosen(block, chosen))
        for block in find_blocks(model)
    )


def _chosen(block: nn.Module, chosen: Collection[int]) -> list[nn.Linear]:
    return [module for module in block.modules() if isinstance(module, nn.Linear) and id(module) in chosen]
