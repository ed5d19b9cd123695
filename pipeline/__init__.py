"""regrow: prune a language model's blocks, regrow its quality.

The pieces that a notebook wants, loaded when they are first used::

    from pipeline import Cut, choose_blocks, load_model, remove_blocks, score_blocks

    model = load_model("path/of/a/model")
    scores = score_blocks(model, batches)
    remove_blocks(model, choose_blocks(scores["ppl"]["order"], Cut(remove=9)))
    model.save_pretrained("smaller")
"""

import importlib
from typing import Any

_HOMES = {
    "Cut": "pipeline.importance.cut",
    "Removals": "pipeline.importance.choosing",
    "Text": "pipeline.importance.criteria",
    "Way": "pipeline.importance.choosing",
    "choose_blocks": "pipeline.importance.selection",
    "choose_window": "pipeline.importance.selection",
    "compare_ways": "pipeline.importance.comparison",
    "draw_heat_map": "pipeline.reporting.heat_maps",
    "draw_layer_bars": "pipeline.reporting.layer_bars",
    "load_config": "pipeline.config",
    "load_model": "pipeline.model.load",
    "remove_blocks": "pipeline.model.blocks",
    "replace_blocks": "pipeline.model.replacement",
    "score_blocks": "pipeline.importance.scoring",
    "skip_blocks": "pipeline.model.blocks",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
