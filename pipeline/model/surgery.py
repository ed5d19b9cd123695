"""The surgery: a model's folder without some of its blocks, and the proof that it computes what the dense one does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.model.blocks import remove_blocks, require_removable, skip_blocks
from pipeline.model.equivalence import (
    CACHE_TOLERANCE,
    TOLERANCE,
    cache_tolerance,
    cached_logits,
    compare,
    full_logits,
    probe_ids,
)
from pipeline.model.headers import shortfall
from pipeline.model.load import load_model, save_whole
from pipeline.model.loss import NO_ROUTER, has_router
from pipeline.model.outputs import ask_no_routers, logits_alone
from pipeline.model.precision import narrow, stored_dtypes, widen
from pipeline.model.replacement import mapped_outputs, replace_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: How many of the tensors that the pruned model has less of than the dense files a line names; the record has all.
NAMED = 3


def prune_folder(
    dense: Path,
    target: Path,
    removed: list[int],
    maps: Mapping[int, torch.Tensor],
    *,
    dtype: str,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the model in ``dense`` without the blocks ``removed`` to ``target``, with its tokenizer, and test it.

    ``maps`` as in ``replace_blocks``. ``dtype`` is that of the weights, but for those that transformers keeps in fp32.
    Returns ``parameters`` (dense and pruned), ``narrowed`` and ``left_out`` (``Shortfall``) and ``self_test``. What
    stood in ``target`` is replaced. Raises RegrowError when blocks cannot be removed or a comparison does not hold.
    """
    model = load_model(dense, dtype=dtype, trust_remote_code=trust_remote_code)
    require_removable(model, removed)
    dense_parameters = model.num_parameters()
    lost = _lost(model, dense, dtype, say)
    # The values are those that will be saved, computed with in fp32: differences show mistakes, not rounding.
    stored = stored_dtypes(model)
    widen(model, dense, trust_remote_code)
    ids = probe_ids(model.config.get_text_config().vocab_size)
    say(f"self-test: the dense model in float32 without these blocks, on {ids.numel()} tokens")
    skipped, skipped_cached = _logits_without(model, removed, maps, ids)
    by_cache = cache_tolerance(model, ids, skipped, skipped_cached)
    replace_blocks(model, removed, maps) if maps else remove_blocks(model, removed)
    if not has_router(model) and ask_no_routers(model):
        say(NO_ROUTER)
    pruned, pruned_cached = full_logits(model, ids), cached_logits(model, ids)
    # A folded map multiplies in another order than one that acts on the output.
    tolerance = CACHE_TOLERANCE if maps else TOLERANCE
    checks = [
        compare("blocks skipped and blocks removed", skipped, pruned, tolerance),
        compare("blocks skipped and blocks removed, with cache", skipped_cached, pruned_cached, tolerance),
    ]
    if maps:
        # Folded weights are new: rounded as they will be saved, they give other logits.
        narrow(stored)
        model.float()
        pruned, pruned_cached = full_logits(model, ids), cached_logits(model, ids)
    narrow(stored)
    parameters = model.num_parameters()
    save_whole(model, target, dense, "the pruned model")
    del model
    gc.collect()
    say("self-test: what was saved, read again")
    reloaded = load_model(target, dtype=torch.float32, trust_remote_code=trust_remote_code)
    checks += [
        compare("removed in memory and reloaded", pruned, full_logits(reloaded, ids), 0),
        compare("removed in memory and reloaded, with cache", pruned_cached, cached_logits(reloaded, ids), 0),
        compare("with and without cache", pruned, pruned_cached, by_cache),
    ]
    say(f"self-test: {len(checks)} comparisons hold; {dense_parameters:,} -> {parameters:,} parameters")
    return {
        "parameters": {"dense": dense_parameters, "pruned": parameters},
        **lost,
        "self_test": {"dtype": "float32", "checks": checks},
    }


def _logits_without(
    model: PreTrainedModel, removed: list[int], maps: Mapping[int, torch.Tensor], ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the whole model with the blocks left out where they stand, in one pass and by its cache."""
    # A family's own forward fails where it is to balance experts, and the blocks that have them are skipped.
    with logits_alone(model), skip_blocks(model, removed), mapped_outputs(model, maps):
        return full_logits(model, ids), cached_logits(model, ids)


def _lost(model: PreTrainedModel, dense: Path, dtype: str, say: Callable[[str], None]) -> dict[str, Any]:
    """What prune.json says of tensors that the run holds less precisely than the dense model's files, or not at all."""
    lost = shortfall(model, dense)
    lines = {f"model.dtype {dtype} narrows": list(lost.narrowed), "the text model leaves out": lost.left_out}
    for what, names in lines.items():
        if names:
            more = ", ..." if len(names) > NAMED else ""
            say(f"{what} {len(names)} of the {lost.held} tensors in {dense.name}: {', '.join(names[:NAMED])}{more}")
    narrowed = {name: str(stored).removeprefix("torch.") for name, stored in lost.narrowed.items()}
    return {"narrowed": narrowed, "left_out": lost.left_out}
