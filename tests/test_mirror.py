"""Tests mirror the package: a source file has a test file of its name, or is named here with what tests it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline.config import STAGES
from tests import ROOT

#: source file -> the test file that exercises it, and why there.
ELSEWHERE = {
    "commands/plan_lines.py": ("commands/test_plan.py", "a plan and its text are asked for together"),
    "commands/plan_text.py": ("commands/test_plan.py", "a plan and its text are asked for together"),
    "config/writing.py": ("config/test_tree.py", "what is written must read back as the tree"),
    "data/remote/row_groups.py": ("data/remote/test_fetching.py", "a row group is a way of fetching"),
    "data/sources.py": ("data/corpus/test_listing.py", "a source is asked for by listing it"),
    "importance/criteria.py": ("test_criteria.py", "both tables must have the same names"),
    "reporting/records.py": ("reporting/test_page.py", "the page is drawn from a run's records"),
    "training/session.py": ("stages/test_train.py", "a session is a run of the stage, killed and resumed"),
}
#: The fixtures that run the command: as a process of its own, and in this one.
COMMANDS = {"regrow", "here"}
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
    """The named file imports the source, or a file that imports it; or it runs a command, whose stage imports it."""
    assert source in SOURCES, f"pipeline/{source} is not there any more"
    test = ROOT / "tests" / ELSEWHERE[source][0]
    assert test.is_file(), f"{test} is not there"
    module = "pipeline." + source.removesuffix(".py").replace("/", ".")
    asked = imports_of(test)
    for stage in commands_run_by(test):
        asked |= imports_of(ROOT / "pipeline" / "stages" / f"{stage}.py")
    reached = asked.union(*map(imports_of, filter(None, map(file_of, asked))))
    assert module in reached, f"{test.name} does not reach {module}"


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            # What is imported from a package may be a module of it, or a name in it.
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if file_of(name) is not None}


def file_of(module: str) -> Path | None:
    """The file of a module of the package; None for anything else."""
    path = ROOT / module.replace(".", "/")
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if module.split(".")[0] == "pipeline" and found.is_file() else None


def commands_run_by(path: Path) -> set[str]:
    """The stages that a test file carries out: a test of it calls one of ``COMMANDS`` with a stage's name."""
    found = set()
    for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(test, ast.FunctionDef):
            given = {argument.arg for argument in test.args.args} & COMMANDS
            calls = (node for node in ast.walk(test) if isinstance(node, ast.Call) and node.args)
            for call in calls:
                named = isinstance(call.func, ast.Name) and call.func.id in given
                if named and isinstance(call.args[0], ast.Constant) and call.args[0].value in STAGES:
                    found.add(call.args[0].value)
    return found


def test_a_word_is_no_import_and_no_run(tmp_path):
    """What only speaks of a module, or of a command, does not reach it."""
    path = tmp_path / "test_words.py"
    path.write_text('"""here regrow("train") import pipeline.run"""\nimport ast\nregrow, train = print, "train"\n')
    assert (imports_of(path), commands_run_by(path)) == (set(), set())
    path.write_text("def test(regrow):\n    from pipeline import run as module\n    regrow('train', module)\n")
    assert (imports_of(path), commands_run_by(path)) == ({"pipeline", "pipeline.run"}, {"train"})
