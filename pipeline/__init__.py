"""regrow: prune a language model's blocks, regrow its quality.

The pieces that a notebook wants, loaded when they are first used::

    from pipeline import Cut, choose_blocks, load_model, perplexity, remove_blocks, score_blocks

    model = load_model("path/of/a/model")
    scores = score_blocks(model, batches)
    remove_blocks(model, choose_blocks(scores["ppl"]["order"], Cut(remove=9)))
    perplexity(model, batches)["value"]
    model.save_pretrained("smaller")

docs/notebook.ipynb goes through it on a real model. In the examples of the pieces themselves ``model`` has 8 blocks,
``batches`` are ids (B, T) int64, and ``scores`` what ``score_blocks`` gave for them by ppl and block_influence.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import load_config as load_config
    from pipeline.evaluation.notebook import perplexity as perplexity
    from pipeline.importance.choosing import Removals as Removals
    from pipeline.importance.choosing import Way as Way
    from pipeline.importance.choosing import choose as choose
    from pipeline.importance.comparison import compare_ways as compare_ways
    from pipeline.importance.criteria import Settings as Settings
    from pipeline.importance.criteria import Text as Text
    from pipeline.importance.cut import Cut as Cut
    from pipeline.importance.maps import fit_maps as fit_maps
    from pipeline.importance.scoring import score_blocks as score_blocks
    from pipeline.importance.selection import choose_blocks as choose_blocks
    from pipeline.importance.selection import choose_window as choose_window
    from pipeline.model.blocks import remove_blocks as remove_blocks
    from pipeline.model.blocks import skip_blocks as skip_blocks
    from pipeline.model.describe import Sizes as Sizes
    from pipeline.model.load import load_model as load_model
    from pipeline.model.replacement import replace_blocks as replace_blocks
    from pipeline.reporting.heat_maps import draw_heat_map as draw_heat_map
    from pipeline.reporting.layer_bars import draw_layer_bars as draw_layer_bars

_HOMES = {
    "Cut": "pipeline.importance.cut",
    "Removals": "pipeline.importance.choosing",
    "Settings": "pipeline.importance.criteria",
    "Sizes": "pipeline.model.describe",
    "Text": "pipeline.importance.criteria",
    "Way": "pipeline.importance.choosing",
    "choose": "pipeline.importance.choosing",
    "choose_blocks": "pipeline.importance.selection",
    "choose_window": "pipeline.importance.selection",
    "compare_ways": "pipeline.importance.comparison",
    "draw_heat_map": "pipeline.reporting.heat_maps",
    "draw_layer_bars": "pipeline.reporting.layer_bars",
    "fit_maps": "pipeline.importance.maps",
    "load_config": "pipeline.config",
    "load_model": "pipeline.model.load",
    "perplexity": "pipeline.evaluation.notebook",
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
