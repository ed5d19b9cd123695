"""Tests mirror the package: a source file has a test file of its name, or is named here with what tests it."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

#: source file -> the test file that exercises it, and why there.
ELSEWHERE = {
    "commands/plan_text.py": ("commands/test_plan.py", "a plan and its text are asked for together"),
    "config/writing.py": ("config/test_tree.py", "what is written must read back as the tree"),
    "criteria.py": ("test_criteria_table.py", "the table has one name too many for a file called criteria"),
    "data/remote/locks.py": ("data/remote/test_cache.py", "processes that share a cache are what locks are for"),
    "data/remote/row_groups.py": ("data/remote/test_fetching.py", "a row group is a way of fetching"),
    "data/remote/space.py": ("data/remote/test_cache.py", "the room of a cache"),
    "data/remote/verifying.py": ("data/remote/test_fetching.py", "what was fetched is verified"),
    "data/sources.py": ("data/corpus/test_listing.py", "a source is asked for by listing it"),
    "importance/batch_major.py": ("importance/test_scoring.py", "the order of the loops that scoring takes"),
    "importance/criteria.py": ("test_criteria_table.py", "both tables must have the same names"),
    "importance/perplexities.py": ("importance/test_choosing.py", "asked by choosing alone"),
    "importance/shelf.py": ("importance/test_block_major.py", "killed at any instant, with the sweep that uses it"),
    "model/architecture.py": ("model/test_load.py", "an architecture is read when a model is loaded"),
    "model/headers.py": ("model/test_fit.py", "headers are read to see whether weights fit"),
    "model/hollow.py": ("model/test_streaming.py", "a hollow model is what is streamed into"),
    "model/precision.py": ("model/test_surgery.py", "what pruning does to the dtypes of tensors"),
    "reporting/comparison.py": ("reporting/test_comparison_rows.py", "importance has a comparison too"),
    "reporting/records.py": ("reporting/test_page.py", "the page is drawn from a run's records"),
    "stages/preflight.py": ("stages/test_sequence.py", "what is refused before any stage starts"),
    "stages/stage.py": ("stages/test_sequence.py", "stages are carried out in their order"),
    "training/export.py": ("stages/test_train.py", "an export needs a run; its bits are in training/test_gradients.py"),
    "training/session.py": ("stages/test_train.py", "a session is a run of the stage, killed and resumed"),
    "training/trained.py": ("stages/test_train.py", "what the stage says of its model"),
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
