"""The criteria and controls by name, as plain data: what each says, where it comes from, what it can choose.

The config offers these names, the docs and the page describe them, the drawings take their colours from here. How a
criterion is computed stands in ``pipeline.importance.criteria``, under the same names. A new criterion is a row here
and a row there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """One way of scoring blocks; for every one of them a higher score is a more important block.

    ``formula`` is of a block, or a window of blocks, that makes y of x, with states x and y of one token before the
    final norm. ``windows``: ``all`` where windows of neighbours of every length are scored beside single blocks,
    ``asked`` where those of the lengths are that ``score.ppl_n`` or ``score.linear_n`` name, None where no window is.
    ``family`` gives the colour of a line, ``marker`` (matplotlib's letter) tells the members of a family apart.
    """

    says: str
    formula: str
    source: str
    windows: str | None
    family: str
    marker: str


@dataclass(frozen=True)
class Control:
    """A way of choosing blocks that looks at nothing: a criterion that does not beat it has shown nothing."""

    says: str
    marker: str


CRITERIA = {
    "ppl": Criterion(
        "the perplexity is high without it",
        "exp of the mean token loss without it",
        "Shortened LLM, arXiv 2402.02834",
        "asked",
        "ppl",
        "o",
    ),
    "block_influence": Criterion(
        "it turns the hidden state",
        "1 - cos(x, y), mean over tokens",
        "ShortGPT, arXiv 2403.03853",
        "all",
        "angle",
        "o",
    ),
    "angular_last": Criterion(
        "the angle between what enters and what leaves is wide, at one token",
        "arccos(cos(x, y)) / pi at one token, by default the last",
        "Gromov et al., arXiv 2403.17887",
        "all",
        "angle",
        "s",
    ),
    "angular_mean": Criterion(
        "that angle is wide, over all tokens",
        "arccos(cos(x, y)) / pi, mean over tokens",
        "short-transformers",
        "all",
        "angle",
        "^",
    ),
    "relative_magnitude": Criterion(
        "what it adds is a large share of its output",
        "|y - x| / |y|, mean over tokens",
        "Samragh et al., arXiv 2312.09299",
        "all",
        "length",
        "o",
    ),
    "euclidean": Criterion(
        "what it adds is long",
        "|y - x|, mean over tokens",
        "short-transformers",
        "all",
        "length",
        "s",
    ),
    "euclidean_last": Criterion(
        "what it adds is long, at one token",
        "|y - x| at one token, by default the last",
        "short-transformers",
        "all",
        "length",
        "^",
    ),
    "norm_ratio": Criterion(
        "it makes the hidden state longer",
        "|y| / |x|, mean over tokens",
        "Ministral 3, arXiv 2601.08584",
        "all",
        "length",
        "D",
    ),
    "normalised_mse": Criterion(
        "its output is far from its input, by squared error",
        "|y - x|² / |y|², mean over tokens",
        "after Nemotron Elastic, arXiv 2511.16664, which takes it at the logits",
        "all",
        "length",
        "v",
    ),
    "linear": Criterion(
        "a linear map in its place misses its output",
        "|y - y'| / |y|, mean over tokens, y' by a fitted map",
        "ReplaceMe's form, arXiv 2505.02819",
        "asked",
        "linear",
        "o",
    ),
    "magnitude": Criterion(
        "its weights are large",
        "sum of |w|^p over its weights",
        "Shortened LLM's Mag+ under the protect rule",
        None,
        "weights",
        "o",
    ),
    "taylor": Criterion(
        "its weights x gradients are large",
        "sum of |w x gradient|^p over its weights",
        "Shortened LLM's Taylor+ under the protect rule",
        None,
        "weights",
        "s",
    ),
}

CONTROLS = {
    "tail": Control("the last free blocks", "v"),
    "random": Control("the first free blocks of a seeded permutation", "x"),
    "uniform": Control("free blocks at a constant stride", "+"),
}


def criteria_table() -> str:
    """docs/scoring.md's table of all criteria and controls, in Markdown."""
    lines = [
        "| criterion | a block matters as much as ... | formula | windows | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in CRITERIA.items():
        formula = row.formula.replace("|", "\\|")
        lines.append(f"| `{name}` | {row.says} | {formula} | {row.windows or ''} | {row.source} |")
    lines += [f"| `{name}` | nothing: a control, {row.says} | | | |" for name, row in CONTROLS.items()]
    return "\n".join(lines) + "\n"
