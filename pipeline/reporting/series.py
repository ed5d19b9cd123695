"""From the line files of a run to what its learning curve draws: points of one protocol each, with their bars.

Training asks its weights between steps (held_out.jsonl, tasks.jsonl); exports are judged by themselves (curve.jsonl).
What was asked alike makes one line, whoever asked; what was not has a line of its own, whose label says what differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.intervals import Interval, perplexity_interval
from pipeline.reporting.numbers import finite

Line = Mapping[str, Any]
#: The held-out rows as the training loop judges them, by their name in curve.jsonl.
IN_TRAINING = "held_out in training"
#: Of a figure's fields what fixes it, and how a label says it. Micro-batches change rounding alone.
OF_TEXTS = {
    "rows": "{} rows",
    "length": "length {}",
    "stride": "stride {}",
    "bos": "BOS {}",
    "tokens": "{} targets",
    "text": "text {}",
}
OF_TASKS = {"metric": "{}", "items": "{} items", "shots": "{} shots", "sha256": "items {}"}


@dataclass(frozen=True)
class Series:
    """Points (tokens, value, bar or None) of one protocol, by their tokens, under the ``name`` of a text or a task;
    ``label`` says what differs from others of the name. A perplexity's bar is its 95 % interval over rows, that of a
    task one standard error over items: what stands beside them in tables."""

    name: str
    label: str
    points: tuple[tuple[int, float, Interval | None], ...]


def interval_in_training(line: Line) -> Interval | None:
    """The 95 % interval of a line of held_out.jsonl."""
    names = {"value": "held_out_perplexity", "stderr": "held_out_stderr", "rows": "rows"}
    return perplexity_interval({name: line.get(key) for name, key in names.items()})


def perplexity_series(held_out: Iterable[Line], curve: Sequence[Line]) -> tuple[list[Series], list[Series]]:
    """The lines of held-out text, that of training first, and those of other texts."""
    found = [
        (
            IN_TRAINING,
            {"rows": line.get("rows")},
            (line["tokens"], line.get("held_out_perplexity"), interval_in_training(line)),
        )
        for line in held_out
    ]
    for line in curve:
        texts = line["perplexity"]
        for name, entry in texts.items():
            fixed = {field: entry.get(field) for field in OF_TEXTS}
            if name == "held_out" and IN_TRAINING in texts and _same_rows(entry, texts[IN_TRAINING]):
                continue
            # Of these training's own lines say no more; the rest may not change in the life of a run.
            fixed = {"rows": entry["rows"]} if name == IN_TRAINING else fixed
            found.append((name, fixed, (line["tokens"], entry["value"], perplexity_interval(entry))))
    series = _grouped(found, OF_TEXTS)
    of_held_out = [one for one in series if one.name in (IN_TRAINING, "held_out")]
    return of_held_out, [one for one in series if one not in of_held_out]


def references(
    models: Mapping[str, Any], held_out: Sequence[Line], curve: Sequence[Line], row_length: int | None
) -> tuple[dict[str, float], str]:
    """Perplexities of the dense and the pruned model that belong on the chart of held-out text, and why there are none.

    They belong there where a line of the chart was measured on the same rows: those of training, of ``row_length``
    tokens, or those of the evaluation, which exports were judged on. None of a record too old to tell is left out.
    """
    entries = {
        model: entry
        for model in ("dense", "pruned")
        if (entry := (models.get(model, {}).get("perplexity") or {}).get("held_out"))
    }
    in_training = {line["rows"] for line in held_out if line.get("rows") is not None}
    in_training |= {line["perplexity"][IN_TRAINING]["rows"] for line in curve if IN_TRAINING in line["perplexity"]}
    judged = [line["perplexity"]["held_out"] for line in curve if "held_out" in line["perplexity"]]

    def belongs(entry: Line) -> bool:
        as_trained = entry.get("bos", "document") == "document" and row_length in (None, entry.get("length"))
        rows_known = bool(in_training) and entry.get("rows") is not None
        alike = as_trained and (entry["rows"] in in_training if rows_known else bool(held_out))
        return alike or any(_same_rows(entry, one) for one in judged)

    there = {model: entry["value"] for model, entry in entries.items() if belongs(entry)}
    if there or not entries or not (held_out or curve):
        return there, ""
    first, rows = next(iter(entries.values())), " and ".join(map(str, sorted(in_training)))
    return {}, (
        f"The dense and the pruned model were measured on other rows ({first['rows']} of {first['length']} tokens) "
        f"than the curve ({rows} of {row_length}), and are not drawn beside it."
    )


def task_series(tasks: Iterable[Line], curve: Iterable[Line]) -> list[Series]:
    """A line for each task and protocol, in points of a hundred; metrics that are no shares are left out."""
    found = []
    for line in (*tasks, *curve):
        for task, entry in line["tasks"].items():
            if finite(entry.get("value")) and entry.get("share", True):
                fixed = {field: entry.get(field) for field in OF_TASKS}
                value, error = 100 * entry["value"], 100 * (entry.get("stderr") or 0)
                found.append((task, fixed, (line["tokens"], value, (value - error, value + error) if error else None)))
    return _grouped(found, OF_TASKS)


def _same_rows(one: Line, other: Line) -> bool:
    return all(one.get(field) == other.get(field) for field in OF_TEXTS)


def _grouped(
    found: Iterable[tuple[str, dict[str, Any], tuple[int, Any, Any]]], words: Mapping[str, str]
) -> list[Series]:
    """Points by name and by what fixes them; of two at the same tokens the later stands: that of the export."""
    groups: dict[tuple[str, str], dict[int, tuple[int, float, Interval | None]]] = {}
    fixes: dict[tuple[str, str], dict[str, Any]] = {}
    for name, fixed, (tokens, value, bar) in found:
        if finite(value):
            key = name, repr(fixed)
            fixes[key] = fixed
            groups.setdefault(key, {})[tokens] = (tokens, value, bar)
    labels = labels_of([(name, fixes[name, fixed]) for name, fixed in groups], words)
    return [
        Series(name, label, tuple(points[tokens] for tokens in sorted(points)))
        for ((name, _), points), label in zip(groups.items(), labels, strict=True)
    ]


def labels_of(named: Sequence[tuple[str, Mapping[str, Any]]], words: Mapping[str, str]) -> list[str]:
    """Each one's name, with what differs among those of the same name."""
    counts = Counter(name for name, _ in named)
    labels = []
    for name, fixed in named:
        own = [other for also, other in named if also == name]
        differing = [field for field in words if len({repr(one.get(field)) for one in own}) > 1]
        said = [words[field].format(_short(fixed.get(field))) for field in differing] if counts[name] > 1 else []
        labels.append(", ".join([name, *said]))
    return labels


def _short(value: Any) -> str:
    """A protocol's value in a label: of a hash, or of a text that has one, its first digits."""
    if isinstance(value, Mapping):
        value = value.get("sha256")
    if value is None:
        return "not named"
    return value[:6] if isinstance(value, str) and len(value) == 64 else str(value)
