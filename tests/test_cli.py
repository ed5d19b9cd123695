"""The command line: what it offers, that it answers without torch, and what its small commands print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import typer.main

from pipeline.cli import app, main
from pipeline.config import STAGES, load_config
from tests import ROOT

SURFACE = {
    "run": ["config", "overrides", "--until", "--redo"],
    "chain": ["config", "overrides", "--redo"],
    **{stage: ["config", "overrides", "--redo"] for stage in STAGES},
    "evaluate": ["config", "overrides", "--redo", "--export"],
    "plan": ["config", "overrides", "--until", "--price"],
    "status": ["run", "overrides", "--watch", "--every"],
    "runs": ["folder"],
    "restore": ["run", "aside"],
    "compare": ["runs", "--out"],
    "data-show": ["config", "--step", "overrides", "--characters"],
    "config": ["config", "overrides"],
    "schema": [],
}


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(*arguments)``: exit status, output and messages of the command in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regrow", *map(str, arguments)])
        capsys.readouterr()
        status = main() or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_the_commands_and_their_options_are_these():
    group = typer.main.get_command(app)
    found = {name: [parameter.opts[0] for parameter in command.params] for name, command in group.commands.items()}
    assert found == SURFACE, "commands or options changed: correct README, docs and this test together"


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_explains_itself(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert "Usage: regrow" in out
    what = typer.main.get_command(app).commands[command].help
    assert what and what.split(". ")[0] in " ".join(out.split()), f"{command} --help does not say what it does"


def test_the_version_names_regrow_and_what_it_stands_on(call):
    status, out, _ = call("--version")
    assert status == 0
    for name in ("regrow", "torch", "transformers", "deepspeed"):
        assert f"{name} {version(name)}" in out, out
    assert out.count("\n") == 1, out


def test_a_command_that_is_not_there_is_a_usage_error(call):
    status, _, message = call("prunee")
    assert status == 2
    assert "prunee" in message


def test_what_only_reads_and_config_errors_do_not_import_torch(reference, tmp_path):
    """In one process, one command after another."""
    commands = [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["config", "configs/demo.yaml"],
        ["schema"],
        ["status", str(reference)],
        ["runs", str(reference.parent)],
        ["compare", str(reference), str(ROOT / "tests/stages/887a583/runs/done"), "--out", str(tmp_path / "page.html")],
        ["restore", str(reference), "001"],
        ["run", "configs/demo.yaml", "prune.remov=9"],
        ["run", "configs/absent.yaml"],
    ]
    program = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['regrow', *arguments]\n"
        "    status = main()\n"
        "    heavy = {'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)\n"
        "    print('DONE', arguments, status, sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("DONE")]
    expected = [*[0] * 8, 1, 1, 1]
    assert lines == [f"DONE {a!r} {s} []" for a, s in zip(commands, expected, strict=True)], done.stderr


def test_python_m_pipeline_is_the_command_regrow():
    (script,) = entry_points(group="console_scripts", name="regrow")
    assert script.load() is main, "the installed command is another function than python -m pipeline calls"
    module = subprocess.run(
        [sys.executable, "-m", "pipeline", "config", "configs/demo.yaml"], cwd=ROOT, text=True, capture_output=True
    )
    command = shutil.which("regrow", path=str(Path(sys.executable).parent))
    assert command, "regrow is not installed beside this Python"
    installed = subprocess.run([command, "config", "configs/demo.yaml"], cwd=ROOT, text=True, capture_output=True)
    assert module.returncode == installed.returncode == 0, module.stderr + installed.stderr
    assert module.stdout == installed.stdout


def test_config_prints_what_load_config_reads_back(call, tmp_path):
    status, out, _ = call("config", ROOT / "configs" / "demo.yaml", "prune.ratio=0.25", "train.tokens=1e6")
    assert status == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(out)
    config = load_config(printed)
    assert (config.prune.ratio, config.prune.remove, config.train.tokens) == (0.25, None, 1_000_000)
    assert config == load_config(ROOT / "configs" / "demo.yaml", ["prune.ratio=0.25", "train.tokens=1e6"])


@pytest.mark.parametrize("command", [["plan"], ["run"], ["train"], ["data-show", "--step", "1"], ["config"]])
def test_a_working_directory_that_was_deleted_is_said_in_a_line(tiny_config, tmp_path, command):
    (tmp_path / "gone").mkdir()
    script = f"rmdir {tmp_path}/gone; exec {sys.executable} -m pipeline {' '.join(command)} {tiny_config}"
    ended = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert ended.stderr.startswith("regrow: the working directory was deleted"), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr


def test_schema_is_json_and_knows_every_section(call):
    status, out, _ = call("schema")
    assert status == 0
    assert set(json.loads(out)["properties"]) == {"extends", "run", "model", "chain", *STAGES}


@pytest.mark.parametrize(
    ("config", "overrides", "parts"),
    [
        ("demo.yaml", ["train.tokens=40960"], ["30 -> 21, 9 removed", "40,960 in 20 steps", "8 rows of 256 tokens"]),
        ("vicuna-7b/2.7b.yaml", [], ["32 -> 12, 20 removed", "6,738,415,616 -> 2,690,748,416", "143,052 steps"]),
    ],
)
def test_plan_prints_blocks_parameters_steps_and_memory(call, demo, monkeypatch, config, overrides, parts):
    monkeypatch.chdir(ROOT)
    status, out, message = call("plan", f"configs/{config}", *overrides)
    assert status == 0, message
    for part in (*parts, "memory per GPU", "FLOPs", "days on"):
        assert part in out, f"{part!r} is not in the plan:\n{out}"


def test_plan_takes_a_price(call, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = call("plan", "configs/vicuna-7b/2.7b.yaml", "--price", "2.5")
    assert status == 0 and "dollars" in out
    status, _, message = call("plan", "configs/vicuna-7b/2.7b.yaml", "--price", "-1")
    assert status == 2 and "--price" in message


def test_status_of_a_finished_run(call, reference):
    status, out, _ = call("status", reference)
    assert status == 0
    assert f"run tiny in {reference}" in out
    assert "no command works in it now" in out
    for stage in STAGES:
        assert any(line.split()[:2] == [stage, "done"] for line in out.splitlines()), f"{stage} is not done in:\n{out}"


def test_status_of_a_run_in_training(call, reference, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(reference, run)
    for stage in ("evaluate", "report"):
        shutil.rmtree(run / stage)
    (run / "train" / "stage.json").unlink()
    metrics = (run / "train" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "train" / "metrics.jsonl").write_text("".join(metrics[:22]) + metrics[22][:9])
    status, out, _ = call("status", run)
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert "begun     step 22 of 24, loss" in lines["train"], f"a half-written line was not left out:\n{out}"
    assert "newest checkpoint step-00000024" in out
    assert "not begun" in lines["evaluate"]


def test_status_of_what_is_no_run_is_refused(call, tmp_path):
    status, _, message = call("status", tmp_path)
    assert status == 1
    assert f"{tmp_path}: not a run's folder" in message
