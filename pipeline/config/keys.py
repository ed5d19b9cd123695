"""What the config tree is made of: a key with its sentence, numbers as YAML writes them, a section that refuses typos.

Every field says which stages read it (that is what the stages' fingerprints hash), whether it may differ when a run
is resumed (``free``), and where its default comes from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from pipeline.errors import RegrowError


class ConfigError(RegrowError):
    """A configuration that cannot be used; its message names the key, the place and the remedy."""


def key(
    default: object, what: str, *, stages: str = "", free: bool = False, source: str = "ours", **limits: float
) -> Any:
    """A field: its default, one sentence, the stages that read it and the source of the default.

    ``stages`` is a space-separated list; ``free`` marks a field that may differ when a stage is resumed or checked
    for staleness; ``limits`` are pydantic's (``ge``, ``gt``, ``le``, ``lt``, ``min_length``).
    """
    extra = {"stages": stages.split(), "free": free, "source": source}
    return Field(default, description=what, json_schema_extra=extra, **limits)


#: A number as people write it: in groups of three, with a word or a letter for its size.
WRITTEN = re.compile(r"(\d{1,3}(?:[, _']\d{3})+|\d+)(\.\d+)?\s*([a-z]*)", re.IGNORECASE)
WORDS = {0: ("",), 3: ("k", "thousand"), 6: ("m", "million"), 9: ("b", "bn", "g", "billion"), 12: ("t", "trillion")}
POWERS = {word: power for power, words in WORDS.items() for word in words}


def recomputing(value: object) -> object:
    """``train.gradient_checkpointing`` by the words that it had before: true is full, false is none."""
    return {True: "full", False: "none"}.get(value, value) if isinstance(value, bool) else value


def number(value: object) -> object:
    """Refuse true and false where a number is wanted: pydantic would take them for 1 and 0.

    A number with a word in it is refused too, with what to write: what a B stands for is not guessed in silence.
    """
    if isinstance(value, bool):
        raise ValueError("a number is wanted")
    written = WRITTEN.fullmatch(value.strip()) if isinstance(value, str) else None
    if written and (power := POWERS.get(written[3].lower())) is not None:
        digits = re.sub(r"\D", "", written[1]) + (written[2] or "")
        if digits != value.strip():
            raise ValueError(f"write {digits}e{power}" if power else f"write {digits}")
    return value


def _whole(value: object) -> object:
    """Accept 150e9 where a whole number is wanted: YAML reads it as a float."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _at_home(path: Path) -> Path:
    """The path with ~ and ~name replaced by a home."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path.parts[0]} is nobody's home here") from None


Whole = Annotated[int, BeforeValidator(_whole), BeforeValidator(number)]
Real = Annotated[float, BeforeValidator(number)]
Folder = Annotated[Path, AfterValidator(_at_home)]
#: A model's folder, or its name on the hub, in which a ~ stands for nothing.
PathOrName = Annotated[str, AfterValidator(lambda path: str(_at_home(Path(path))) if path.startswith("~") else path)]
#: A path that is kept as it was written, since a stage is compared by it; expanded where it is used.
AsWritten = AfterValidator(lambda path: _at_home(Path(path)) and path)
#: A number of processes, or of lanes, or auto: the code finds one.
Count = Union[Literal["auto"], Annotated[Whole, Field(ge=1)]]  # noqa: UP007 (pydantic names the branches)


class Section(BaseModel):
    """One concern of the tree: frozen, and refusing keys that it does not know.

    ``named``: the section that stands under names of the user's own, where there may be any.
    """

    named: ClassVar[type[BaseModel] | None] = None
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, pydantic field) of every leaf of the tree, in the order of definition."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def section_of(annotation: object) -> type[BaseModel] | None:
    """The section (or source) that a field's annotation holds, also inside a tuple or a union; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [section_of(arg) for arg in get_args(annotation)] if get_origin(annotation) else []
    return next((found for found in inner if found is not None), None)


def section_at(section: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """The section that stands at ``name`` inside another; None where a value stands there, or nothing is known."""
    if section is None:
        return None
    field = section.model_fields.get(name)
    return section_of(field.annotation) if field is not None else getattr(section, "named", None)
