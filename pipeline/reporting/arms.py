"""Arms: runs that are set beside one another, and which of their figures were measured alike.

Two perplexities compare where both models were judged on the same rows: one text, cut by one tokenizer into rows of one
length, as many of them, with one policy of BOS. Whatever differs there has a row, or a chart, of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.reporting.chain import tokens_in_all
from pipeline.reporting.model_rows import MODELS
from pipeline.reporting.names import text_name
from pipeline.reporting.records import Records
from pipeline.reporting.series import IN_TRAINING, OF_TEXTS, labels_of

#: What fixes a perplexity, and how a label says it.
FIXED = {**OF_TEXTS, "encoding": "tokenizer {}", "attention": "attention {}"}


@dataclass(frozen=True)
class Arm:
    """One of the runs under a ``name`` that no other has.

    ``values``: its config by dotted key. ``encoding``: a hash of the tokenizer and of what puts tokens between
    documents. ``in_training``: what fixes the held-out rows that training asks (``text``: its sha256, ``length``,
    ``attention`` where it is within documents). ``steps`` that were asked for; ``flops`` and ``hours`` (of all
    processes) of its training and of the runs before it in a chain, ``hours_before`` of these alone; None where they
    are not known. ``device``: what it trained on.
    """

    name: str
    records: Records
    values: Mapping[str, Any]
    encoding: str
    in_training: Mapping[str, Any]
    steps: int
    flops: float | None = None
    hours: float | None = None
    hours_before: float | None = 0.0
    device: str | None = None

    @property
    def trained(self) -> Mapping[str, Any]:
        """What training came to; empty where it is not done."""
        return (self.records.cost or {}).get("train") or {}

    @property
    def tokens_before(self) -> int:
        """Tokens of the runs before it in a chain."""
        return sum(run["tokens"] for run in self.trained.get("before") or ())

    @property
    def tokens(self) -> int | None:
        """Tokens that it has trained on so far, with those before it."""
        lines = self.records.metrics
        return tokens_in_all(self.trained) if self.trained else lines[-1]["tokens"] if lines else None

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """What was measured of each model: by the evaluation and, of the regrown one, of the last export that was
        judged by itself (its ``step``), where the evaluation did not ask the same."""
        found = {model: dict(entry) for model, entry in self.records.models.items()}
        lines = self.records.curve
        if not lines:
            return found
        last = max(line["step"] for line in lines)
        judged = [line for line in lines if line["step"] == last]
        alone = {"step": last, "sha256": judged[0]["sha256"], "dtype": self.values["model.dtype"]}
        regrown = found.get("regrown", alone)
        for line in judged:
            if line["sha256"] == regrown.get("sha256"):
                for kind in ("perplexity", "tasks"):
                    regrown[kind] = {**(line.get(kind) or {}), **(regrown.get(kind) or {})}
        return {**found, "regrown": regrown}

    @property
    def word(self) -> str:
        """How far training got, where it is not done: `step 8 of 16`."""
        lines = self.records.metrics
        return "" if self.trained else f"step {lines[-1]['step'] if lines else 0:,} of {self.steps:,}"

    def protocol(self, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What fixes a perplexity's entry of results.json, or of a line of curve.jsonl, under the text's ``name``."""
        text = entry.get("text") or {}
        stride, length = entry.get("stride"), entry.get("length")
        overlaps = stride is not None and length is not None and stride < length - (entry.get("bos") == "every")
        return {
            "rows": entry.get("rows"),
            "length": length,
            "stride": stride if overlaps else None,
            "bos": entry.get("bos"),
            # A text that no hash names is no other run's.
            "text": text.get("sha256") or f"of {self.name} alone, without a hash",
            "encoding": self.encoding,
            "attention": self.in_training.get("attention") if name == IN_TRAINING else None,
        }

    def protocol_in_training(self, rows: int | None) -> dict[str, Any]:
        """What fixes the perplexity of a line of held_out.jsonl."""
        return {"rows": rows, "stride": None, "bos": "document", "encoding": self.encoding, **self.in_training}


@dataclass(frozen=True)
class Judged:
    """One set of rows that models were judged on: ``label`` says what differs from other rows of the same text's name,
    ``differs`` says it alone; ``entries`` maps (arm's number, model) to what was measured."""

    name: str
    label: str
    differs: str
    entries: Mapping[tuple[int, str], Mapping[str, Any]]

    @property
    def first(self) -> Mapping[str, Any]:
        """One of the entries."""
        return next(iter(self.entries.values()))


def judged_rows(arms: Sequence[Arm]) -> list[Judged]:
    """All sets of rows that models of the arms were judged on; held-out text first, what more arms share before."""
    found: dict[str, dict[tuple[int, str], Mapping[str, Any]]] = {}
    named: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, arm in enumerate(arms):
        for model in MODELS:
            for name, entry in (arm.models.get(model, {}).get("perplexity") or {}).items():
                fixed = arm.protocol(name, entry)
                key = repr(fixed)
                named.setdefault(key, (of_text(name), fixed))
                found.setdefault(key, {}).setdefault((number, model), entry)
    labels = labels_of(list(named.values()), FIXED)
    rows = [
        Judged(name, label, label.removeprefix(name).removeprefix(", "), found[key])
        for (key, (name, _)), label in zip(named.items(), labels, strict=True)
    ]
    return sorted(rows, key=lambda one: (one.name != HELD_OUT, -len({number for number, _ in one.entries})))


HELD_OUT = "held-out text"


def of_text(name: str) -> str:
    """What a text is called that the records call ``name``: the run's own held-out text has one, whoever asked."""
    return HELD_OUT if name in (IN_TRAINING, "held_out") else name


def text_words(entry: Mapping[str, Any]) -> str:
    """Which text an entry is of: its own name and the first digits of its hash."""
    text = entry.get("text") or {}
    parts = [text_name(text), f"sha256 {text['sha256'][:8]}" if text.get("sha256") else None]
    return ", ".join(part for part in parts if part)
