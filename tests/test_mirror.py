"""Tests mirror the package: a source file has a test file of its name, or is named here with what tests it."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

#: source file -> the test file that exercises it, and why there.
ELSEWHERE = {
    "commands/plan_text.py": ("commands/test_plan.py", "a plan and its text are asked for together"),
    "config/writing.py": ("config/test_tree.py", "what is written must read back as the tree"),
    "data/remote/row_groups.py": ("data/remote/test_fetching.py", "a row group is a way of fetching"),
    "data/sources.py": ("data/corpus/test_listing.py", "a source is asked for by listing it"),
    "importance/criteria.py": ("test_criteria.py", "both tables must have the same names"),
    "reporting/records.py": ("reporting/test_page.py", "the page is drawn from a run's records"),
    "training/session.py": ("stages/test_train.py", "a session is a run of the stage, killed and resumed"),
}
SOURCES = sorted(
    path.relative_to(ROOT / "pipeline").as_posix()
    for path in (ROOT / "pipeline").rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def mirror(source: str) -> str:
    folder, _, name = source.rpartition("/")
    return f"{folder}/test_{name}" if folder else f"test_{name}"


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_file_has_its_tests(source):
    own = (ROOT / "tests" / mirror(source)).is_file()
    assert own != (source in ELSEWHERE), (
        f"pipeline/{source} is named here and has a test file of its own: take it off the list"
        if own
        else f"pipeline/{source} has no tests: write tests/{mirror(source)}, or name here what tests it"
    )


@pytest.mark.parametrize("source", ELSEWHERE)
def test_what_is_tested_elsewhere_is_reached_from_there(source):
    """The named file imports the source, or a file that does, or a stage or a command is carried out in it."""
    assert source in SOURCES, f"pipeline/{source} is not there any more"
    test = ROOT / "tests" / ELSEWHERE[source][0]
    assert test.is_file(), f"{test} is not there"
    module = "pipeline." + source.removesuffix(".py").replace("/", ".")
    text = test.read_text(encoding="utf-8")
    imported = set(re.findall(r"from (pipeline[\w.]*) import", text))
    reached, waiting = set(), [*imported, *(["pipeline.cli"] if re.search(r"\b(regrow|here|refused)\b", text) else [])]
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in reached and path.is_file():
            reached.add(name)
            waiting += re.findall(r"from (pipeline[\w.]*) import", path.read_text(encoding="utf-8"))
            waiting += ["pipeline.stages.train"] if name == "pipeline.stages.sequence" else []
    assert module in reached, f"{test.name} does not reach {module}"
