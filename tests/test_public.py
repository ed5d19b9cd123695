"""What a notebook imports: every name is there, and type checkers see what it is."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pipeline
from tests import ROOT

#: A notebook, with the types that a reader would expect; the last line is wrong.
NOTEBOOK = """
import torch
from pipeline import Cut, choose_blocks, load_model, remove_blocks, score_blocks
from pipeline.world import ALONE

model = load_model("folder")
scores = score_blocks(model, torch.zeros(1, 8, dtype=torch.long), "ppl", world=ALONE)
chosen: list[int] = choose_blocks(scores["ppl"]["order"], Cut(remove=9))
remove_blocks(model, chosen).save_pretrained("smaller")
Cut(remove="nine")
"""


def test_every_name_is_there_and_its_file_is_checked_by_mypy():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    for name in pipeline.__all__:
        module = getattr(pipeline, name).__module__.replace(".", "/")
        inside = any(f"{module}.py".startswith(path) or module == path for path in checked)
        assert inside or name == "load_config", f"{name} stands in {module}.py, which mypy does not check"


def test_a_type_checker_sees_the_names_of_a_notebook(tmp_path):
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run([*command, str(tmp_path / "notebook.py")], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if "notebook.py" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert 'Argument "remove" to "Cut" has incompatible type "str"' in errors[0], errors
