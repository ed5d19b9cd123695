"""What a run shows to people: pictures, one self-contained page, and a model card.

Plain data in, files out. Nothing here reads a run folder, a model or the config tree; the report stage
hands over what it has parsed, so each function can also be called from a notebook. What draws is loaded when it is
first used: who only wants an interval need not wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.reporting.card import render_card as render_card
    from pipeline.reporting.curves import perplexity_lines as perplexity_lines
    from pipeline.reporting.heat_maps import draw_heat_map as draw_heat_map
    from pipeline.reporting.heat_maps import draw_linear_windows as draw_linear_windows
    from pipeline.reporting.heat_maps import draw_ppl_windows as draw_ppl_windows
    from pipeline.reporting.layer_bars import block_importance as block_importance
    from pipeline.reporting.layer_bars import draw_layer_bars as draw_layer_bars
    from pipeline.reporting.learning import learning_curve as learning_curve
    from pipeline.reporting.page import render_page as render_page
    from pipeline.reporting.records import Records as Records

_HOMES = {
    "Records": "records",
    "block_importance": "layer_bars",
    "draw_heat_map": "heat_maps",
    "draw_layer_bars": "layer_bars",
    "draw_linear_windows": "heat_maps",
    "draw_ppl_windows": "heat_maps",
    "learning_curve": "learning",
    "perplexity_lines": "curves",
    "render_card": "card",
    "render_page": "page",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline.reporting' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.reporting.{_HOMES[name]}"), name)
