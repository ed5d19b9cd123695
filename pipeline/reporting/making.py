"""How the regrown model was made and how it is loaded, in words: its date, its command, and lines of Python."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.reporting.names import public_name

LOADER = "AutoModelForCausalLM"


def made_words(made: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of ``Records.made``: as there, with the ``date`` in words and the lines of ``load``."""
    return {**made, "date": date_words(made["date"]), "load": load_lines(made["export"], made)}


def load_lines(folder: str | None, made: Mapping[str, Any]) -> list[str]:
    """The import, and the two lines of Python that load model and tokenizer from ``folder``."""
    loader = made.get("loader") or LOADER
    trust = ", trust_remote_code=True" if made.get("custom_code") else ""
    quoted = json.dumps(folder, ensure_ascii=False)
    return [
        f"from transformers import {loader}, AutoTokenizer",
        f"model = {loader}.from_pretrained({quoted}{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted}{trust})",
    ]


def date_words(date: str | None) -> str | None:
    """``2026-11-27T14:40:29+0000`` as `27 November 2026, 14:40 (UTC+00:00)`; what is no such date stays as it is."""
    if date is None:
        return None
    try:
        read = datetime.fromisoformat(date)
    except ValueError:
        return date
    zone = f" ({read.tzname()})" if read.tzname() else ""
    return f"{read.day} {read:%B %Y, %H:%M}{zone}"


def public_command(command: str | None) -> str | None:
    """A command fit for a public card: of files and folders of this machine the last part alone."""
    if command is None:
        return None
    return shlex.join(_public(word) for word in shlex.split(command))


def _public(word: str) -> str:
    key, sign, value = word.partition("=")
    if not sign:
        return Path(word).name if word.endswith((".yaml", ".yml")) else str(public_name(word))
    # Of a list of paths, too, no folder is told.
    return key + sign + re.sub(r"[^\s,\[\]{}'\":]*/[^\s,\[\]{}'\"]*", lambda path: str(public_name(path[0])), value)
