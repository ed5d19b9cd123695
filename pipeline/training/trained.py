"""What is trained of a model, and on which loss: in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from pipeline.model.head import Head
from pipeline.model.loss import computes_router_loss, describe_router_loss, router_coefficient
from pipeline.training.reach import describe_unreached

#: How many of the tensors that are trained in less precision a line names.
NAMED = 3


def told_of(
    model: nn.Module,
    left_alone: dict[str, nn.Parameter],
    narrowed: Sequence[str],
    coefficient: float | None,
    head: Head | None,
) -> Iterator[str]:
    """What a person should know of what is trained, and on which loss; all but the model as an Engine has them."""
    if left_alone:
        yield describe_unreached(left_alone)
    if narrowed:
        more = ", ..." if len(narrowed) > NAMED else ""
        yield (
            f"{len(narrowed)} tensors that the pruned model keeps in float32 are trained in bfloat16, and exported "
            f"with its precision: {', '.join(narrowed[:NAMED])}{more}; train.zero_stage=0 trains them in float32"
        )
    asked = router_coefficient(model.config) is not None
    computed = coefficient is not None if asked else computes_router_loss(model)
    if sentence := describe_router_loss(model, computed):
        yield sentence
    if head is None:
        yield (
            f"what {type(model).__name__} does behind its head is not known: the loss is made from the logits of a "
            "whole micro-batch, which takes more memory"
        )
