"""What installs regrow: pinned, whole, and with everything said that a machine lacks."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT
from tests.bare import bare_machine

LAUNCH = ROOT / "launch"


BASH = shutil.which("bash")


def pins() -> dict[str, str]:
    """The constraints as {canonical name: version}; fails on anything but one exact version per line."""
    found: dict[str, str] = {}
    for number, line in enumerate((LAUNCH / "constraints.txt").read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"constraints.txt line {number} is not NAME==VERSION (no host, hash or local version): {line!r}"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints.txt line {number} pins {name} a second time"
        found[name] = match[2]
    return found


def required(*extras: str) -> list[Requirement]:
    """What setup.cfg asks for: the base and the given extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    for extra in extras:
        lines += setup["options.extras_require"][extra].splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_pinned() -> None:
    pinned = pins()
    for requirement in required("cuda", "eval", "tensorboard", "wandb", "dev"):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"setup.cfg asks for {requirement}, constraints.txt has no line for it"
        assert requirement.specifier.contains(version), f"{requirement.name}=={version} is not {requirement}"


def test_everything_installed_for_regrow_is_pinned() -> None:
    """Walks what the installed packages ask for in turn, from setup.cfg's base and dev."""
    pinned, seen = pins(), {}
    todo = [(requirement, "setup.cfg") for requirement in required("dev")]
    while todo:
        requirement, asked_by = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{name}, asked for by {asked_by}, is not installed: run the tests with launch/test.sh")
        seen[name] = asked_by
        for line in distribution.requires or []:
            child = Requirement(line)
            wanted = {"extra": ""} | default_environment()
            extras = [wanted, *({**wanted, "extra": extra} for extra in requirement.extras)]
            if child.marker is None or any(child.marker.evaluate(each) for each in extras):
                todo.append((child, name))
    # torch built for CUDA names its NVIDIA libraries by exact version itself.
    loose = {name: by for name, by in seen.items() if name not in pinned and not name.startswith(("nvidia-", "cuda-"))}
    assert not loose, f"constraints.txt does not pin (package: asked for by) {loose}"
    assert len(seen) > 60, f"only {len(seen)} packages were walked: the walk itself is broken"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that set-up reads, so that nothing happens to the project's own .venv."""
    project = tmp_path / "project"
    shutil.copytree(LAUNCH, project / "launch")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    return project


def set_up(project: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """demo.sh of the copy, from another working directory; it must stop in set-up."""
    script = project / "launch" / "demo.sh"
    return subprocess.run(
        [BASH, str(script)], cwd=project.parent, env=environment, capture_output=True, text=True, timeout=60
    )


def made(project: Path) -> list[str]:
    return sorted(path.name for path in project.iterdir() if path.name in (".venv", ".cache", "build"))


def test_missing_compiler_is_said_before_anything_is_made(copy: Path, tmp_path: Path) -> None:
    environment = bare_machine(tmp_path / "bin") | {"REGROW_PYTHON": sys.executable}
    result = set_up(copy, environment)
    assert result.returncode != 0, f"set-up went on without a compiler:\n{result.stdout}{result.stderr}"
    for words in ("a C++ compiler", "apt-get install g++", "dnf install gcc-c++"):
        assert words in result.stderr, f"the message lacks {words!r}:\n{result.stderr}"
    assert not made(copy), f"set-up made {made(copy)} before it had what it needs"


def test_all_that_is_missing_is_said_at_once(copy: Path, tmp_path: Path) -> None:
    environment = bare_machine(tmp_path / "bin")
    environment.pop("REGROW_PYTHON", None)
    result = set_up(copy, environment)
    assert result.returncode != 0
    for words in ("Python 3.11 or newer", "a C++ compiler", "python3-venv python3-dev g++", "python3-devel gcc-c++"):
        assert words in result.stderr, f"the message lacks {words!r}:\n{result.stderr}"
    assert not made(copy), f"set-up made {made(copy)} before it had what it needs"


def test_a_machine_that_has_all_passes_the_check(copy: Path) -> None:
    """The counterpart of the two above: here set-up gets as far as the build of torch, named wrongly on purpose."""
    result = set_up(copy, dict(os.environ) | {"REGROW_PYTHON": sys.executable, "REGROW_TORCH": "abacus"})
    assert result.returncode != 0
    assert "REGROW_TORCH=abacus: say cpu or cuda" in result.stderr, result.stderr


def test_a_foreign_venv_is_left_alone(copy: Path) -> None:
    (copy / ".venv").mkdir()
    (copy / ".venv" / "mine.txt").write_text("precious")
    result = set_up(copy, dict(os.environ) | {"REGROW_PYTHON": sys.executable, "REGROW_TORCH": "cpu"})
    assert result.returncode != 0
    assert "this script did not make it" in result.stderr, result.stderr
    assert (copy / ".venv" / "mine.txt").read_text() == "precious"
    assert [path.name for path in (copy / ".venv").iterdir()] == ["mine.txt"], "set-up wrote into a foreign .venv"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_dockerfile(name: str) -> None:
    """No engine is needed: instructions are known, the base can be chosen, what is copied exists, nobody is root."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "docker" / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {step for step, _ in steps} <= known, f"unknown instruction among {[step for step, _ in steps]}"
    assert steps[0][0] == "ARG" and steps[0][1].startswith("BASE_IMAGE="), "the base image can be given"
    assert steps[1] == ["FROM", "${BASE_IMAGE}"]
    for step, rest in steps:
        if step == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), f"{name} copies {source}, which does not exist"
        if step == "RUN":
            result = subprocess.run([BASH, "-n", "-c", rest], capture_output=True, text=True)
            assert result.returncode == 0, f"{name}: bash cannot read: {rest}\n{result.stderr}"
    users = [rest for step, rest in steps if step == "USER"]
    assert users and users[-1] not in ("root", "0"), f"{name} leaves the container to root"
