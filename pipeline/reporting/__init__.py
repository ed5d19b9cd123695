"""What a run shows to people: pictures, one self-contained page, and a model card.

Plain data in, files out. Nothing here reads a run folder, a model or the config tree; the report stage
hands over what it has parsed, so each function can also be called from a notebook.
"""

from pipeline.reporting.card import render_card
from pipeline.reporting.figures import block_importance, learning_curve
from pipeline.reporting.page import render_page

__all__ = ["block_importance", "learning_curve", "render_card", "render_page"]
