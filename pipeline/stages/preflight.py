"""What can be known before any stage starts: a run that must fail at a later stage does not begin an earlier one.

It takes seconds and writes nothing. The stages check again whatever depends on what they meet.
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline.checks import check_held_out, check_lengths, check_tokenizer, check_weights
from pipeline.config import Config
from pipeline.files import require_writable
from pipeline.launch import Place
from pipeline.model.architecture import check_generation
from pipeline.model.describe import describe_folder
from pipeline.model.load import resolve_model
from pipeline.stages.stage import Ahead, load_stage


def preflight(due: Collection[str], config: Config, place: Place) -> list[str]:
    """Check the stages that are ``due``; returns what people should know of the run, a line each.

    Raises RegrowError naming the key, what was found, and what to do.
    """
    stages = [load_stage(name) for name in due]
    for name in due:
        require_writable(config.run_folder / name, "run.folder")
    folder = model = encoder = None
    if any(stage.reads_model for stage in stages):
        folder = resolve_model(config.model.path, config.model.revision)
        model = describe_folder(folder, config.model.trust_remote_code)
        check_generation(folder)
        encoder = check_tokenizer(config, folder, model)
    ahead = Ahead(config, place, frozenset(due), encoder, model)
    notes = [line for stage in stages for line in stage.check(ahead)]
    if model is None:
        return notes
    check_held_out(config, encoder)
    notes += check_lengths(config, model)
    return [*notes, *check_weights(folder, model)]
