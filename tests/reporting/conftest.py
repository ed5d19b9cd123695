"""What tests of the report may use: the made-up inputs, fresh or once, and the page that is drawn of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reporting.made_up import made_up_inputs, with_criteria
from tests.reporting.reading import render


@pytest.fixture
def compared() -> dict[str, Any]:
    """A fresh copy of the made-up inputs with several criteria and their comparison."""
    return with_criteria(made_up_inputs())


@pytest.fixture
def worded(compared) -> dict[str, Any]:
    """The same without what is drawn (scores and curves), for tests of words: drawing is what costs time."""
    return compared | {"scores": None, "metrics": [], "held_out": [], "comparison": None}


@pytest.fixture(scope="session")
def compared_once() -> dict[str, Any]:
    """The same once, for tests that only read them."""
    return with_criteria(made_up_inputs())


@pytest.fixture
def made_up() -> dict[str, Any]:
    """A fresh copy of the made-up inputs, free to be changed by a test."""
    return made_up_inputs()


@pytest.fixture(scope="session")
def whole(compared_once, tmp_path_factory):
    """The page that has everything: its HTML, the parsed page, its folder and the inputs. Drawn once, read often."""
    folder = tmp_path_factory.mktemp("whole")
    linear = {
        "runs": [{"blocks": [9, 10], "folded_into": 8}],
        "tokens": 5120,
        "perplexity": {
            "without_map": {"calibration": 60.1, "held_out": 67.62},
            "with_map": {"calibration": 50.2, "held_out": 58.93},
        },
    }
    inputs = compared_once | {"prune": compared_once["prune"] | {"linear": linear}}
    return *render(inputs, folder), folder, inputs


@pytest.fixture(scope="session")
def whole_words(whole):
    return whole[1].words


@pytest.fixture
def record(compared):
    """comparison.json of those inputs."""
    return compared["comparison"]


@pytest.fixture
def prune(compared):
    """prune.json of those inputs."""
    return compared["prune"]
