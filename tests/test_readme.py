"""Every command of the README is executed, or, where it needs a cluster, parsed by its launcher and planned."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.plan import plan
from pipeline.config import load_config
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
def test_command(command: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    program, *arguments = shlex.split(command)
    if arguments[0] in {"data", "data-show"}:
        # Carried out, but not into the runs of whoever tests.
        arguments.append(f"run.folder={tmp_path_factory.getbasetemp() / 'readme'}")
    check = {
        "bash": check_script,
        "regrow": check_regrow,
        "torchrun": check_torchrun,
        "deepspeed": check_deepspeed,
        "sbatch": check_sbatch,
        "kubectl": check_file,
        "pip": check_pip,
    }[program]
    check(arguments)


def check_script(arguments: list[str]) -> None:
    # This test runs inside launch/test.sh, and CI runs .ci/run; the demo's stages are run by tests/test_demo_whole.py.
    assert (ROOT / arguments[0]).is_file(), f"README names {arguments[0]}, which is not there"
    assert arguments[1:] == [] or arguments[1] == "-m", f"README passes {arguments[1:]} to {arguments[0]}"


def check_regrow(arguments: list[str]) -> None:
    if arguments[0] in {"run", "train"}:
        check_planned(arguments[1:])
    elif arguments[0] == "status":
        assert CliRunner().invoke(app, ["status", "--help"]).exit_code == 0
    else:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0 and done.output.strip(), f"regrow {shlex.join(arguments)}: {done.output}"


def check_planned(arguments: list[str]) -> None:
    """The config that a cluster command names loads with its overrides, and plans to a smaller model."""
    config, *rest = [argument for argument in arguments if argument not in {"--until", "prune"}]
    planned = plan(load_config(config, rest))
    assert planned["parameters"]["pruned"] < planned["parameters"]["dense"], f"{config}: nothing would be pruned"


def check_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    assert parsed.module and parsed.training_script == "pipeline", f"torchrun would not start the package: {parsed}"
    stage, *rest = parsed.training_script_args
    assert stage == "train"
    check_planned(rest)


def check_deepspeed(arguments: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    parsed = parse_args(arguments)
    assert parsed.module and parsed.no_local_rank and parsed.user_script == "pipeline", f"deepspeed: {parsed}"
    stage, *rest = parsed.user_args
    assert stage == "train"
    check_planned(rest)


def check_sbatch(arguments: list[str]) -> None:
    assert "#SBATCH" in (ROOT / arguments[0]).read_text(), f"{arguments[0]} is no batch script"
    check_planned(arguments[1:])


def check_file(arguments: list[str]) -> None:
    assert (ROOT / arguments[-1]).is_file(), f"README names {arguments[-1]}, which is not there"


def check_pip(arguments: list[str]) -> None:
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
        "prune.ratio=0.25",
    ]
    made = plan(load_config(path, filled))
    assert (made["training"]["steps"], made["not_checked"]) == (16, [])
    assert not any("budget" in note for note in made["notes"]), made["notes"]
    done = CliRunner().invoke(app, ["data", str(path), *filled])
    assert done.exit_code == 0 and "[data] done in" in done.output, done.output


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
