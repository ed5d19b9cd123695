"""Names of models and texts as a public page may have them: those of the Hub whole, of folders the last part alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def is_hub_name(path: str | None) -> bool:
    """Whether this reads as `owner/name` on the Hub; a folder that exists here is a folder."""
    return path is not None and bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path)) and not Path(path).exists()


def public_name(path: str | None) -> str | None:
    """A name fit for a public card: a Hub name stays, a path on someone's machine keeps its last part only."""
    if path is None or is_hub_name(path):
        return path
    return re.sub(r"^\w+://", "", path).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def hub_dataset(path: str) -> str | None:
    """The Hub id of a data source, or None where it is a local path or an address elsewhere."""
    hub = re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", path)
    if hub:
        return hub.group(1).split("@")[0]
    return path if is_hub_name(path) else None


def text_name(text: Mapping[str, Any]) -> str | None:
    """What a text of results.json is called: `Salesforce/wikitext, wikitext-2-raw-v1, test`, or the file's or folder's
    name; None where it has none."""
    if text.get("dataset") is not None:
        return ", ".join(text[key] for key in ("dataset", "subset", "split") if text.get(key) is not None)
    path = text.get("path")
    return None if path is None else hub_dataset(path) or public_name(path)
