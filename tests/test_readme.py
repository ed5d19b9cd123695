"""Every command of the README is executed, or, where it needs a cluster, parsed by its launcher and planned."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.plan import plan
from pipeline.commands.plan_chain import plan_chain
from pipeline.config import STAGES, dump_config, load_config
from pipeline.files import write_atomic
from pipeline.run import Run
from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


COMMANDS = [
    line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.split("#")[0].strip()
]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    program, *arguments = shlex.split(command)
    if arguments[0] in {"data", "data-show"}:
        # Carried out, but not into the runs of whoever tests: one run for both.
        arguments.append(f"run.folder={tmp_path_factory.getbasetemp() / 'readme'}")
    check = {
        "bash": check_script,
        "regrow": check_regrow,
        "torchrun": check_torchrun,
        "deepspeed": check_deepspeed,
        "sbatch": check_sbatch,
        "kubectl": check_kubectl,
        "pip": check_pip,
    }[program]
    check(arguments, tmp_path)


def check_script(arguments: list[str], folder: Path) -> None:
    """The script runs, beside a setup that finds all there and a python that notes what it is asked to do; what that
    is, the program that is asked for takes."""
    script, *rest = arguments
    (folder / "launch").mkdir()
    shutil.copy(ROOT / script, folder / script)
    (folder / "launch" / "setup.sh").write_text("")
    (folder / "python").write_text(f'#!/bin/sh\n(printf "%s\\t" "$@"; echo) >> {folder}/asked\n')
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script, *rest], cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    first, last = (line.split("\t")[1:-1] for line in (folder / "asked").read_text().splitlines())
    assert first == ["pipeline.demo"], f"{script} does not fetch the demo's model and text: {first}"
    if last[0] == "pytest":
        command = [sys.executable, "-m", *last, "--collect-only", "tests/test_budget.py"]
        collected = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert collected.returncode == 0 and "tests collected" in collected.stdout, collected.stdout + collected.stderr
    else:
        assert last[0] == "pipeline", f"{script} starts {last}"
        check_regrow(last[1:], folder)


def check_regrow(arguments: list[str], folder: Path) -> None:
    if arguments[0] in {"run", "train"}:
        check_planned(arguments[1:])
    elif arguments[0] == "chain":
        links = plan_chain(load_config(arguments[1], arguments[2:]))["links"]
        assert len(links) > 1, f"{shlex.join(arguments)}: no chain"
    elif arguments[0] == "status":
        check_status(arguments[1:], folder)
    elif arguments[0] in {"runs", "restore", "compare"}:
        check_on_runs(arguments, folder)
    else:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0 and done.output.strip(), f"regrow {shlex.join(arguments)}: {done.output}"


def check_status(arguments: list[str], folder: Path) -> None:
    """The folder, or the config, is that of a run which another command of the README starts, and the command tells of
    such a run."""
    begun = [shlex.split(command)[2] for command in COMMANDS if command.startswith("regrow run ")]
    runs = {str(config.run.folder / config.run.name): config for config in map(load_config, begun)}
    (named,) = arguments
    place = str(load_config(named).run_folder) if named in begun else named
    assert place in runs, f"the README looks at {named}; the runs that it starts are {sorted(runs)}"
    write_atomic(folder / place / "config.yaml", dump_config(runs[place]))
    by_config = [named, f"run.folder={folder / runs[place].run.folder}"]
    done = CliRunner().invoke(app, ["status", *(by_config if named in begun else [str(folder / place)])])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines() if "not begun" in line] == list(STAGES), done.output


def check_on_runs(arguments: list[str], folder: Path) -> None:
    """The command does its work where the runs that it names, or one, are done and have a report set aside."""
    for named in [word for word in arguments if word.startswith("runs/")] or ["runs/demo"]:
        shutil.copytree(ROOT / "tests" / "stages" / "887a583" / "runs" / "done", folder / named)
        Run(folder / named).set_aside(["report"])
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "runs" in done.output, f"regrow {shlex.join(arguments)}: {done.output}"


def check_planned(arguments: list[str]) -> None:
    """The config that a cluster command names loads with its overrides, and plans to a smaller model."""
    config, *rest = [argument for argument in arguments if argument not in {"--until", "prune"}]
    # What another run has is not here; that another command of the README makes it is checked by its name.
    taken = [argument.removeprefix("run.from=") for argument in rest if argument.startswith("run.from=")]
    assert all(any(f"/{name}.yaml" in command for command in COMMANDS) for name in taken), taken
    planned = plan(load_config(config, [argument for argument in rest if not argument.startswith("run.from=")]))
    assert planned["parameters"]["pruned"] < planned["parameters"]["dense"], f"{config}: nothing would be pruned"


def check_torchrun(arguments: list[str], folder: Path) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    assert parsed.module and parsed.training_script == "pipeline", f"torchrun would not start the package: {parsed}"
    check_regrow(parsed.training_script_args, folder)


def check_deepspeed(arguments: list[str], folder: Path) -> None:
    from deepspeed.launcher.runner import parse_args

    parsed = parse_args(arguments)
    assert parsed.module and parsed.no_local_rank and parsed.user_script == "pipeline", f"deepspeed: {parsed}"
    check_regrow(parsed.user_args, folder)


def check_sbatch(arguments: list[str], folder: Path) -> None:
    assert "#SBATCH" in (ROOT / arguments[0]).read_text(), f"{arguments[0]} is no batch script"
    check_planned(arguments[1:])


def check_kubectl(arguments: list[str], folder: Path) -> None:
    assert arguments[:2] == ["apply", "-f"], f"kubectl {arguments}"
    job = YAML(typ="safe").load((ROOT / arguments[2]).read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["torchrun"], f"the job starts {container['command']}"
    check_torchrun(container["args"], folder)


def check_pip(arguments: list[str], folder: Path) -> None:
    assert arguments == ["install", "-c", "launch/constraints.txt", "-e", "."], f"pip {arguments}"
    assert (ROOT / "launch/constraints.txt").is_file() and (ROOT / "setup.cfg").is_file()


def test_the_configs_of_the_readme_load(tmp_path: Path) -> None:
    mine, small = (tmp_path / f"{name}.yaml" for name in ("mine", "small"))
    for path, block in zip((mine, small), blocks("yaml"), strict=True):
        path.write_text(block)
    config = load_config(mine)
    assert (config.prune.ratio, config.train.tokens, config.train.global_batch) == (0.45, 10**10, 512)
    # The small one is 16 whole steps, and fits any machine.
    config = load_config(small)
    assert config.train.tokens == 16 * config.train.global_batch * config.data.row_length
    assert config.train.processes == "auto" and config.data.lanes <= 8


def test_the_small_config_of_the_readme_runs(tiny_model: Path, demo: Path, tmp_path: Path) -> None:
    """With a model and texts in the places that it leaves open, up to the pruned model; training is planned."""
    path = tmp_path / "small.yaml"
    path.write_text(blocks("yaml")[1])
    text = f"{demo}/text"
    filled = [
        f"run.folder={tmp_path}/runs",
        f"model.path={tiny_model}",
        f"data.sources.0.path={text}/train",
        f"data.held_out.path={text}/validation",
    ]
    made = plan(load_config(path, filled))
    assert (made["training"]["steps"], made["not_checked"]) == (16, [])
    assert not any("budget" in note for note in made["notes"]), made["notes"]
    done = CliRunner().invoke(app, ["run", str(path), *filled, "--until", "prune"])
    assert done.exit_code == 0 and "[prune] done in" in done.output, done.output
    pruned = json.loads((tmp_path / "runs" / "small" / "prune" / "model" / "config.json").read_text())
    assert pruned["num_hidden_layers"] == 6, "a quarter of 8 blocks is 2"


def test_the_notebook_of_the_readme_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    (block,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    code = block.replace("path/of/a/model", str(tiny_model)).replace("remove=9", "remove=2")
    batches = list(torch.randint(0, 1000, (4, 1, 32), generator=torch.Generator().manual_seed(0)))
    exec(compile(code, "README.md", "exec"), {"batches": batches})
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller")
    assert smaller.config.num_hidden_layers == 6, "the README's snippet did not save a model of 6 blocks"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not lost, f"{page.name} links to what is not there: {lost}"
