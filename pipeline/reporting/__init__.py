"""What a run shows to people: pictures, one self-contained page, and a model card.

Plain data in, files out. Nothing here reads a run folder, a model or the config tree; the report stage
hands over what it has parsed, so each function can also be called from a notebook.
"""

from pipeline.reporting.card import render_card
from pipeline.reporting.curves import perplexity_lines
from pipeline.reporting.heat_maps import draw_heat_map, draw_linear_windows, draw_ppl_windows
from pipeline.reporting.layer_bars import block_importance, draw_layer_bars
from pipeline.reporting.learning import learning_curve
from pipeline.reporting.page import render_page
from pipeline.reporting.records import Records

__all__ = [
    "Records",
    "block_importance",
    "draw_heat_map",
    "draw_layer_bars",
    "draw_linear_windows",
    "draw_ppl_windows",
    "learning_curve",
    "perplexity_lines",
    "render_card",
    "render_page",
]
