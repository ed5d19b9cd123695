"""What the page and the card are made of: the parsed records of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.chain import in_all

#: A JSON file, or a line of one, as it was read.
Record = Mapping[str, Any]

PRUNE_KEYS = (
    "protected",
    "criterion",
    "base_model",
    "parameters",
    "self_test",
    "selection",
    "stability",
    "greedy",
    "linear",
    "first",
)
MADE_KEYS = ("command", "date", "export", "loader", "custom_code")
PROVENANCE_KEYS = ("model", "base_model", "model_note", "data", "data_note", "license", "language")


@dataclass(frozen=True)
class Records:
    """One run's records under its ``name``; all but ``prune`` may be missing or partial, and are then said to be.

    ``prune``: prune.json (removed, kept, protected, criterion, parameters, selection, stability, greedy, linear, and
    ``first`` where runs before this one removed blocks). ``scores``: scores.json. ``comparison``: comparison.json (what
    other criteria, selections and controls would have removed, and the perplexity that each leaves before training).
    ``metrics``, ``held_out``, ``tasks`` and ``curve``: lines of metrics.jsonl, held_out.jsonl, tasks.jsonl and
    curve.jsonl. ``results``: results.json. ``cost``: stages in seconds, train, hardware, versions. ``provenance``:
    ``model`` (where the dense model was loaded from), ``base_model`` (its name on the Hub, where ``model`` is a local
    folder), ``model_note``, ``data`` (each with ``path`` and ``documents``), ``data_note``, ``language`` and
    ``license``. ``made``: how the regrown model was made and is loaded: ``command`` (that trained it), ``date`` (when
    training ended), ``export`` (its folder), ``loader`` (the class of transformers that loads it) and ``custom_code``
    (names of the files of code that it needs). ``config_yaml``: the resolved configuration as text.
    """

    name: str
    prune: Record
    scores: Record | None = None
    comparison: Record | None = None
    metrics: Sequence[Record] = ()
    held_out: Sequence[Record] = ()
    tasks: Sequence[Record] = ()
    curve: Sequence[Record] = ()
    results: Record | None = None
    cost: Record | None = None
    provenance: Record | None = None
    made: Record | None = None
    config_yaml: str = ""

    @property
    def models(self) -> Record:
        """What was measured of each model that was."""
        return (self.results or {}).get("models", {})

    @property
    def paired(self) -> Record:
        """By pair of models and task, how they compare on the same items."""
        return (self.results or {}).get("paired", {})

    @property
    def blocks(self) -> int:
        """Blocks of the model that this run began with: the dense model, unless other runs came before."""
        return len(self.prune["removed"]) + len(self.prune["kept"])

    @property
    def whole_prune(self) -> dict[str, Any]:
        """The prune record with None for what it lacks, so that a template can ask for all of it."""
        return dict.fromkeys(PRUNE_KEYS) | dict(self.prune)

    @property
    def prune_in_all(self) -> dict[str, Any]:
        """The same in the numbers of the first dense model, with what runs before this one removed."""
        return in_all(self.whole_prune, self.models)

    @property
    def whole_provenance(self) -> dict[str, Any]:
        """The same of the provenance."""
        return dict.fromkeys(PROVENANCE_KEYS) | dict(self.provenance or {})

    @property
    def whole_made(self) -> dict[str, Any]:
        """The same of how the model was made."""
        return dict.fromkeys(MADE_KEYS) | dict(self.made or {})
