"""Where a run will write: its own folder, that of token ids, and that of a teacher's answers. Tried before all."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.config import STAGES, Config
from pipeline.errors import RegrowError
from pipeline.files import require_writable


def check_places(config: Config) -> list[str]:
    """RegrowError unless the stages can write, and the ids stand apart from the text; a line for each place whose disk
    is not this machine's."""
    run, lines = config.run_folder, []
    if is_here(run):
        for stage in STAGES:
            require_writable(run / stage, "run.folder")
    else:
        lines.append(f"run folder {run}: not on this machine")
    require_apart(config)
    asked = config.train.distill
    answers = asked.store if config.train.objective != "lm" and asked.samples is not None else None
    for key, folder in (("data.tokenised", config.data.tokenised), ("train.distill.store", answers)):
        if folder is not None and is_here(folder):
            require_writable(folder, key)
        elif folder is not None:
            lines.append(f"{key} {folder}: not on this machine")
    return lines


def check_ids(config: Config) -> None:
    """RegrowError where token ids are asked for and cannot be written, or would stand among the text."""
    if config.data.tokenised is not None:
        require_apart(config)
        require_writable(config.data.tokenised, "data.tokenised")


def require_apart(config: Config) -> None:
    """RegrowError where the ids would be written among the text: the next listing would find them in its source."""
    if config.data.tokenised is None:
        return
    ids = config.data.tokenised.expanduser().resolve()
    for key, source in config.data.texts.items():
        root = Path(source.path).expanduser().resolve()
        if root.is_dir() and ids.is_relative_to(root) and fnmatchcase(f"{ids.relative_to(root)}/x.tar", source.files):
            raise RegrowError(
                f"data.tokenised {str(config.data.tokenised)!r} lies in {key} {source.path!r}, "
                "which would list the ids as its own; take another folder"
            )


def is_here(folder: Path) -> bool:
    """Whether the disk that is meant is this machine's, as far as its first folder tells."""
    return os.path.exists(Path(*folder.absolute().parts[:2]))
