"""A release: the sdist holds what the project is, a wheel made of it alone works where it is installed."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests import ROOT

#: Left to each checkout.
NOT_RELEASED = {".dockerignore", ".gitignore"}


def tracked() -> list[str]:
    """The project's files by git, that are there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"no checkout by git ({listed.stderr.strip()}): test.sh in a clone")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def run(*command: object, cwd: Path, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run([str(one) for one in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(once: Callable[..., Path]) -> Path:
    """A folder with the sdist, and the wheel that was made of it alone."""

    def make(folder: Path) -> None:
        source = folder / "source"
        for name in tracked():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
        hook = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
        run(sys.executable, "-c", hook, cwd=source)
        (sdist,) = folder.glob("*.tar.gz")
        offline = ("--no-deps", "--no-build-isolation", "--no-index")
        run(sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", folder, sdist, cwd=folder)

    return once("release", make)


def test_the_sdist_holds_the_project(built: Path):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not set(tracked()) - NOT_RELEASED - names
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "tests/test_release.py"):
        assert name in names, name
    assert not [name for name in names if name.endswith(".pyc") or name.startswith((".cache", "runs", ".venv"))]


def test_the_wheel_holds_the_package_its_data_and_what_an_index_shows(built: Path):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = wheel.read(about).decode()
    assert {name for name in tracked() if name.startswith("pipeline/")} <= names
    others = {name for name in names if not name.startswith("pipeline/")}
    assert all(".dist-info/" in name for name in others) and any(name.endswith("/LICENSE") for name in others), others
    metadata = Parser().parsestr(text)
    assert metadata["Name"] == "regrow" and metadata["Version"] == stated("version")
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert metadata["Description-Content-Type"] == "text/markdown" and "# regrow" in metadata.get_payload()
    assert {"eval", "cuda", "s3", "dev", "tensorboard", "wandb"} == set(metadata.get_all("Provides-Extra"))


def test_what_is_installed_answers_and_plans(built: Path, tmp_path: Path):
    """In a fresh environment, which finds the libraries here and this project nowhere."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # A line of a .pth adds a folder, and reads no .pth in it: an editable install of this checkout stays unseen.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--ignore-installed", wheel, cwd=tmp_path)
    regrow = tmp_path / "venv" / "bin" / "regrow"
    place = "import pipeline, pathlib; print(pathlib.Path(pipeline.__file__).parent.parent)"
    assert run(python, "-c", place, cwd=tmp_path).strip() == str(site)
    assert run(regrow, "--version", cwd=tmp_path).startswith(f"regrow {stated('version')} (Python ")
    plan = run(regrow, "plan", ROOT / "configs/vicuna-7b/2.7b.yaml", "--price", "2.5", cwd=tmp_path)
    for part in ("6,738,415,616 -> 2,690,748,416", "the whole run on 8", "dollars"):
        assert part in plan, plan


def stated(key: str) -> str:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["metadata"][key]


def test_the_pages_of_a_release_agree():
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert (citation["version"], citation["license"]) == (stated("version"), stated("license_expression"))
    headings = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert headings[0] == (citation["version"], str(citation["date-released"]))


def test_the_page_for_contributors_names_what_is_there():
    """Files, and tables of them; the files of its examples are those of one who follows it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    examples = {"pipeline/a/b.py", "tests/a/test_b.py", "pipeline/data/formats/arrow.py", "pipeline/model/reversed.py"}
    examples |= {"tests/data/formats/test_arrow.py", "tests/model/test_reversed.py"}
    named = set(re.findall(r"(?:pipeline|tests|docs|configs|launch|\.ci)/[\w./-]+\.(?:py|md|yaml|sh|svg|txt)", text))
    assert examples < named
    missing = {name for name in named - examples if not (ROOT / name).exists()}
    assert not missing
    # A step names its file first, and tables and functions of it after that.
    for step in re.findall(r"^\d\. (.*?)(?=^\d\. |^\n)", text, flags=re.M | re.S):
        files = [name for name in re.findall(r"`([\w/.]+\.py)`", step) if name not in examples]
        sources = "".join((ROOT / name).read_text() for name in files)
        for table in re.findall(r"`([A-Z_]{5,})`", step):
            assert not files or table in sources, f"{table} is in none of {files}"
