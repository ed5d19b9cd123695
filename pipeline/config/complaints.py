"""What is wrong with a config, in a line for each key: where it stands, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.config.keys import Section, fields, section_at
from pipeline.config.perplexity import MOVED
from pipeline.config.tree import Config


def explain(error: ValidationError, places: dict[str, str], file: str) -> str:
    """One line for each key that is wrong."""
    complaints: dict[tuple[str, ...], list[str]] = {}
    values = {}
    for item in error.errors():
        parts = _key_of(item["loc"])
        complaints.setdefault(parts, []).append(_complaint(item, parts))
        values[parts] = item["input"]
    lines = []
    for parts, found in complaints.items():
        if any(other[: len(parts)] == parts and other != parts for other in complaints):
            continue  # what is wrong inside a value is said; that the value as a whole is wrong follows from it
        prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        where = next((places[prefix] for prefix in prefixes if prefix in places), file)
        if found[0].startswith("unknown key"):
            lines.append(f"{where}: {found[0]}")
            continue
        got = "" if isinstance(values[parts], Mapping | Section) else f"; got {values[parts]!r}"
        # A union complains once for each branch that it tried.
        lines.append(f"{where}: {'.'.join(parts)}: {', or '.join(found)}{got}")
    return "\n".join(lines)


def _complaint(item: Mapping[str, Any], parts: tuple[str, ...]) -> str:
    """What is wrong with one key, in a person's words."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return f"unknown key {'.'.join(parts)!r}{_nearest(list(parts))}"
    if kind == "missing":
        return "required, and not set"
    if kind == "string_type" and isinstance(item["input"], int | float):
        if isinstance(item["input"], bool):
            return "a text is wanted here, and YAML reads this as true or false; quote a name of that kind"
        return "YAML reads this as a number; put it in quotes"
    if kind == "literal_error" and isinstance(item["input"], str):
        # Pydantic's list ends in "or", and of two there is nothing else between them.
        near = difflib.get_close_matches(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]), n=1)
        if near:
            return f"not known; did you mean {near[0]!r}?"
    if parts[:2] == ("evaluate", "perplexity") and len(parts) == 3 and parts[2] in MOVED:
        name, value = parts[2], item["input"]
        return (
            f"it is a key of the text held_out now; write perplexity: {{held_out: {{{name}: {value}}}}}, or "
            f"evaluate.perplexity.held_out.{name}={value}"
        )
    message = _WORDS.get(kind) or item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


#: Pydantic's complaints that speak of Python rather than of YAML.
_WORDS = {
    "model_type": "a section of keys is wanted",
    "tuple_type": "a list is wanted",
    "path_type": "a path is wanted",
    "string_too_short": "it is empty",
    "too_short": "a list with at least one item is wanted",
    "string_pattern_mismatch": "only letters, digits, and . _ - after the first letter or digit",
}


def _key_of(location: tuple[Any, ...]) -> tuple[str, ...]:
    """An error's place without the branches of a union that pydantic tried, which are no part of the key."""
    section: type[BaseModel] | None = Config
    parts = []
    for part in location:
        if isinstance(part, str):
            if section is None:
                continue
            section = section_at(section, part)
        parts.append(str(part))
    return tuple(parts)


def _nearest(parts: list[str]) -> str:
    model: type[BaseModel] = Config
    for part in parts[:-1]:
        model = (None if part.isdigit() else section_at(model, part)) or model
    known = list(model.model_fields)
    near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {'.'.join([*parts[:-1], near[0]])!r}?"
    elsewhere = [dotted for dotted, _ in fields(Config) if dotted.split(".")[-1] == parts[-1]]
    if not elsewhere:
        return f"; known here: {', '.join(known)}"
    return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
