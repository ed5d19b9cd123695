"""Reading a config: YAML 1.2 files that extend one another, then overrides, then the checks of the tree.

Where every key was stated, file and line, is kept on the way, so that a complaint can name the place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from pipeline.config.complaints import explain
from pipeline.config.keys import ConfigError, section_of
from pipeline.config.pruning import CUTS
from pipeline.config.tree import Config


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a config file, what it extends, and ``section.key=value`` overrides; check everything.

    >>> load_config("path/of/a/config.yaml", ["prune.remove=3"]).prune.remove
    3

    Later layers win key by key. Stating one cut of prune clears the others, and a new model.path clears
    model.architecture. Raises ConfigError naming each bad key with its file and line (or the override), what is
    allowed, and the nearest known key for a typo.
    """
    places: dict[str, str] = {}
    tree = _read_file(Path(path), places, ())
    for override in overrides:
        dotted, separator, text = (part.strip() for part in override.partition("="))
        if not separator or not all(dotted.split(".")):
            raise ConfigError(f"override {override!r}: write it as section.key=value, for example prune.remove=9")
        try:
            value = yaml_reader().load(text)
        except YAMLError as error:
            problem = getattr(error, "problem", None) or error
            raise ConfigError(f"override {override!r}: the value is not YAML ({problem})") from None
        over = _beside(_nest(dotted, value, tree, override), Path.cwd())
        tree = _merge(tree, over)
        _locate(value, dotted, f"override {override!r}", places)
        places.setdefault(dotted.partition(".")[0], f"override {override!r}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, places, str(path))) from None


def yaml_reader(typ: str = "rt") -> YAML:
    """YAML 1.2: 150e9 and 1e-4 are numbers, no and on are words, a key that stands twice is refused."""
    yaml = YAML(typ=typ, pure=True)
    yaml.version = None
    return yaml


def _read_file(path: Path, places: dict[str, str], parents: tuple[Path, ...]) -> dict[str, Any]:
    """One file merged over what it extends; ``places`` learns the file and line of every key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        tree = yaml_reader().load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: a config is a mapping of sections (run, model, data, ...); this file is not")
    base: dict[str, Any] = {}
    if "extends" in tree:
        base = _read_base(path, tree["extends"], f"{path}:{_line(tree, 'extends')}", places, parents)
    own = {name: value for name, value in tree.items() if name != "extends"}
    for name, value in own.items():
        _locate(value, str(name), f"{path}:{_line(tree, name)}", places, path)
    return _merge(base, _beside(own, path.parent))


def _read_base(
    path: Path, extends: object, where: str, places: dict[str, str], parents: tuple[Path, ...]
) -> dict[str, Any]:
    """What ``path`` extends, at ``where``: refused when it is missing or leads back to a file that asked for it."""
    if not isinstance(extends, str):
        raise ConfigError(f"{where}: extends: the path of one config file is wanted; got {extends!r}")
    base, chain = path.parent / extends, (*parents, path)
    if not base.is_file():
        raise ConfigError(f"{where}: extends: {base} is not a file")
    if base.resolve() in [parent.resolve() for parent in chain]:
        raise ConfigError(f"{where}: extends: goes in a circle: {' -> '.join(str(p) for p in (*chain, base))}")
    return _read_file(base, places, chain)


def _line(tree: CommentedMap | CommentedSeq, name: str | int) -> int:
    """The line, from 1, of a key or list item; the mapping's own line for a key that a YAML merge brought in."""
    position = (tree.lc.data or {}).get(name)
    return (position[0] if position else tree.lc.line) + 1


def _locate(value: object, dotted: str, where: str, places: dict[str, str], file: Path | None = None) -> None:
    """Note where a key was stated, and the keys inside it; what a replaced list held before is forgotten."""
    if not isinstance(value, Mapping):
        for old in [known for known in places if known.startswith(f"{dotted}.")]:
            del places[old]
    places[dotted] = where
    if isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            place = f"{file}:{_line(value, name)}" if file else where
            _locate(inner, f"{dotted}.{name}", place, places, file)


def _beside(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tree with model.architecture made absolute, from the folder of the file (or shell) that states it."""
    model = tree.get("model")
    stated = model.get("architecture") if isinstance(model, Mapping) else None
    if not isinstance(stated, str):
        return tree
    return {**tree, "model": {**model, "architecture": str((folder / os.path.expanduser(stated)).resolve())}}


def _merge(base: object, over: object, prefix: str = "") -> Any:
    """``over`` on ``base``: mappings deep, everything else replaced. Stating one cut of prune clears the others."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    merged = dict(base)
    if prefix == "prune.":
        stated = {name for name in CUTS if over.get(name) is not None}
        follows_a_file = isinstance(over.get("blocks", base.get("blocks")), str)
        together = {"remove", "blocks"} if follows_a_file and stated <= {"remove", "blocks"} else set()
        if stated:
            merged = {name: value for name, value in merged.items() if name not in set(CUTS) - together}
    if prefix == "model." and over.get("path", base.get("path")) != base.get("path"):
        merged.pop("architecture", None)
    for name, value in over.items():
        merged[name] = _merge(merged.get(name), value, f"{prefix}{name}.")
    return merged


def _nest(
    dotted: str, value: object, tree: object, override: str, section: type[BaseModel] | None = Config
) -> dict[str, Any]:
    """``a.b=value`` as {a: {b: value}}; a number in the path replaces an item of the list that stands there."""
    head, _, rest = dotted.partition(".")
    field = section.model_fields.get(head) if section is not None else None
    below = section_of(field.annotation) if field is not None else None
    inner = tree.get(head) if isinstance(tree, Mapping) else None
    if inner is None and field is not None and isinstance(field.default, tuple):
        inner = field.default
    if not rest:
        return {head: value}
    if not isinstance(inner, list | tuple):
        return {head: _nest(rest, value, inner, override, below)}
    index, _, deeper = rest.partition(".")
    if not index.isdigit() or int(index) >= len(inner):
        items = f"name an item 0 to {len(inner) - 1}, or give the whole list" if inner else "give the whole list"
        raise ConfigError(f"override {override!r}: {head} is a list of {len(inner)}; {items}")
    old = inner[int(index)]
    new = _merge(old, _nest(deeper, value, old, override, below)) if deeper else value
    return {head: [*inner[: int(index)], new, *inner[int(index) + 1 :]]}
