"""The least config as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.kit import LEAST, write


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    """A config that states what is required and no more."""
    return write(tmp_path / "config.yaml", LEAST)
