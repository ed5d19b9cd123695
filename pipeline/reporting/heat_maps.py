"""How far windows of neighbouring blocks carry what goes through them: a map over start and n, and lines for one n.

Drawn from what ``score_blocks`` returns, so that a notebook needs no run folder::

    scores = score_blocks(model, batches, ["angular_last"])
    draw_heat_map(scores["angular_last"]).savefig("map.png")
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.errors import RegrowError
from pipeline.reporting.drawing import COLOURS, NARROW, canvas, legend, log_scale
from pipeline.reporting.drawing import title as panel_title
from pipeline.reporting.numbers import finite

COLOUR_MAP = "cividis"  # perceptually uniform, the same to the colour-blind, and in tune with the bars


def window_table(entry: Mapping[str, Any], *, normalized: bool = False, protected: Sequence[int] = ()) -> np.ndarray:
    """The distances as an array (n, start) fp64: row n - 1 holds the windows of n blocks, NaN where none fits.

    ``normalized`` puts the least of each row at 0 and the greatest at 1, as short-transformers does; a row of equal
    distances is 0. Where blocks are ``protected``, least and greatest are those of the row's free windows, if it has
    any, and the others are cut to 0 ... 1: block 0 alone would else leave one shade for all the rest. Raises
    RegrowError where the entry has no distances of windows by start.
    """
    windows = entry.get("windows")
    if not isinstance(windows, Sequence) or not windows:
        raise RegrowError("heat map: this entry has no distances of windows; draw one of the distances' entries")
    table = np.full((len(windows), len(windows)), np.nan)
    for start, values in enumerate(windows):
        for below, value in enumerate(values):
            table[below, start] = value if finite(value) else np.nan
    if normalized:
        for n, row in enumerate(table, start=1):
            there = np.isfinite(row)
            free = [start for start in _free_starts(len(table), n, protected) if there[start]]
            if there.any():
                scale = row[free] if free else row[there]
                row[there] = ((row[there] - scale.min()) / (np.ptp(scale) or 1)).clip(0, 1)
    return table


def best_start(entry: Mapping[str, Any], n: int, protected: Sequence[int] = ()) -> int | None:
    """The start of the n-block window of least distance that holds no protected block; None where none is free."""
    table = window_table(entry)
    if not 1 <= n <= len(table):
        return None
    known = [start for start in _free_starts(len(table), n, protected) if math.isfinite(table[n - 1, start])]
    return min(known, key=lambda start: (table[n - 1, start], start), default=None)


def draw_heat_map(
    entry: Mapping[str, Any],
    *,
    normalized: bool = True,
    title: str | None = None,
    narrow: bool = False,
    mark: tuple[int, int] | None = None,
    protected: Sequence[int] = (),
) -> Figure:
    """Draw the distances of all windows of neighbouring blocks: columns are starts, rows are lengths n.

    >>> draw_heat_map(scores["block_influence"], mark=(3, 2)).savefig("windows.png")

    ``entry`` is one distance's of ``score_blocks`` or scores.json. ``normalized`` scales each row to 0 ... 1, so that
    the best start of every n shows (``window_table``); otherwise the distances stand as they are. ``mark`` is a window
    (start, n) to put a ring around; a line encloses the windows that hold none of the ``protected`` blocks. The cells
    are one small image, 80 blocks or 12. Raises RegrowError where the entry has no windows, or ``mark`` is none of
    them.
    """
    table = window_table(entry, normalized=normalized, protected=protected)
    total = len(table)
    if mark is not None and not (mark[0] >= 0 and mark[1] >= 1 and sum(mark) <= total):
        raise RegrowError(f"heat map: no window of {mark[1]} blocks starts at {mark[0]} in a model of {total} blocks")
    figure, (axes,) = canvas(1, 1, (NARROW, 3.5) if narrow else (6.4, 5.0))
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    image = _draw_cells(axes, table)
    for run in _free_runs(total, protected):
        for colour, width in (("mark-seam", 2.2), ("mark", 1.0)):
            axes.plot(*_outline(*run), color=COLOURS[colour], linewidth=width, gid=f"free-windows-{colour}")
    if mark is not None:
        _draw_ring(axes, *mark)
    axes.set_xlabel("first block of the window")
    axes.set_ylabel("blocks in the window, n")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=7 if narrow else 12, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if 1 <= value <= total else ""))
    _colour_key(axes, image, normalized)
    if title:
        panel_title(axes, title)
    return figure


def _draw_cells(axes: Axes, table: np.ndarray) -> AxesImage:
    """The cells (L, L) as an image; what is not finite is no cell."""
    total = len(table)
    colours = colormaps[COLOUR_MAP].with_extremes(bad=(0, 0, 0, 0))  # no window, no cell: the paper shows
    known = table[np.isfinite(table)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    # Exact cells in a vector format: matplotlib embeds the array itself, and the viewer scales it.
    return axes.imshow(
        np.ma.masked_invalid(table),
        cmap=colours,
        vmin=low,
        vmax=high if high > low else low + 1,
        origin="upper",
        aspect="auto",
        interpolation="none",
        extent=(-0.5, total - 0.5, total + 0.5, 0.5),
        gid="cells",
    )


def _draw_ring(axes: Axes, start: int, n: int) -> None:
    """A ring around the cell of a window, with a seam that sets it off from any colour."""
    for name, width in (("mark-seam", 3.4), ("mark", 1.8)):
        axes.plot(
            start,
            n,
            "o",
            markersize=8,
            fillstyle="none",
            color=COLOURS[name],
            markeredgewidth=width,
            clip_on=False,
            gid=name,
        )


def draw_linear_windows(entry: Mapping[str, Any], n: int, *, mark: int | None = None) -> Figure:
    """Draw what replacing n blocks leaves, with the linear map and without, by start of the window.

    ``entry`` is the ``linear`` entry of ``score_blocks`` or scores.json; errors are shares of the state's length;
    ``mark`` is a start to draw a line at. Raises RegrowError where n blocks were not measured.
    """
    measured = (entry.get("windows") or {}).get(str(n))
    if measured is None:
        raise RegrowError(f"linear: windows of {n} blocks were not measured; put {n} among score.linear_n")
    figure, (axes,) = canvas(1, 1, (NARROW * 1.25, 2.4))
    for key, name, colour, style, marker in (
        ("without_map", "left out", "removed-line", (0, (4, 2)), "s"),
        ("scores", "replaced by the map", "kept", "-", "o"),
    ):
        values = [value if finite(value) else math.nan for value in measured.get(key) or ()]
        axes.plot(
            range(len(values)),
            values,
            color=COLOURS[colour],
            linestyle=style,
            marker=marker,
            markersize=3,
            linewidth=1.4,
            label=name,
            gid=f"linear-{key}",
        )
    if mark is not None:
        axes.axvline(mark, color=COLOURS["muted"], linewidth=1, linestyle=(0, (1, 2)), gid="mark")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"first of the {n} blocks" if n > 1 else "block")
    axes.set_ylabel("error: share of the state")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 5, 10]))
    legend(figure, axes.get_legend_handles_labels()[0], 2)
    return figure


def draw_ppl_windows(entry: Mapping[str, Any], n: int, *, mark: int | None = None) -> Figure:
    """Draw the perplexity without each window of n blocks, by its start, beside that of the dense model.

    ``entry`` is the ``ppl`` entry of ``score_blocks`` or scores.json; ``mark`` is a start to draw a line at. Raises
    RegrowError where windows of n blocks were not measured.
    """
    measured = (entry.get("windows") or {}).get(str(n))
    if measured is None:
        raise RegrowError(f"ppl: windows of {n} blocks were not measured; put {n} among score.ppl_n")
    figure, (axes,) = canvas(1, 1, (NARROW * 1.25, 2.4))
    values = [value if finite(value) else math.nan for value in measured["scores"]]
    axes.plot(
        range(len(values)), values, color=COLOURS["kept"], marker="o", markersize=3, linewidth=1.4, gid="ppl-windows"
    )
    known = [value for value in [*values, entry.get("dense")] if finite(value)]
    if known:
        log_scale(axes, min(known) * 0.9, max(known) * 1.1)
    if finite(entry.get("dense")):
        axes.axhline(entry["dense"], color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)), gid="dense-reference")
    if mark is not None:
        axes.axvline(mark, color=COLOURS["muted"], linewidth=1, linestyle=(0, (1, 2)), gid="mark")
    axes.set_xlabel(f"first of the {n} blocks")
    axes.set_ylabel("perplexity without them")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 5, 10]))
    return figure


def _free_starts(total: int, n: int, protected: Sequence[int]) -> list[int]:
    """Starts of the n-block windows without a protected block."""
    return [start for start in range(total - n + 1) if not set(range(start, start + n)) & set(protected)]


def _free_runs(total: int, protected: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First block and number of blocks of each run without a protected one; nothing where none is protected."""
    if not protected:
        return
    first = None
    for block in range(total + 1):
        free = block < total and block not in protected
        if free and first is None:
            first = block
        elif not free and first is not None:
            yield first, block - first
            first = None


def _outline(first: int, length: int) -> tuple[list[float], list[float]]:
    """The stairs around the cells (start, n) of the windows inside one run, as x and y of a closed line."""
    x, y = [first - 0.5, first - 0.5], [length + 0.5, 0.5]
    for n in range(1, length + 1):
        edge = first + length - n + 0.5
        x += [edge, edge]
        y += [n - 0.5, n + 0.5]
    return [*x, first - 0.5], [*y, length + 0.5]


def _colour_key(axes: Axes, image: AxesImage, normalized: bool) -> None:
    """The key of the colours, in the corner below the diagonal where no window fits."""
    inset = axes.inset_axes((0.6, 0.13, 0.38, 0.04))
    bar = axes.figure.colorbar(image, cax=inset, orientation="horizontal")
    bar.outline.set_visible(False)
    # As an image, the key would be 256 rectangles in the SVG.
    if bar.solids is not None:
        bar.solids.set_visible(False)
    inset.imshow(
        np.linspace(*image.get_clim(), 64)[None],
        cmap=image.cmap,
        norm=image.norm,  # type: ignore[arg-type]  # matplotlib types what it gives wider than what it takes
        aspect="auto",
        interpolation="none",
        extent=(*inset.get_xlim(), 0, 1),
        gid="key",
    )
    inset.tick_params(length=0, colors=COLOURS["muted"], labelsize=8, pad=3)
    if normalized:
        bar.set_ticks([0, 1], labels=["least of its row", "greatest"])
        left, right = inset.get_xticklabels()
        left.set_horizontalalignment("left")
        right.set_horizontalalignment("right")
    else:
        inset.xaxis.set_major_locator(MaxNLocator(nbins=3))
