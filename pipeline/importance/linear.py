"""Linear replacement: how well one linear map stands in for a window of blocks.

The window of n blocks from ``start`` is taken out, and the block before it, the last that is kept, gets a matrix M on
the output m of its MLP. With r what that block adds m to (its residual stream), x = r + m what it hands on today, and
y what the window makes of x, the shortened model hands on

    y' = r + M m,        M = I + D,        D = argmin sum (|(y - x) - D m| / |y|)² + ridge |D|²

over the tokens to fit on: least squares by the normal equations, D = C (G + ridge I)^-1 with G = sum m m^T / |y|² and
C = sum (y - x) m^T / |y|², summed in fp64 as the text streams by. Because the residual passes unchanged, M folds into
the weights of the MLP's output projection (W becomes M W, a bias b becomes M b), and the model stays a plain one with
fewer blocks: ``replace_blocks`` of pipeline/model/replacement.py does that.

The form and the folding are ReplaceMe's (arXiv 2505.02819, section 2). Two things differ. The error of a token counts
by its share of the token's state: the first token of a sequence often has a state a thousand times as long as the
others, and alone decides what plain least squares finds (on SmolLM2-135M, 9 blocks from 8, the other tokens then end
at five times their own length from where they should be). And the ridge pulls M to the identity, which is the removal
without a map, and not to zero.

Enough free numbers fit anything: a map of d x d on fewer than d tokens is exact and shows nothing. So at least eight
tokens for each of the d inputs are asked for, and the errors are taken on sequences that the fit has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.selection import order_blocks
from pipeline.importance.sweep import Window, dense_states
from pipeline.model.blocks import find_blocks
from pipeline.model.replacement import output_projection
from pipeline.shown import shown
from pipeline.world import ALONE, World

#: Tokens to fit on, for each entry of the hidden state.
TOKENS_PER_INPUT = 8
#: Maps are judged on one sequence of so many, and fitted on the others.
JUDGED_EVERY = 4
#: The ridge, relative to the mean of the diagonal of G. Of 1e-8 ... 0.1 the largest was best on unseen text for each
#: of four windows of SmolLM2-135M fitted on 5,120 tokens (1 and 9 blocks), by 2 to 5%.
RIDGE = 0.1


@dataclass(frozen=True)
class Errors:
    """What a window's replacement leaves, for each sequence: |y - y'| / |y|, mean over tokens.

    ``mapped`` with the fitted map, ``plain`` with none (M = I); both (S,) as lists. ``plain`` is the window's
    relative magnitude.
    """

    mapped: list[float]
    plain: list[float]


def find_projections(model: PreTrainedModel, windows: Sequence[Window]) -> dict[int, nn.Module]:
    """For each start but 0, the module of the block before it whose output is m. Refused as by output_projection."""
    return {start: output_projection(model, start - 1) for start in sorted({start for start, _ in windows}) if start}


@torch.no_grad()
def fit_windows(
    model: PreTrainedModel,
    batches: Sequence[torch.Tensor],
    windows: Sequence[Window],
    *,
    projections: Mapping[int, nn.Module] | None = None,
    ridge: float = RIDGE,
    world: World = ALONE,
) -> dict[Window, torch.Tensor]:
    """The map M of each window that does not begin at block 0: (d, d) fp32 on the CPU, acting as M @ m.

    ``batches`` are ids (B, T) int64 to fit on; those of this process, and all get the same maps.
    ``projections`` are those of ``find_projections``, which is asked where they are not given. One dense forward is
    made of each batch. In memory stand two (d, d) fp64 matrices for each window, on the model's device; ask for fewer
    windows where that is too much.

    Raises RegrowError when there are fewer than 8 d tokens, saying how many are needed; when a window does not lie in
    the model; where a block before a window has no projection to fold into; or when the equations cannot be solved.
    """
    total = len(find_blocks(model))
    _check_windows(windows, total)
    _require_tokens(batches, model.config.get_text_config().hidden_size, world)
    fitted = [window for window in windows if window[0] > 0]
    projections = find_projections(model, windows) if projections is None else projections
    grams: dict[Window, torch.Tensor] = {}
    crosses: dict[Window, torch.Tensor] = {}
    for batch in shown(batches, "linear maps"):
        states, outputs = _dense(model, batch, projections)
        for start in sorted({start for start, _ in fitted}):
            moved = outputs[start].double()
            for window in (window for window in fitted if window[0] == start):
                reached = states[start + window[1]].double()
                weights = 1 / reached.square().sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
                _accumulate(grams, window, (weights * moved).T @ moved)
                _accumulate(crosses, window, (reached - states[start].double()).T @ (weights * moved))
    for sums in (*grams.values(), *crosses.values()):
        world.sum(sums)
    return {window: _solve(grams[window], crosses[window], ridge, window) for window in fitted}


@torch.no_grad()
def replacement_errors(
    model: PreTrainedModel,
    batches: Sequence[torch.Tensor],
    windows: Sequence[Window],
    maps: dict[Window, torch.Tensor],
    *,
    projections: Mapping[int, nn.Module] | None = None,
) -> dict[Window, Errors]:
    """What each window's replacement leaves on sequences that its map was not fitted on.

    A window without a map in ``maps`` is judged as removed: ``mapped`` is then ``plain``.
    """
    _check_windows(windows, len(find_blocks(model)))
    projections = find_projections(model, list(maps)) if projections is None else projections
    errors = {window: Errors([], []) for window in windows}
    for batch in shown(batches, "linear maps, judged"):
        states, outputs = _dense(model, batch, projections)
        for (start, length), kept in errors.items():
            reached = states[start + length].float()
            change = reached - states[start].float()
            norms = torch.linalg.vector_norm(reached, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
            left = change
            if (start, length) in maps:
                moved = outputs[start].float()
                left = change - (moved @ maps[start, length].to(moved.device).T - moved)
            for residual, into in ((left, kept.mapped), (change, kept.plain)):
                shares = torch.linalg.vector_norm(residual, dim=1) / norms
                into += shares.view(batch.shape).double().mean(dim=1).tolist()
    return errors


def linear_entry(
    model: PreTrainedModel,
    fit: Sequence[torch.Tensor],
    held_out: Sequence[torch.Tensor],
    *,
    lengths: Sequence[int] = (),
    ridge: float = RIDGE,
    world: World = ALONE,
) -> dict[str, Any]:
    """The entry of scores.json of ``linear``: what is lost when a map replaces each block, or each window.

    ``scores`` are those of the blocks alone (n = 1), means over the sequences of ``held_out``: the share of its
    output that the replaced block fails to make (``Errors``), higher being more important. Block 0 has no block
    before it that could take a map, and is scored as removed. ``lengths`` are further n; ``windows`` holds for each n,
    as a string, ``scores`` by start, ``without_map`` by start, and ``best_start`` of all windows that can take a map.
    ``sequence_scores`` are (blocks, sequences). Raises RegrowError as ``fit_windows`` does, and without a sequence held
    out.
    """
    total = len(find_blocks(model))
    counts = sorted({1, *lengths})
    windows = [(start, count) for count in counts for start in range(total - count + 1)]
    _require_tokens(fit, model.config.get_text_config().hidden_size, world)
    projections = find_projections(model, windows)
    maps = fit_windows(model, fit, windows, projections=projections, ridge=ridge, world=world)
    errors = _gather(replacement_errors(model, held_out, windows, maps, projections=projections), world)
    if not errors[windows[0]].mapped:
        raise RegrowError("no sequence is held out: a linear map must be judged on text that it was not fitted on")
    by_length: dict[str, dict[str, Any]] = {}
    for count in counts:
        mapped, plain = (
            [_mean(getattr(errors[start, count], which)) for start in range(total - count + 1)]
            for which in ("mapped", "plain")
        )
        best = min(range(1, len(mapped)), key=lambda start: (mapped[start], start), default=None)
        by_length[str(count)] = {"scores": mapped, "without_map": plain, "best_start": best}
    scores = by_length["1"]["scores"]
    return {
        "scores": scores,
        "order": order_blocks(scores),
        "higher_is": "more important",
        "windows": by_length,
        "sequence_scores": [errors[start, 1].mapped for start in range(total)],
        "ridge": ridge,
    }


def sequences_for_maps(width: int, length: int) -> int:
    """Sequences of ``length`` tokens that linear maps of ``width`` x ``width`` take, those that judge them included."""
    fit = math.ceil(TOKENS_PER_INPUT * width / length)
    return math.ceil(fit * JUDGED_EVERY / (JUDGED_EVERY - 1))


def split_for_maps(
    sequences: torch.Tensor, micro_batch: int, rank: int = 0, processes: int = 1
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Batches to fit linear maps on, and those to judge them by, every fourth of ``sequences`` (N, T).

    Of both this process's share: a run of neighbours, so that in rank order they are the sequences in their order.
    """
    judged = torch.arange(len(sequences)) % JUDGED_EVERY == JUDGED_EVERY - 1
    shares = (rows.tensor_split(processes)[rank] for rows in (sequences[~judged], sequences[judged]))
    fit, judge = ([batch for batch in share.split(micro_batch) if len(batch)] for share in shares)
    return fit, judge


def _require_tokens(batches: Sequence[torch.Tensor], width: int, world: World) -> None:
    tokens = torch.tensor([sum(batch.numel() for batch in batches)])
    world.sum(tokens)
    needed = TOKENS_PER_INPUT * width
    if tokens.item() < needed:
        length = batches[0].shape[1] if batches else 1
        raise RegrowError(
            f"{tokens.item():,} tokens to fit a linear map of {width} x {width} on; at least {needed:,} are needed "
            f"({TOKENS_PER_INPUT} for each input): {-(-needed // length):,} sequences of {length} tokens, besides "
            "those to judge it by"
        )


def _dense(
    model: PreTrainedModel, batch: torch.Tensor, projections: Mapping[int, nn.Module]
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """The states between the blocks (L + 1), and what each projection returns, for a batch; each (B T, d)."""
    states: list[torch.Tensor] = []
    outputs: dict[int, torch.Tensor] = {}
    # Copies: some blocks add to these tensors in place.
    handles = [
        module.register_forward_hook(
            lambda module, args, output, start=start: outputs.update({start: output.clone()}) and None
        )
        for start, module in projections.items()
    ]
    try:
        dense_states(model, batch, lambda index, state: states.append(state.flatten(0, 1).clone()))
    finally:
        for handle in handles:
            handle.remove()
    return states, {start: output.to(states[0].device).reshape(states[0].shape) for start, output in outputs.items()}


def _accumulate(sums: dict[Window, torch.Tensor], window: Window, term: torch.Tensor) -> None:
    if window in sums:
        sums[window] += term
    else:
        sums[window] = term


def _solve(gram: torch.Tensor, cross: torch.Tensor, ridge: float, window: Window) -> torch.Tensor:
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * gram.diagonal().mean() * eye)
    if failed or not torch.isfinite(cross).all():
        raise RegrowError(
            f"the linear map for {window[1]} blocks from {window[0]} cannot be solved for: the MLP's output before "
            "them does not span its width, or is not finite; raise the ridge, or score in float32"
        )
    return (eye + torch.cholesky_solve(cross.T, factor).T).float().cpu()


def _check_windows(windows: Sequence[Window], total: int) -> None:
    wrong = [window for window in windows if not (window[0] >= 0 and window[1] >= 1 and sum(window) <= total)]
    if wrong:
        raise RegrowError(f"window of {wrong[0][1]} blocks from {wrong[0][0]}: the model has blocks 0 to {total - 1}")


def _gather(errors: dict[Window, Errors], world: World) -> dict[Window, Errors]:
    """The sequences of all processes, in rank order."""
    shares = world.gather(errors)
    return {
        window: Errors(
            [value for share in shares for value in share[window].mapped],
            [value for share in shares for value in share[window].plain],
        )
        for window in errors
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
