"""The tests. Those of pipeline/x/y.py are in tests/x/test_y.py."""

from pathlib import Path

#: The project's folder. Programs that tests start as ``python -m tests.x.y`` start in it.
ROOT = Path(__file__).resolve().parent.parent
