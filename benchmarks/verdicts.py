"""What arms of recovery show: who is better, with the interval, and how much an arm saves.

    python benchmarks/verdicts.py recovery.json [--outside forums c4 wikitext2] [--picture FOLDER]

recovery.json is what benchmarks/recovery.py writes. Models are compared on the same rows: the difference is that of the
mean loss in nats a token, texts of a kind weighing the same, and its interval is 95% over the choice of rows (1.96
standard errors of the paired differences, texts apart). It says nothing about other seeds: a cut named NAME-b is the
same with another order of the corpus, and stands in a row of its own. Where a family of arms differs in the rate, its
best on the texts in question is taken.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

from matplotlib.lines import Line2D

from pipeline.files import read_json
from pipeline.reporting.arm_curves import line_style
from pipeline.reporting.drawing import canvas, log_scale, save_png, title
from pipeline.reporting.series import IN_TRAINING

#: Claims: what is said, the families of arms that it is said of, and the one that they are compared with.
CLAIMS: tuple[tuple[str, str | tuple[str, ...], str], ...] = (
    ("continued pretraining over LoRA", "cpt", "lora"),
    ("a pruned start over a random one", "cpt", "scratch"),
    ("distillation over continued pretraining", "distill", "cpt"),
    ("half distillation over continued pretraining", "both", "cpt"),
    ("two cuts over one", "two-steps", "cpt"),
    ("healing first", ("heal-both", "heal-4k-both"), "both"),
)


@dataclass(frozen=True)
class Difference:
    """Mean loss less another's, in nats a token, and its standard error over rows."""

    value: float
    error: float

    def verdict(self) -> str:
        """What the sign of a claimed gain (a lower loss) comes to."""
        margin = 1.96 * self.error
        return "confirmed" if self.value < -margin else "refuted" if self.value > margin else "not decided"

    def words(self) -> str:
        """The ratio of perplexities and its interval, in percent."""
        low, middle, high = (math.expm1(self.value + k * 1.96 * self.error) for k in (-1, 0, 1))
        return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


def losses(figure: Mapping[str, Any], texts: Sequence[str], point: int = -1) -> list[list[float]]:
    """The loss of each row of each text, at one of an arm's points."""
    return [figure["points"][point]["perplexity"][text]["row_losses"] for text in texts]


def mean_loss(figure: Mapping[str, Any], texts: Sequence[str], point: int = -1) -> float:
    """Texts weigh the same."""
    return fmean(fmean(rows) for rows in losses(figure, texts, point))


def difference(one: Mapping[str, Any], other: Mapping[str, Any], texts: Sequence[str]) -> Difference:
    """One arm's last export less another's on ``texts``."""
    paired = [
        [a - b for a, b in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(losses(one, texts), losses(other, texts), strict=True)
    ]
    error = math.sqrt(sum(variance(rows) / len(rows) for rows in paired)) / len(paired)
    return Difference(fmean(map(fmean, paired)), error)


def best(arms: Mapping[str, Any], family: str | tuple[str, ...], texts: Sequence[str]) -> str | None:
    """The arm of a family (NAME, or NAME-RATE), or of several, with the lowest loss on ``texts``; None where none was
    trained."""
    names = (family,) if isinstance(family, str) else family
    known = [arm for arm in arms if any(arm == name or arm.removeprefix(f"{name}-")[:1].isdigit() for name in names)]
    return min(known, key=lambda arm: mean_loss(arms[arm], texts), default=None)


def claims(arms: Mapping[str, Any], kinds: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Rows of a table: claim, kind of text, arms, ratio of their perplexities, verdict."""
    for words, family, against in CLAIMS:
        for kind, texts in kinds.items():
            mine, theirs = best(arms, family, texts), best(arms, against, texts)
            if mine is None or theirs is None:
                continue
            found = difference(arms[mine], arms[theirs], texts)
            yield words, kind, f"{mine}, {theirs}", found.words(), found.verdict()


def grows(
    cuts: Mapping[str, Mapping[str, Any]], small: str, large: str, kinds: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, ...]]:
    """Rows on whether continued pretraining's gain over LoRA is larger at the larger cut."""
    for kind, texts in kinds.items():
        found, names = [], []
        for cut in (small, large):
            mine, theirs = best(cuts[cut], "cpt", texts), best(cuts[cut], "lora", texts)
            if mine is None or theirs is None:
                return
            found.append(difference(cuts[cut][mine], cuts[cut][theirs], texts))
            names.append(f"{mine}, {theirs}")
        more = Difference(found[1].value - found[0].value, math.hypot(found[0].error, found[1].error))
        yield "more so at the larger cut", kind, "; ".join(names), more.words(), more.verdict()


def saved(arms: Mapping[str, Any], texts: Sequence[str]) -> Iterator[tuple[str, str, float, float, float]]:
    """For each arm the share of plain training's tokens and FLOPs at which it is at plain training's last loss on
    ``texts`` (best of its rates): (arm, reference, share of tokens, share of FLOPs, loss less the reference's at the
    end). What was spent before the first step is counted whole. Between judged exports the loss is taken as linear in
    tokens; infinite where it never gets there; not below the first export."""
    reference = best(arms, "cpt", texts)
    if reference is None:
        return
    goal, whole = mean_loss(arms[reference], texts), arms[reference]
    for arm, figure in arms.items():
        curve = [(one["tokens"], mean_loss(figure, texts, at)) for at, one in enumerate(figure["points"])]
        tokens = reached(curve, goal)
        before = figure.get("flops_before", 0.0)
        flops = before + tokens / figure["tokens"] * (figure["flops"] - before)
        yield arm, reference, tokens / whole["tokens"], flops / whole["flops"], curve[-1][1] - goal


def reached(curve: Sequence[tuple[int, float]], goal: float) -> float:
    """The tokens at which a curve of (tokens, loss) first comes down to ``goal``."""
    before: tuple[int, float] | None = None
    for tokens, loss in curve:
        if loss <= goal:
            if before is None:
                return tokens
            share = (before[1] - goal) / (before[1] - loss)
            return before[0] + share * (tokens - before[0])
        before = (tokens, loss)
    return math.inf


def draw(arms: Mapping[str, Any], kinds: Mapping[str, Sequence[str]], heading: str, path: Path) -> None:
    """Perplexity over tokens, a panel for each kind of text; what ends far from most is named alone."""
    figure, panels = canvas(1, len(kinds), (8.4, 4.4))
    ends = {arm: mean_loss(found, [*chain.from_iterable(kinds.values())]) for arm, found in arms.items()}
    shown = [arm for arm in arms if abs(ends[arm] - median(ends.values())) < math.log(3)]
    apart = [f"{arm} (ends at {math.exp(ends[arm]):,.0f})" for arm in arms if arm not in shown]
    unit, word = (1e6, "million") if max(found["tokens"] for found in arms.values()) > 1e6 else (1e3, "thousand")
    for axes, (kind, texts) in zip(panels, kinds.items(), strict=True):
        heights = []
        # An arm has its line in the pictures of all cuts.
        for number, arm in enumerate(arms):
            if arm not in shown:
                continue
            points = arms[arm]["points"]
            values = [math.exp(mean_loss(arms[arm], texts, at)) for at in range(len(points))]
            heights += values
            axes.plot(
                [one["tokens"] / unit for one in points],
                values,
                **line_style(number),
                marker="o",
                markersize=3,
                linewidth=1.3,
                label=arm,
            )
        if max(heights) > 4 * min(heights):
            log_scale(axes, min(heights) * 0.95, max(heights) * 1.05)
        axes.set_xlabel(f"{word} tokens")
        title(axes, f"{heading}, {kind}: perplexity, mean of {len(texts)} texts")
    handles, labels = panels[0].get_legend_handles_labels()
    if apart:
        handles.append(Line2D([], [], alpha=0))
        labels.append(f"not drawn: {', '.join(apart)}")
    figure.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=8)
    save_png(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="What arms of recovery show.")
    parser.add_argument("figures", type=Path)
    parser.add_argument("--outside", nargs="+", default=["forums", "c4", "wikitext2"], help="texts of kinds left out")
    parser.add_argument("--picture", type=Path, help="a folder for a drawing of each cut")
    asked = parser.parse_args()
    cuts: dict[str, dict[str, Any]] = {}
    for figure in read_json(asked.figures):
        cuts.setdefault(figure["cut"], {})[figure["arm"]] = figure
    texts = list(next(iter(next(iter(cuts.values())).values()))["points"][-1]["perplexity"])
    within = [text for text in texts if text not in (*asked.outside, IN_TRAINING)]
    kinds = {"in domain": within, "out of domain": asked.outside}
    rows = [(cut, *row) for cut, arms in cuts.items() for row in claims(arms, kinds)]
    plain = [cut for cut in cuts if not cut.endswith("-b")]
    if len(plain) == 2:
        rows += [(" to ".join(plain), *row) for row in grows(cuts, *plain, kinds)]
    table(("cut", "claim", "text", "arms", "perplexity, ratio", "verdict"), rows)
    for cut, arms in cuts.items():
        for kind, of in kinds.items():
            table(
                (f"{cut}, {kind}", "plain training's last at this share of its tokens", "of its FLOPs", "at the end"),
                [
                    (arm, *(f"{one:.0%}" if math.isfinite(one) else "-" for one in shares), f"{math.expm1(end):+.1%}")
                    for arm, _, *shares, end in saved(arms, of)
                ],
            )
        if asked.picture is not None:
            draw(arms, kinds, cut, asked.picture / f"recovery-{cut}.png")
    return 0


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


if __name__ == "__main__":
    raise SystemExit(main())
