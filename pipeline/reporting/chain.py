"""A chain of runs as its last one tells it: what is gone of the first dense model in all, and what each run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.intervals import perplexity_interval


def in_all(prune: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
    """The prune record in the numbers of the first dense model: what is ``removed`` in all, ``kept`` and ``protected``,
    and the ``parameters`` before and after; the record itself where its run began with that model. ``models``: what was
    measured of each."""
    first = prune.get("first")
    if first is None:
        return dict(prune)
    numbers = first["kept"]
    kept = [numbers[block] for block in prune["kept"]]
    sizes = prune.get("parameters") or {}
    return {
        **prune,
        "kept": kept,
        "removed": [block for block in range(first["dense_blocks"]) if block not in kept],
        "protected": [numbers[block] for block in prune.get("protected") or ()],
        "parameters": {"dense": models.get("dense", {}).get("parameters"), "pruned": sizes.get("pruned")},
    }


def tokens_in_all(train: Mapping[str, Any]) -> int | None:
    """Tokens that the runs of a chain trained on together; ``train`` is what the last one's took."""
    if train.get("tokens") is None:
        return None
    return train["tokens"] + sum(run["tokens"] for run in train.get("before") or ())


def flops_in_all(train: Mapping[str, Any]) -> float | None:
    """FLOPs that the runs of a chain trained with together; None where those of a run are not known. ``train`` as for
    ``tokens_in_all``."""
    flops = [run.get("flops") for run in (train, *(train.get("before") or ()))]
    return None if None in flops else sum(flops)


def chain_rows(prune: Mapping[str, Any], train: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row in words for each run of a chain: `run`, the blocks that it `removed` of the first dense model, `blocks`
    left, `tokens`, the `perplexity` of held-out rows when it ended, and its 95 % interval where that is known, as
    `spread`; empty where no run came before."""
    before: Sequence[Mapping[str, Any]] = train.get("before") or ()
    if not before:
        return []
    own = {
        "run": "this run",
        "removed": (prune.get("first") or prune)["removed"],
        "blocks": len(prune["kept"]),
        "tokens": train.get("tokens"),
        "held_out_perplexity": train.get("held_out_perplexity"),
        "held_out_stderr": train.get("held_out_stderr"),
        "held_out_rows": train.get("held_out_rows"),
    }
    return [
        {
            "run": run["run"],
            "removed": notation.block_list(run["removed"]),
            "blocks": str(run["blocks"]),
            "tokens": notation.tokens(run["tokens"]),
            "perplexity": notation.significant(run["held_out_perplexity"]),
            "spread": notation.between(perplexity_interval(_at_its_end(run))),
        }
        for run in (*before, own)
    ]


def _at_its_end(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's last held-out perplexity, as results.json says one."""
    return {
        "value": run["held_out_perplexity"],
        "stderr": run.get("held_out_stderr"),
        "rows": run.get("held_out_rows"),
    }
