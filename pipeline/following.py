"""A run that follows another, as ``data.after`` names it: it trains on the next rows, and tells what came before it.

A run whose training is done leaves ``train/position.json``: the number of the row behind its last one, whose stream
that is, and where every lane stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.stream.position import Begin, Identity, LaneCursor, check_identity, from_json, to_json
from pipeline.errors import RegrowError
from pipeline.files import read_json, write_json
from pipeline.run import Run

#: Of stage train: where its rows ended.
POSITION = "position.json"
#: Of stage train's result: held-out rows when training ended, as held_out.jsonl has them.
AT_ITS_END = ("held_out_perplexity", "held_out_stderr", "held_out_rows")


def keep_position(run: Run, begin: Begin, rows: int, cursors: Mapping[int, LaneCursor], identity: Identity) -> int:
    """Write where a run's ``rows`` ended that began at ``begin``; returns the number of the row behind them.

    ``cursors`` are those of the lanes that the run read. Lanes that only a run before it read stand where they stood.
    """
    end = begin.row + rows
    lanes = to_json({**begin.cursors, **cursors})
    write_json(run.stage("train") / POSITION, {"row": end, "identity": asdict(identity), "lanes": lanes})
    return end


def begin_after(config: Config, identity: Identity) -> Begin:
    """Where the rows of this run begin. RegrowError where those of ``data.after`` are of another stream."""
    if config.data.after is None:
        return Begin()
    position = read_json(require_before(config) / "train" / POSITION)
    check_identity(position["identity"], identity)
    return Begin(position["row"], from_json(position["lanes"]))


def lanes_before(config: Config) -> int:
    """The lanes of the run that ``data.after`` names, which are this one's too: its rows go on with theirs."""
    return int(read_json(require_before(config) / "train" / POSITION)["identity"]["lanes"])


def position_hashes(config: Config, run: Run) -> dict[str, str]:
    """sha256 of the position that this run's rows begin at, by its name."""
    return {} if config.data.after is None else {"after": run.hash_of(require_before(config) / "train" / POSITION)}


def check_before(config: Config, elsewhere: bool = False) -> list[str]:
    """Whether the run that ``data.after`` names has trained. Returns a line if it is not here.

    RegrowError as ``require_before`` (``elsewhere``: unless it may be on another machine).
    """
    if config.data.after is None:
        return []
    if elsewhere and not _before(config).exists():
        return [f"data.after: {config.data.after} is not on this machine"]
    require_before(config)
    return []


def require_before(config: Config) -> Path:
    """The folder of the run that ``data.after`` names. RegrowError where its training is not done, or left no
    position."""
    folder = _before(config)
    if not (folder / "train" / "stage.json").is_file():
        raise RegrowError(f"data.after {config.data.after}: not the folder of a run whose stage train is done")
    if not (folder / "train" / POSITION).is_file():
        raise RegrowError(
            f"data.after {config.data.after}: train/{POSITION} is not there; an earlier release trained it, which kept "
            "no position behind its last row"
        )
    return folder


def _before(config: Config) -> Path:
    return Path(str(config.data.after)).expanduser()


def runs_before(config: Config) -> list[dict[str, Any]]:
    """What the runs before this one did, the first of them first: ``run``, ``removed`` (in the numbers of the first
    dense model), ``blocks`` (left), ``tokens``, ``flops``, and those AT_ITS_END (None where none were measured)."""
    if config.data.after is None:
        return []
    run = Run(require_before(config))
    trained, prune = run.record("train")["result"], read_json(run.stage("prune") / "prune.json")
    own = {
        "run": run.name,
        "removed": (prune.get("first") or prune)["removed"],
        "blocks": len(prune["kept"]),
        "tokens": trained["tokens"],
        "flops": trained["flops"],
        **{key: trained.get(key) for key in AT_ITS_END},
    }
    return [*trained["before"], own]
