"""The record of a stage that is done, for tests that are about something else."""

from __future__ import annotations

from typing import Any


def stage_record(**more: Any) -> dict[str, Any]:
    """What every record has, with ``more`` in it or in its place."""
    return {
        "stage": "one of them",
        "fingerprint": {"config": {}, "inputs": {}, "upstream": {}, "format": 1},
        "result": {},
        "outputs": {},
        "seconds": 1.0,
        "finished": "2026-11-27T14:42:09+0000",
        **more,
    }
