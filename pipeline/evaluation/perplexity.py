"""Perplexity of a model on packed rows of tokens, on one process or many.

One row goes through the model whole, so every token is predicted from all tokens before it in its row. Rows arrive
ready: their length and their BOS policy are the data room's and are part of what a perplexity means. Losses come in
fp32 from the shared token losses, are summed per row in fp64, and the rows of all processes meet in row order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TypedDict

import torch
from torch import nn

from pipeline.errors import RegrowError
from pipeline.model.files import not_finite
from pipeline.model.head import Head, losses_at
from pipeline.model.loss import next_token_losses, next_tokens
from pipeline.world import ALONE, World


class Measured(TypedDict):
    """A perplexity, as results.json holds it; ``perplexity`` says what stands where."""

    value: float
    stderr: float | None
    loss: float
    tokens: int
    rows: int
    length: int | None
    row_losses: list[float]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; every module gets its own training flag back afterwards.

    no_grad instead of inference_mode: ZeRO-3 gathers weights into tensors that later training steps use again, and
    tensors made under inference_mode can never be.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


def row_losses(
    model: nn.Module,
    rows: torch.Tensor,
    *,
    micro_batch: int,
    device: torch.device | str,
    head: Head | None = None,
    world: World = ALONE,
    counted_from: torch.Tensor | None = None,
    between: Callable[[], object] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each row, in nats summed over its targets, and the number of its targets.

    ``rows`` (N, T), int64, without padding, the same on every process; ``model`` stands on ``device`` in the dtype
    that it is to compute in (no autocast here) and answers ``model(input_ids=..., use_cache=False)`` with ``logits``.
    With its ``head`` (``find_head``) losses are made in chunks, else from the logits of a whole forward.
    ``counted_from`` (N,) int64, from 1 on: the place of each row's first target, for rows that overlap; what stands
    before is context. None: 1 for all. Returns on the CPU, the same on every process: fp64 (N,) and int64 (N,), in row
    order; a row has T - 1 targets at most, as its first token is never one.

    Forward k takes rows k x micro_batch onwards, always micro_batch of them: the last row is repeated where too few
    are left. The processes of ``world`` take forwards in turn; where their number does not divide, the processes left
    over repeat the last forward and drop it, because under ZeRO-3 a forward is a collective and all must run as many.
    ``between`` is called before each, on every process alike: what it raises gives all of it up.

    Promise: a forward holds the same rows whatever ``world`` is, so with the same micro_batch, threads, device and
    versions the bytes are the same on any number of processes. Another micro_batch changes rounding only.

    RegrowError: rows of the wrong shape or dtype, a loss that is not finite (on every process alike, with the row's
    index).
    """
    _check(rows, micro_batch)
    count, length = rows.shape
    counted_from = torch.ones(count, dtype=torch.int64) if counted_from is None else counted_from
    places = torch.arange(1, length, device=device)
    forwards = math.ceil(count / micro_batch)
    sums = torch.zeros(count, dtype=torch.float64, device=device)
    with evaluating(model):
        for turn in range(math.ceil(forwards / world.size)):
            between()
            forward = turn * world.size + world.rank
            mine = forward < forwards
            start = min(forward, forwards - 1) * micro_batch
            chosen = torch.arange(start, start + micro_batch).clamp(max=count - 1)
            input_ids = rows[chosen].to(device)
            losses = _losses(model, head, input_ids)
            if mine:
                kept = min(micro_batch, count - start)
                counted = places >= counted_from[start : start + kept, None].to(device)
                sums[start : start + kept] = losses[:kept].double().where(counted, 0.0).sum(dim=1)
    # Exactly one process holds a row's sum and the others hold zero, so that adding them is exact.
    sums = world.sum(sums.cpu())
    _require_finite(sums, model)
    return sums, length - counted_from


def _losses(model: nn.Module, head: Head | None, input_ids: torch.Tensor) -> torch.Tensor:
    """Of every target of rows (N, T), (N, T - 1) fp32; where the head is known, without the logits of all."""
    if head is None:
        return next_token_losses(model(input_ids=input_ids, use_cache=False).logits, input_ids)
    with losses_at(head, next_tokens(input_ids)) as taken:
        model(input_ids=input_ids, use_cache=False)
    return taken.losses[:, :-1]


def perplexity(
    model: nn.Module,
    rows: torch.Tensor,
    *,
    micro_batch: int,
    device: torch.device | str,
    head: Head | None = None,
    world: World = ALONE,
    counted_from: torch.Tensor | None = None,
    between: Callable[[], None] = lambda: None,
) -> Measured:
    """Token-weighted perplexity, exp(sum of losses / number of targets); arguments and errors as ``row_losses``.

    Returns ``value`` (the perplexity), ``stderr`` (its standard error over the choice of rows, as if each were drawn
    by itself; None for one row), ``loss`` (nats per target token), ``tokens`` (targets), ``rows``, ``length`` (tokens
    in a row, of which length - 1 are targets where rows do not overlap), and ``row_losses`` (nats per target of each
    row, in row order: what two models' difference on the same rows is told by).
    """
    sums, targets = row_losses(
        model,
        rows,
        micro_batch=micro_batch,
        device=device,
        head=head,
        world=world,
        counted_from=counted_from,
        between=between,
    )
    return measured(sums, targets, rows.shape[1])


def measured(sums: torch.Tensor, targets: torch.Tensor, length: int | None) -> Measured:
    """What ``perplexity`` returns, from what ``row_losses`` does; ``length`` None where the rows have several."""
    tokens = int(targets.sum())
    loss = math.fsum(sums.tolist()) / tokens
    # Not math.exp, which raises above 709 nats.
    value = torch.tensor(loss, dtype=torch.float64).exp().item()
    return {
        "value": value,
        "stderr": _standard_error(value, (sums - loss * targets).tolist(), tokens),
        "loss": loss,
        "tokens": tokens,
        "rows": len(sums),
        "length": length,
        "row_losses": (sums / targets.clamp(min=1)).tolist(),
    }


def _standard_error(value: float, residuals: list[float], tokens: int) -> float | None:
    """Of exp(a ratio of sums over rows), by the linear term: ``residuals`` are each row's sum of losses less what the
    mean loss would make of its targets. None where there is no telling."""
    count = len(residuals)
    if count < 2 or not math.isfinite(value):
        return None
    return value * math.sqrt(count / (count - 1) * math.fsum(one * one for one in residuals)) / tokens


def _check(rows: torch.Tensor, micro_batch: int) -> None:
    if rows.dim() != 2 or rows.dtype != torch.int64 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise RegrowError(
            f"evaluation rows have shape {tuple(rows.shape)} and dtype {rows.dtype}; they must be (rows, tokens) of "
            "int64, at least one row of at least two tokens"
        )
    if micro_batch < 1:
        raise RegrowError(f"evaluation micro-batch is {micro_batch}; it must be 1 or more")


def _require_finite(sums: torch.Tensor, model: nn.Module) -> None:
    bad = (~torch.isfinite(sums)).nonzero().flatten().tolist()
    if bad:
        broken = not_finite(model.named_parameters())
        cause = (
            f"{broken} has values that are not finite; look into the checkpoint it came from"
            if broken
            else "the weights are finite, activations are not; evaluate in bfloat16 or float32 if it runs in float16"
        )
        raise RegrowError(
            f"evaluation row {bad[0]} of {len(sums)} has a loss of {sums[bad[0]].item()} ({len(bad)} such rows in "
            f"all): {cause}"
        )
