"""A drawing can stand in a page or a file: themed, repeatable, with ids of its own, and without traces elsewhere."""

import re

import matplotlib
from matplotlib import pyplot

from pipeline.reporting import block_importance, drawing


def importance(inputs):
    prune = inputs["prune"]
    return block_importance(inputs["scores"], prune["removed"], prune["protected"], "ppl")


def test_drawing_leaves_matplotlib_as_it_was(made_up, tmp_path):
    before = dict(matplotlib.rcParams)
    figure = importance(made_up)
    drawing.to_svg(figure, "x", "label")
    drawing.save_png(figure, tmp_path / "x.png")
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook would show the figure's name alone"
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == [], "no figure is left in pyplot's global list"


def test_svg_is_inline_themed_and_repeatable(made_up):
    one, two = (drawing.to_svg(importance(made_up), prefix, 'a "label" & more') for prefix in ("one", "two"))
    assert one == drawing.to_svg(importance(made_up), "one", 'a "label" & more'), "the same drawing, the same bytes"
    assert one.startswith("<svg viewBox=") and one.endswith("</svg>")
    assert 'aria-label="a &quot;label&quot; &amp; more"' in one
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", one), "every colour is a variable of the page"
    assert "http" not in one and "xlink" not in one
    assert len(re.findall(r'id="one-block-\d+-removed"', one)) == 9
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (one, two)]
    assert len(set(ids[0] + ids[1])) == len(ids[0]) + len(ids[1]), "ids are unique over two drawings on one page"
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', one))
    assert used and used <= set(ids[0]), f"every reference has its target: {used - set(ids[0])}"
    assert re.search(r"<text[^>]*>block of the dense model</text>", one), "text stays text"
    defined = set(re.findall(r"var\(--fig-([\w-]+)\)", one))
    assert defined <= set(drawing.COLOURS), f"known colours only: {defined}"
