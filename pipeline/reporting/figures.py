"""The two pictures of a run: which blocks mattered, and how the pruned model recovered.

Figures are built as plain `matplotlib.figure.Figure` objects, so pyplot's global list of figures and its
backend are never touched. Each is written twice: as PNG for people who want a picture, and as inline SVG for
the page, where every colour becomes a CSS variable so that one drawing serves light and dark.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipeline.reporting import notation
from pipeline.run import RegrowError

# Light-theme colours and the CSS variable that each becomes in the page. The three states of a block also
# differ in lightness (dark, middle, pale) and in hatching, so that they hold for the colour-blind and in grey.
COLOURS = {
    "ink": "#22262b",
    "muted": "#666e78",
    "grid": "#e3e6ea",
    "kept": "#3a6089",
    "removed": "#e39a45",
    "removed-line": "#7d4306",
    "protected": "#d5dce4",
    "protected-line": "#75808c",
    "faint": "#b7c7d8",
    "held-out": "#0d7d6c",
}
_HATCH = {"kept": None, "removed": "/////", "protected": "---"}  # dots would cost 250 kB of SVG each
_LOG_SPREAD = 20  # largest over smallest perplexity above which bars go on a log scale
_MOST_POINTS = 800  # longer loss curves are averaged in groups, to keep the page small
_WIDE, _NARROW = 8.4, 4.3  # inches; the page shows the narrow drawing on a phone


def block_importance(
    scores: Mapping[str, Any],
    removed: Sequence[int],
    protected: Sequence[int],
    criterion: str,
    narrow: bool = False,
) -> Figure:
    """Draw one bar per block of the dense model, with removed, kept and protected blocks told apart.

    `scores` is a parsed scores.json; `removed` and `protected` are block indices of the dense model. For `ppl`
    a bar is the perplexity without that block, and a dashed line marks the perplexity with every block in place;
    the axis is logarithmic where the largest exceeds 20 times the smallest. A score that is not finite reaches
    the top and is marked so. Raises RegrowError if the criterion is absent or an index is not a block.
    """
    entry = scores["criteria"].get(criterion)
    if entry is None:
        known = ", ".join(sorted(scores["criteria"])) or "none"
        raise RegrowError(f"scores.json has no criterion {criterion!r}; score it, or draw one of: {known}")
    values = [math.nan if value is None else float(value) for value in entry["scores"]]
    for what, indices in (("removed", removed), ("protected", protected)):
        strangers = [index for index in indices if not 0 <= index < len(values)]
        if strangers:
            raise RegrowError(
                f"{what} blocks {strangers} are not among the {len(values)} blocks of scores.json: "
                "the prune record and the scores belong to different models"
            )
    states = ["removed" if b in removed else "protected" if b in protected else "kept" for b in range(len(values))]
    dense = entry.get("dense")
    figure, (axes,) = _canvas(1, 1, (_NARROW, 3.3) if narrow else (_WIDE, 3.8))
    finite = [value for value in values if math.isfinite(value)]
    spread_on_log = criterion == "ppl" and min(finite, default=0) > 0 and max(finite) > _LOG_SPREAD * min(finite)
    bottom = 0.0
    top = max([*finite, dense or 0.0, 0.0]) or 1.0
    if spread_on_log:
        floor = min([*finite, dense or math.inf])
        # Bars on a log axis have no natural foot: leave the smallest a visible stub below the dense line.
        bottom = floor / (top / floor) ** 0.09
        _log_scale(axes, bottom, top * (top / floor) ** 0.05)
    else:
        axes.set_ylim(min([*finite, 0.0]) * 1.05, top * 1.08)
    for block, (value, state) in enumerate(zip(values, states, strict=True)):
        height = value if math.isfinite(value) else axes.get_ylim()[1]
        (bar,) = axes.bar(block, height - bottom, bottom=bottom, width=0.78, **_look(state))
        bar.set_gid(f"block-{block}-{state}")
        bar.set_hatch_linewidth(0.8)
        if not math.isfinite(value):
            axes.annotate("not finite", (block, height), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    if dense is not None:
        line = axes.axhline(dense, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)))
        line.set_gid("dense-reference")
    is_ppl = criterion == "ppl"
    axes.set_ylabel("perplexity without the block" if is_ppl else f"{criterion}: higher is more important")
    axes.set_xlabel("block of the dense model")
    axes.set_xlim(-0.8, len(values) - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7 if narrow else 16, integer=True, steps=[1, 2, 5, 10]))
    keys: list[Any] = []
    for state in ("kept", "removed", "protected"):
        if state in states:
            keys.append(Patch(label=f"{state} ({states.count(state)})", **_look(state)))
            keys[-1].set_hatch_linewidth(0.8)
    if dense is not None:
        line.set_label(f"no block removed: {notation.significant(dense)}")
        keys.append(line)
    _legend(figure, keys, 2 if narrow else 4)
    return figure


def learning_curve(
    metrics: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    references: Mapping[str, float | None],
    narrow: bool = False,
) -> Figure:
    """Draw training loss and held-out perplexity against tokens seen.

    `metrics` and `held_out` are the parsed lines of metrics.jsonl and held_out.jsonl; `references` maps a name
    (`dense`, `pruned`) to a perplexity, drawn as a dashed line where it is a number. Loss is in nats per token.
    Whichever half has no lines is left out. Raises RegrowError where both are missing.
    """
    losses = [(line["tokens"], line["loss"]) for line in metrics if _finite(line.get("loss"))]
    points = [
        (line["tokens"], line["held_out_perplexity"]) for line in held_out if _finite(line.get("held_out_perplexity"))
    ]
    panels = bool(losses) + bool(points)
    if not panels:
        raise RegrowError("learning curve: neither metrics.jsonl nor held_out.jsonl has a finite value to draw")
    rows, columns = (panels, 1) if narrow else (1, panels)
    figure, axes = _canvas(rows, columns, (_NARROW, 2.5 * panels) if narrow else (_WIDE, 3.1))
    if losses:
        _draw_losses(axes[0], losses)
    if points:
        _draw_held_out(axes[-1], points, references)
    for panel in axes:
        panel.set_xlim(left=-0.02 * panel.get_xlim()[1])  # room for the marker of the value before training
        panel.set_xlabel("tokens seen in training")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: notation.tokens(value)))
    return figure


def _draw_losses(axes: Axes, losses: list[tuple[int, float]]) -> None:
    """One pale line of losses and, where there are enough of them, their running mean on top."""
    group = math.ceil(len(losses) / _MOST_POINTS)
    chunks = [losses[start : start + group] for start in range(0, len(losses), group)]
    x = [chunk[-1][0] for chunk in chunks]
    y = [math.fsum(loss for _, loss in chunk) / len(chunk) for chunk in chunks]
    label = "each step" if group == 1 else f"mean of {group} steps"
    window = len(y) // 12
    if window < 3:
        axes.plot(x, y, color=COLOURS["kept"], linewidth=1.5, label=label, gid="training-loss")
    else:
        axes.plot(x, y, color=COLOURS["faint"], linewidth=1, label=label, gid="training-loss")
        means = [math.fsum(y[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(y))]
        axes.plot(x, means, color=COLOURS["kept"], linewidth=1.7, label=f"mean of the last {window * group}")
    _title(axes, "training loss (nats per token)")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=COLOURS["muted"], loc="upper right")


def _draw_held_out(axes: Axes, points: list[tuple[int, float]], references: Mapping[str, float | None]) -> None:
    """Held-out perplexity with its last value written beside it, between the dashed reference lines."""
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=COLOURS["held-out"], linewidth=1.7, marker="o", markersize=4, gid="held-out-perplexity")
    lines = {name: value for name, value in references.items() if _finite(value)}
    everything = [*y, *lines.values()]
    low, high = min(everything), max(everything)
    room = high / low
    if low > 0 and room > 3:
        _log_scale(axes, low / room**0.14, high * room**0.14)
    else:
        axes.set_ylim(low - 0.14 * (high - low or low), high + 0.14 * (high - low or high))
    for name, value in lines.items():
        axes.axhline(value, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)), gid=f"reference-{name}")
        axes.annotate(
            f"{name} {notation.significant(value)}",
            (1, value),
            (-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=COLOURS["muted"],
            fontsize=8.5,
        )
    axes.annotate(
        notation.significant(y[-1]),
        (x[-1], y[-1]),
        (0, 6),
        textcoords="offset points",
        ha="right" if len(x) > 1 else "left",
        color=COLOURS["held-out"],
        fontsize=8.5,
        fontweight="bold",
    )
    _title(axes, "held-out perplexity")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _look(state: str) -> dict[str, Any]:
    """Fill, edge and hatching of a block's bar."""
    edge = COLOURS["kept"] if state == "kept" else COLOURS[f"{state}-line"]
    return {"facecolor": COLOURS[state], "edgecolor": edge, "hatch": _HATCH[state], "linewidth": 0.8}


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9, color=COLOURS["ink"], pad=8)


def _log_scale(axes: Axes, bottom: float, top: float) -> None:
    """A logarithmic axis with round, written-out ticks, the more of them the shorter the range."""
    subs = (1, 1.5, 2, 3, 4, 5, 7) if top / bottom < 12 else (1, 2, 5) if top / bottom < 1e4 else (1,)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, handles: list[Any], columns: int) -> None:
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


def _canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure with quiet axes: no box, pale horizontal lines behind the data."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
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
