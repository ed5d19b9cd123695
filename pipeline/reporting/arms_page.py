"""The comparison of runs as a single HTML file, in the form of a run's page: no script, no address outside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pipeline.reporting import notation
from pipeline.reporting.arm_curves import Chart, arm_charts, draw_chart, line_style
from pipeline.reporting.arm_rows import Group, config_rows, cost_rows, perplexity_groups, speed_rows, task_rows
from pipeline.reporting.arms import HELD_OUT, Arm, judged_rows
from pipeline.reporting.drawing import COLOURS, for_page
from pipeline.reporting.identity import text_lines, weight_lines
from pipeline.reporting.model_rows import perplexity_rows
from pipeline.reporting.page import environment, headline


def render_arms(arms: Sequence[Arm]) -> str:
    """The page that compares the arms, in the order in which they were named; the first is what others are compared
    with."""
    charts, alone = _shown_charts(arms)
    names, hours = [arm.name for arm in arms], hours_word(arms)
    groups = perplexity_groups(arms, judged_rows(arms))
    drawings = [_drawing(number, chart, names, hours) for number, chart in enumerate(charts)]
    return (
        environment()
        .get_template("arms.html.j2")
        .render(
            arms=[_head(number, arm) for number, arm in enumerate(arms)],
            first=arms[0].name,
            charts=drawings,
            alone=alone,
            untimed=_untimed(arms),
            costs=cost_rows(arms, hours),
            perplexities=groups,
            apart=apart_words(groups),
            tasks=task_rows(arms),
            speeds=speed_rows(arms),
            keys=config_rows(arms),
            notation=notation,
        )
    )


def hours_word(arms: Sequence[Arm]) -> str:
    """What the hours of all processes of the arms are called: on a CPU they are no GPU's."""
    devices = [arm.device for arm in arms if arm.device is not None]
    return "Hours of all processes" if "CPU" in devices or not devices else "GPU-hours"


def apart_words(groups: Sequence[Group]) -> list[str]:
    """A sentence for each text that was not judged alike everywhere, which says what differs."""
    said = []
    for label in dict.fromkeys(group["label"] for group in groups):
        ways = [group["differs"] for group in groups if group["label"] == label]
        if len(ways) > 1:
            said.append(
                f"{label} was judged in {len(ways)} ways ({'; '.join(ways)}), whose numbers do not compare and stand "
                "in rows of their own."
            )
    return said


def _head(number: int, arm: Arm) -> dict[str, Any]:
    """An arm as the page's head names it, and what its numbers are of."""
    judged = [row for row in perplexity_rows(arm.models) if row["set"] == "held_out"]
    style = line_style(number)
    colour = next(name for name, value in COLOURS.items() if value == style["color"])
    dash = "" if style["linestyle"] == "-" else " ".join(f"{2 * part:g}" for part in style["linestyle"][1])
    return {
        "name": arm.name,
        "words": headline(arm.records.prune_in_all, judged[0] if judged else None, arm.tokens),
        "colour": colour,
        "dash": dash,
        "identity": weight_lines(arm.models) + text_lines(arm.models),
    }


def _shown_charts(arms: Sequence[Arm]) -> tuple[list[Chart], list[str]]:
    """The charts that say something of several arms, or of held-out text where there are none; and what only one arm
    was asked, in words."""
    charts = arm_charts(arms)
    shared = [chart for chart in charts if len(chart.lines) > 1]
    shown = shared or [chart for chart in charts if chart.name == HELD_OUT]
    alone = [f"{chart.label} ({arms[next(iter(chart.lines))].name})" for chart in charts if chart not in shown]
    return shown, alone


def _drawing(number: int, chart: Chart, names: Sequence[str], hours: str) -> dict[str, Any]:
    build = partial(draw_chart, chart, names, hours.lower() if hours[1].islower() else hours)
    words = f"Perplexity of {len(chart.lines)} runs on {chart.label} against tokens and hours."
    return for_page(f"arms-{number}", words, None, build) | {"label": chart.label}


def _untimed(arms: Sequence[Arm]) -> list[str]:
    """The arms whose hours are not known."""
    return [arm.name for arm in arms if arm.hours is None]
