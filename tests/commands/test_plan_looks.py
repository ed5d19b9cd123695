"""What plan looks at on this machine: the config.json that it plans with, the run folder, weights, tokenizer, text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.plan import find_architecture, plan
from pipeline.config import STAGES, load_config
from pipeline.errors import RegrowError
from pipeline.launch import Place
from pipeline.stages.preflight import preflight
from tests.commands.presets import PRESETS, preset


@pytest.fixture()
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to plan in, with an empty cache of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_what_is_not_here_is_said_and_what_is_here_is_checked(tiny_model, demo, tmp_path):
    absent = preset("2.7b")["not_checked"]
    for part in ("tokenizer of lmsys/vicuna-7b-v1.3", "weights of lmsys/vicuna-7b-v1.3", "text of cerebras/SlimPajama"):
        assert any(line.startswith(part) for line in absent), absent
    text = f"{demo}/text/train"
    here = [
        f"model.path={tiny_model}",
        f"data.sources=[{{path: {text}}}]",
        f"data.held_out={{path: {text}, files: '**'}}",
        "prune.remove=2",
    ]
    assert preset("2.7b", *here)["not_checked"] == []
    elsewhere = preset("2.7b", *here, "data.sources.0.path=/nowhere/corpus")["not_checked"]
    assert elsewhere == ["text of /nowhere/corpus: not on this machine; stage data reads it first"]
    with pytest.raises(RegrowError, match="content"):
        preset("2.7b", *here, "data.sources.0.text_key=content")
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RegrowError, match=r"model\.safetensors: .* cut off"):
        preset("2.7b", *here, f"model.path={tmp_path}/model")


def test_a_folder_that_model_path_names_is_whole_or_refused_as_a_run_refuses_it(tiny_config, tiny_model, tmp_path):
    """Of the hub's cache only a part need be here; a folder of one's own has no other place to come from."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "kept").mkdir()
    for lost, said in (
        ("model.safetensors", f"no weights in {folder}"),
        ("tokenizer*", "no tokenizer in it"),
        ("config.json", "no config.json"),
    ):
        for path in folder.glob(lost):
            path.rename(tmp_path / "kept" / path.name)
        with pytest.raises(RegrowError, match=said):
            plan(load_config(tiny_config, [f"model.path={folder}", f"model.architecture={tiny_model}"]))
        for path in (tmp_path / "kept").iterdir():
            path.rename(folder / path.name)
    assert plan(load_config(tiny_config, [f"model.path={folder}"]))["not_checked"] == []


def test_a_home_is_one_place_for_plan_and_run(tiny_config, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_model, tmp_path / "model")
    config = load_config(tiny_config, ["model.path=~/model"])
    assert config.model.path == f"{tmp_path}/model"
    assert plan(config)["model"]["architecture"] == f"{tmp_path}/model/config.json"
    beside = load_config(tiny_config, ["model.path=owner/name", "model.architecture=~/model"])
    assert beside.model.architecture == tmp_path / "model"


def test_the_run_folder_is_tried_where_its_disk_is_here(tiny_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RegrowError, match=r"cannot be written \(.*\); set run\.folder to another place"):
        plan(load_config(tiny_config, [f"run.folder={tmp_path}/file"]))
    elsewhere = plan(load_config(tiny_config, ["run.folder=/no-such-disk/runs"]))["not_checked"]
    assert elsewhere == ["run folder /no-such-disk/runs/tiny: not on this machine"]
    plan(load_config(tiny_config))
    assert not list(tmp_path.glob("runs*")) and not list(tmp_path.glob(".trial*")), "a plan left something behind"


def test_ids_and_settings_of_generation_are_looked_at_as_a_run_looks(tiny_config, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "generation_config.json").write_text('{"early_stopping": "x"}')
    (tmp_path / "text").mkdir()
    for overrides, said in (
        ([f"model.path={model}"], r"generation_config\.json: .*early_stopping"),
        ([f"data.sources.0.path={tmp_path}/text", f"data.tokenised={tmp_path}/text/ids"], "lies in data.sources.0"),
        (["data.tokenised=/sys/ids"], r"cannot be written .*set data\.tokenised"),
    ):
        config = load_config(tiny_config, overrides)
        for look in (plan, lambda config: preflight(STAGES, config, Place())):
            with pytest.raises(RegrowError, match=said):
                look(config)


def test_held_out_text_shorter_than_a_row_is_refused(tiny_config, tmp_path):
    (tmp_path / "kept.jsonl").write_text(json.dumps({"text": "Water is wet. " * 5}) + "\n")
    with pytest.raises(RegrowError, match=r"data\.held_out: \d+ tokens in all, not one row of data\.row_length \(64\)"):
        plan(load_config(tiny_config, [f"data.held_out.path={tmp_path}/kept.jsonl"]))


@pytest.mark.parametrize("where", ["config", "text part"])
def test_quantised_weights_are_refused_by_the_config_alone(tiny_config, tmp_path, where):
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    tree = {"model_type": "llama", **quantised}
    if where == "text part":
        tree = {"model_type": "mistral3", "text_config": {"model_type": "mistral", **quantised}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(RegrowError, match=r"config\.json: the weights are quantised .*save it dequantised") as error:
        plan(load_config(tiny_config, ["model.path=owner/name", f"model.architecture={tmp_path}"]))
    assert "\n" not in str(error.value)


def test_nothing_is_fetched(elsewhere: Path) -> None:
    config = load_config(PRESETS / "2.7b.yaml", ["model.path=nobody/nothing"])
    with pytest.raises(RegrowError, match=r"nobody/nothing.*model\.architecture"):
        find_architecture(config)


def test_a_fetched_config_is_found_in_the_hubs_cache(elsewhere: Path) -> None:
    snapshot = elsewhere / "hub" / "models--nobody--something" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    shutil.copy(PRESETS / "architecture" / "config.json", snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    config = load_config(PRESETS / "2.7b.yaml", ["model.path=nobody/something"])
    assert find_architecture(config) == snapshot / "config.json"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.architecture=empty"], "empty holds no config.json"),
        (["model.path=empty"], "empty holds no config.json"),
        (["model.path=a/b/c"], "neither a folder"),
    ],
)
def test_a_missing_architecture_is_named(elsewhere: Path, overrides: list[str], named: str) -> None:
    (elsewhere / "empty").mkdir()
    with pytest.raises(RegrowError, match=named):
        find_architecture(load_config(PRESETS / "2.7b.yaml", overrides))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"model_type": "no-such-model"}', '{"model_type": "llama", "hidden_size": "wide"}']
)
def test_a_damaged_architecture_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RegrowError, match=str(tmp_path / "config.json")):
        preset("2.7b", f"model.path={tmp_path}")


def test_planning_opens_no_connection() -> None:
    """A fresh process that may not open a socket plans the preset."""
    program = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from pipeline.config import load_config\n"
        "from pipeline.commands.plan import plan\n"
        "print(plan(load_config(sys.argv[1]))['parameters']['pruned'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, PRESETS / "1.5b.yaml"],
        capture_output=True,
        text=True,
        cwd=PRESETS.parent.parent,
    )
    assert done.stdout.strip() == "1476448256", done.stderr
