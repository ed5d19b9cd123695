"""The picture of the house: it is what its script draws of the contracts, and the page names what is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests import ROOT


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """docs/architecture.py."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(picture: Path) -> list[str]:
    """The texts of an SVG in order; shapes and fonts depend on the machine's matplotlib."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text(encoding="utf-8"))


def test_the_picture_is_what_the_contracts_say(architecture, tmp_path):
    architecture.draw(tmp_path / "now.svg")
    drawn, kept = words(tmp_path / "now.svg"), words(ROOT / "docs" / "architecture.svg")
    assert len(drawn) > 60, f"the picture has hardly a word: {drawn}"
    assert kept == drawn, "docs/architecture.svg is old: python docs/architecture.py"


def test_every_room_and_file_is_in_the_picture(architecture):
    shown = {name for row in architecture.layers("rooms") for name in row}
    package = ROOT / "pipeline"
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert shown == there - {"__init__"}, "a room has no place in the contracts"
    silent = [name for name in shown - {"__main__"} if not architecture.first_line(package, name)]
    assert not silent, f"these do not say what they are: {silent}"


def test_the_page_names_files_and_values_that_are_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|md|cfg|svg)|[\w/]+/)`", page)
    assert len(named) > 12, named
    for name in named:
        places = [ROOT / name, ROOT / "pipeline" / name, ROOT / "docs" / name]
        assert any(place.exists() for place in places), f"{name} is not there"
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    for value in re.findall(r"^\| (`.*?`) \|", page, re.M):
        for name in re.findall(r"`(\w+)`", value):
            assert f"class {name}" in sources, f"there is no {name}"
