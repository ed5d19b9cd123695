"""Every config that the project ships: it loads, it survives a round trip, and the bases are used."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.config import dump_config, load_config
from tests import ROOT

CONFIGS = ROOT / "configs"


def _raw(path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(path)


def _chain(path: Path) -> list[Path]:
    """A file and what it extends, by reading ``extends`` alone."""
    extends = _raw(path).get("extends")
    return [path, *(_chain(path.parent / extends) if extends else [])]


FILES = sorted(CONFIGS.rglob("*.yaml"))
RUNS = [path for path in FILES if any("run" in _raw(part) for part in _chain(path))]


def _name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def test_the_folder_is_found() -> None:
    assert {"vicuna-7b/5.5b.yaml", "vicuna-7b/3.7b.yaml", "vicuna-7b/2.7b.yaml", "vicuna-7b/1.5b.yaml"} <= {
        _name(path) for path in RUNS
    }


@pytest.mark.parametrize("path", RUNS, ids=_name)
def test_config_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(resolved) == config, f"{_name(path)} reads back differently"


def test_every_file_is_a_run_or_is_extended_by_one() -> None:
    used = {part.resolve() for path in RUNS for part in _chain(path)}
    idle = [_name(path) for path in FILES if path.resolve() not in used]
    assert not idle, f"neither a run nor a base of one: {idle}"


def test_no_two_runs_share_a_folder() -> None:
    folders = [(config.run.folder, config.run.name) for config in map(load_config, RUNS)]
    assert len(set(folders)) == len(folders), f"runs that would write into one folder: {folders}"


def test_presets_follow_the_published_recipe() -> None:
    for size, remove, tokens in [("5.5b", 6, 37), ("3.7b", 15, 74), ("2.7b", 20, 150), ("1.5b", 26, 271)]:
        config = load_config(CONFIGS / "vicuna-7b" / f"{size}.yaml")
        train = config.train
        assert config.model.path == "lmsys/vicuna-7b-v1.3"
        assert (config.prune.remove, train.tokens) == (remove, tokens * 10**9)
        assert (train.global_batch, train.micro_batch, train.processes, train.zero_stage) == (512, "auto", 8, 1)
        assert (train.learning_rate, train.betas, train.weight_decay) == (0.0001, (0.9, 0.95), 0.1)
        assert (config.score.criteria, config.score.sequences, config.score.length) == (("ppl",), 10, 128)
        assert (config.prune.protect_first, config.prune.protect_last) == (4, 2)
        corpus, held_out = config.data.sources[0], config.data.held_out
        assert (corpus.path, corpus.files) == ("cerebras/SlimPajama-627B", "train/**")
        assert held_out is not None and (held_out.path, held_out.files) == (corpus.path, "validation/**")
        assert corpus.exclude_domains == held_out.exclude_domains == ("RedPajamaBook",)


@pytest.mark.parametrize("criterion", ["ppl", "taylor"])
@pytest.mark.parametrize(
    ("model", "path", "remove"),
    [
        ("llama-7b", "huggyllama/llama-7b", 6),
        ("vicuna-7b", "lmsys/vicuna-7b-v1.3", 6),
        ("vicuna-13b", "lmsys/vicuna-13b-v1.3", 8),
    ],
)
def test_the_presets_of_lora_follow_the_published_scripts(model: str, path: str, remove: int, criterion: str) -> None:
    config = load_config(CONFIGS / "lora" / f"{model}-{criterion}.yaml")
    train, prune = config.train, config.prune
    assert (config.model.path, prune.remove, prune.criterion, config.score.criteria) == (
        path,
        remove,
        criterion,
        (criterion,),
    )
    assert (prune.protect_first, prune.protect_last) == (4, 2)
    assert (train.method, train.lora.rank, train.lora.alpha, train.lora.dropout) == ("lora", 8, 16, 0.05)
    assert len(train.lora.targets) == 7
    assert (train.global_batch, train.learning_rate, train.schedule, train.warmup_steps) == (64, 1e-4, "linear", 100)
    assert (train.betas, train.weight_decay, config.data.row_length) == ((0.9, 0.999), 0, 256)
    # Two epochs of the 49,760 examples that are not held back.
    assert train.tokens == 2 * 49_760 * 256 and config.steps == 1555
    (source,) = config.data.sources
    assert (source.path, source.format) == ("yahma/alpaca-cleaned", "instruction")
