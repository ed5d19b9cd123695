"""What recomputing keeps for the backward pass, and that it changes no gradient."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.recomputing import recompute
from tests.families import build

IDS = torch.randint(0, 190, (2, 24), generator=torch.Generator().manual_seed(0))


def measured(what: str, family: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, and the bytes that autograd was given to keep."""
    model = build(family)
    recompute(model, what)
    model.train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_gradients_are_the_same_bits_whatever_is_computed_again(family):
    wanted, all_kept = measured("none", family)
    for what in ("selective", "full"):
        found, kept = measured(what, family)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), f"{what}: a gradient is another"
        assert kept < all_kept, f"{what} keeps {kept} bytes outside of its own, without it {all_kept} are kept"
