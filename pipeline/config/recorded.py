"""What the record of an earlier release says of keys that came later: their defaults, so that it still stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python
from ruamel.yaml.error import YAMLError

from pipeline.config.complaints import explain
from pipeline.config.keys import ConfigError, fields, section_of
from pipeline.config.perplexity import MOVED, TextSection
from pipeline.config.reading import yaml_reader
from pipeline.config.tree import Config
from pipeline.errors import first_line

#: Where keys stood in an earlier release, and where they stand now.
PLACES = {f"evaluate.perplexity.{name}": f"evaluate.perplexity.held_out.{name}" for name in MOVED}


def completed(recorded: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """``recorded``, the ``config`` of a fingerprint of ``stage``, as today's release would have written it.

    Keys that moved stand at their new place; one that came later has its default, in a source or a text too; one that
    the stage no longer reads, or that may differ now, is left out. A key that no release of today knows stays.
    """
    values = {PLACES.get(name, name): value for name, value in recorded.items()}
    known = dict(fields(Config))
    for name, field in known.items():
        read = stage in field.json_schema_extra["stages"] and not field.json_schema_extra["free"]
        if not read:
            values.pop(name, None)
        elif name not in values and not field.is_required():
            values[name] = to_jsonable_python(field.get_default(call_default_factory=True))
        elif name in values:
            values[name] = _with_defaults(values[name], section_of(field.annotation))
    return {name: value if name in known else _with_defaults(value, TextSection) for name, value in values.items()}


def _with_defaults(value: Any, section: type[BaseModel] | None) -> Any:
    """A section's value, or a list of such values, with the keys that it lacks at their defaults."""
    if isinstance(value, list):
        return [_with_defaults(each, section) for each in value]
    if section is None or not isinstance(value, Mapping):
        return value
    filled = dict(value)
    for name, field in section.model_fields.items():
        if name in filled:
            filled[name] = _with_defaults(filled[name], section_of(field.annotation))
        elif not field.is_required():
            filled[name] = to_jsonable_python(field.get_default(call_default_factory=True))
    return filled


def recalled(config: Config, recorded: Mapping[str, Mapping[str, Any]]) -> Config:
    """The config with the values that stages were made from: ``recorded`` maps a stage to the ``config`` of its
    fingerprint. ConfigError where they do not go together."""
    tree = config.model_dump(mode="json")
    for stage, values in recorded.items():
        if stage == "evaluate":
            # Its texts are those of the record alone, each of them stated.
            tree["evaluate"]["perplexity"] = {}
        for dotted, value in completed(values, stage).items():
            *sections, name = dotted.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, {}, "what stages were made from")) from None


def load_written(path: Path) -> Config:
    """The config that a run's folder holds, whichever release wrote it: keys that moved are read at their new place,
    and what is not known any more is passed over. ConfigError where the rest is not a config."""
    try:
        tree = yaml_reader("safe").load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({first_line(error)}); a run's config.yaml was damaged") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no config; a run's config.yaml was damaged")
    _move(tree)
    while True:
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
            if not unknown:
                raise ConfigError(explain(error, {}, str(path))) from None
            for place in unknown:
                _take(tree, place)


def _move(tree: dict[str, Any]) -> None:
    for old, new in PLACES.items():
        *sections, name = old.split(".")
        inner = tree
        for section in sections:
            inner = inner.get(section) or {}
        if name in inner:
            value = inner.pop(name)
            inner.setdefault(new.split(".")[-2], {})[name] = value


def _take(tree: Any, place: tuple[str | int, ...]) -> None:
    *outer, last = place
    for part in outer:
        tree = tree[part]
    del tree[last]
