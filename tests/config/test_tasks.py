"""Keys of tasks: nothing is asked by default, and odd values are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config.tasks import TasksSection


def test_nothing_is_asked_by_default():
    asked = TasksSection()
    assert asked.names == () and asked.limit is None and asked.shots is None and asked.data is None


def test_a_folder_of_data_may_be_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert TasksSection(data="~/data").data == Path("/home/somebody/data")


@pytest.mark.parametrize("odd", [{"limit": 0}, {"shots": -1}, {"batch": 0}, {"names": "arc_easy"}, {"nmaes": []}])
def test_odd_values_are_refused(odd):
    with pytest.raises(ValidationError):
        TasksSection(**odd)
