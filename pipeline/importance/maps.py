"""Linear maps for the blocks that go, as replace_blocks takes them: linear.py's fit, asked by what is removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.importance.linear import RIDGE, fit_windows
from pipeline.model.blocks import check_indices, find_blocks
from pipeline.model.ids import Batches, id_batches
from pipeline.model.replacement import removed_runs
from pipeline.shown import bars
from pipeline.world import ALONE, World


def fit_maps(
    model: PreTrainedModel, batches: Batches, removed: Sequence[int], *, ridge: float = RIDGE, progress: bool = True
) -> dict[int, torch.Tensor]:
    """The linear map that stands in for each run of neighbours among the blocks ``removed``, by its first block.

    >>> maps = fit_maps(model, batches, [3, 4, 6])
    >>> sorted(maps), maps[3].dtype
    ([3, 6], torch.float32)
    >>> replace_blocks(model, [3, 4, 6], maps).config.num_hidden_layers
    5

    A map M is (d, d) fp32 on the CPU, d the width of the hidden state. It acts on what the MLP of the block before the
    run hands on, and is found by least squares in closed form (linear.py has the formula), in one forward of the dense
    model over ``batches``: ids (B, T) int64 without padding, or what a tokenizer returns (``Batches``). ``ridge`` pulls
    it to the identity, which is the removal without a map. A run that begins at block 0 has no block before it, and no
    map. Nothing of the model is changed. ``progress`` is a bar on a terminal and in a notebook.

    What a map is worth shows on text that it was not fitted on. Let ``batches`` hold what the model will meet: fitted
    on pieces of single documents it can fail behind what stands between them. Raises RegrowError on fewer than 8 d
    tokens, saying how many are needed; on what is no batches (``id_batches``); on blocks that cannot be removed; where
    no run can have a map, or the block before one has no projection that takes it; and when the equations cannot be
    solved.
    """
    found = id_batches(model, batches, shortest=1)
    runs = removed_runs(check_indices(removed, len(find_blocks(model))))
    if not any(run[0] for run in runs):
        raise RegrowError(
            f"linear maps: of blocks {list(removed)} none follows one that stays, into which a map could be folded; "
            "keep block 0, or remove them with remove_blocks"
        )
    with bars(progress):
        return fit_runs(model, found, removed, ridge, ALONE)


def fit_runs(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], removed: Sequence[int], ridge: float, world: World
) -> dict[int, torch.Tensor]:
    """The same from ``batches`` (B, T) int64 of this process; all of ``world`` get the same maps."""
    windows = [(run[0], len(run)) for run in removed_runs(removed) if run[0] > 0]
    return {
        start: matrix for (start, _), matrix in fit_windows(model, batches, windows, ridge=ridge, world=world).items()
    }
