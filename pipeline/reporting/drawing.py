"""What every drawing of the report shares: colours, quiet axes, legends, and the two ways of writing it out.

Figures are built as plain `matplotlib.figure.Figure` objects, so pyplot's global list of figures and its
backend are never touched. Each can be written as PNG for people who want a picture, and as inline SVG for the page,
where every colour becomes a CSS variable so that one drawing serves light and dark.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Light-theme colours and the CSS variable that each becomes in the page. The three states of a block also
# differ in lightness (dark, middle, pale) and in hatching, so that they hold for the colour-blind and in grey.
COLOURS = {
    "ink": "#22262b",
    "muted": "#666e78",
    "grid": "#e3e6ea",
    "paper": "#fdfdfb",
    "kept": "#3a6089",
    "removed": "#e39a45",
    "removed-line": "#7d4306",
    "protected": "#d5dce4",
    "protected-line": "#75808c",
    "faint": "#b7c7d8",
    "held-out": "#0d7d6c",
    # A ring that shows on every colour of the heat maps.
    "mark": "#c2185b",
    "mark-seam": "#ffffff",
    # Lines of several criteria in one drawing, one colour for each family; members differ in their markers.
    "family-ppl": "#2f5f96",
    "family-angle": "#0b8a76",
    "family-length": "#8a4fa3",
    "family-linear": "#b4690e",
    "family-weights": "#b23a55",
}
WIDE, NARROW = 8.4, 4.3  # inches; the page shows the narrow drawing on a phone


def title(axes: Axes, text: str) -> None:
    """A small heading over one panel."""
    axes.set_title(text, loc="left", fontsize=9, color=COLOURS["ink"], pad=8)


def reference_line(
    axes: Axes, text: str, value: float, gid: str, colour: str, fontsize: float, above: bool = True, end: float = 1.0
) -> None:
    """A dashed line across the axes at `value`; `text` above it or below ends at `end` of their width."""
    axes.axhline(value, color=colour, linewidth=1, linestyle=(0, (4, 3)), gid=gid)
    axes.annotate(
        text,
        (end, value),
        (-2, 3 if above else -3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        color=COLOURS["muted"],
        fontsize=fontsize,
    )


def log_scale(axes: Axes, bottom: float, top: float) -> None:
    """A logarithmic axis with round, written-out ticks, the more of them the shorter the range."""
    subs = (1, 1.5, 2, 3, 4, 5, 7) if top / bottom < 12 else (1, 2, 5) if top / bottom < 1e4 else (1,)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def fit_heights(axes: Axes, low: float, high: float) -> None:
    """Let the axes hold what is drawn between ``low`` and ``high``, with room for labels; by ratios where the range is
    wide."""
    room = high / low
    if low > 0 and room > 3:
        log_scale(axes, low / room**0.14, high * room**0.14)
    else:
        axes.set_ylim(low - 0.14 * (high - low or low), high + 0.14 * (high - low or high))


def reach(values: Sequence[float], bars: Sequence[tuple[float, float] | None]) -> list[list[float]] | None:
    """How far the bar of each value goes below it and above, as errorbar wants it; None where no value has one."""
    if not any(bars):
        return None
    known = [bar or (math.nan, math.nan) for bar in bars]
    below = [value - low for value, (low, _) in zip(values, known, strict=True)]
    return [below, [high - value for value, (_, high) in zip(values, known, strict=True)]]


def edges(points: Sequence[tuple[float, tuple[float, float] | None]]) -> list[float]:
    """What axes must hold of values with their bars: of a bar no more than lies within three times the values, or what
    is little known would make all else flat."""
    values = [value for value, _ in points]
    low, high = min(values) / 3, max(values) * 3
    return values + [min(max(end, low), high) for _, bar in points if bar for end in bar]


def legend(figure: Figure, handles: list[Any], columns: int) -> None:
    """A legend above the axes, where no bar can run into it."""
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=COLOURS["ink"],
        handlelength=1.8,
        handleheight=1.1,
        columnspacing=1.6,
        borderaxespad=0,
    )


class Drawing(Figure):
    """A figure that a notebook shows by itself: pyplot, which else tells Jupyter how, is never touched."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
        return drawn.getvalue()


def canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure with quiet axes: no box, pale horizontal lines behind the data."""
    figure = Drawing(figsize=size, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.06)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["muted"])
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        axes.tick_params(which="both", length=0, colors=COLOURS["muted"], labelsize=8.5, pad=5)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=COLOURS["muted"], fontsize=8.5)
    return figure, panels


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG on white, 200 dots per inch, the same bytes for the same figure."""
    figure.savefig(path, format="png", dpi=200, facecolor="white", metadata={"Software": None})


def for_page(file: str, label: str, out: Path | None, build: Callable[..., Figure]) -> dict[str, Any]:
    """Draw once for a wide and once for a narrow window, as SVG; the wide drawing is also written to ``out`` as PNG,
    where there is such a folder.

    ``build(narrow=...)`` makes the figure. Returns ``wide``, ``narrow`` and ``file``, the name of the PNG.
    """
    drawings: dict[str, Any] = {"file": f"{file}.png"}
    for width in ("wide", "narrow"):
        figure = build(narrow=width == "narrow")
        drawings[width] = Markup(to_svg(figure, f"{file}-{width}", label))
        if width == "wide" and out is not None:
            save_png(figure, out / drawings["file"])
    return drawings


def to_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an `<svg>` element to stand inside an HTML page.

    Text stays text; each id starts with `prefix`, so that several drawings can share a page; colours become
    `var(--fig-NAME)`; nothing refers to an address outside the page. `label` is read out by screen readers
    and must hold no markup.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]+"', svg).group()
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = re.sub(r"<svg[^>]*>", f'<svg {view} role="img" aria-label="{label}">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r'fill="(#[0-9a-f]{6})"', r'style="fill: \1"', svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--fig-{name})")
    return svg.strip()
