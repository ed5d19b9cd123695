"""What models are judged on: looked at before any work, and left out, with the reason, where the hub gives nothing."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import load_config
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.windows import TooShort
from pipeline.files import hash_file
from pipeline.inputs import Inputs
from pipeline.judged import check_judged_texts, judged_texts, text_hashes
from pipeline.launch import Place
from pipeline.run import Run
from pipeline.stages import data
from pipeline.world import World

OWN = "evaluate.perplexity.own"
NOBODYS = "evaluate.perplexity.hub={dataset: nobody/nothing-of-the-kind, split: test}"


@pytest.fixture
def local(tmp_path, texts) -> str:
    """The override of a text in a file of plain text."""
    (tmp_path / "own.txt").write_text("\n\n".join(texts[:8]))
    return f"evaluate.perplexity.own={{text: {tmp_path}/own.txt, length: 32, stride: 8, bos: none, rows: 6}}"


@pytest.fixture
def encoder(tiny_model):
    return make_encoder(load_tokenizer(tiny_model))


@pytest.fixture
def no_hub(monkeypatch):
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)


def test_held_out_rows_come_first_and_what_cannot_be_had_is_left_out(tiny_config, tmp_path, local, no_hub):
    config, run, said = load_config(tiny_config, [NOBODYS, local]), Run(tmp_path / "run"), []
    data.work(config, run, World.join(Place(local_world=64)), lambda line: None)
    text = Inputs(config, run)
    found, left_out = judged_texts(text, said.append)
    assert list(found) == ["held_out", "own"] and list(left_out) == ["hub"]
    assert torch.equal(found["held_out"].rows, text.held_out_rows(64, "document", 8))
    about = found["held_out"].about
    assert (about["stride"], about["bos"]) == (64, "document") and about["text"]["path"] == config.data.held_out.path
    assert found["own"].rows.shape == (6, 32) and found["own"].counted_from.tolist() == [1, *[24] * 5]
    assert found["own"].about["text"]["path"] == f"{tmp_path}/own.txt"
    assert "data set nobody/nothing-of-the-kind cannot be had" in left_out["hub"]
    with pytest.raises(TooShort):
        judged_texts(
            Inputs(load_config(tiny_config, [local, f"{OWN}.rows=null", f"{OWN}.length=9999"]), run), said.append
        )
    assert said == [f"left out: evaluate.perplexity.hub: {left_out['hub']}"]


def test_texts_are_looked_at_before_any_work(tiny_config, tmp_path, local, encoder):
    def check(*overrides, elsewhere=False, by=encoder):
        return check_judged_texts(load_config(tiny_config, [local, *overrides]), by, elsewhere)

    assert check() == check(by=None) == []
    (line,) = check(NOBODYS)
    assert "evaluate.perplexity.hub: stage evaluate asks the hub for nobody/nothing-of-the-kind" in line
    missing = f"evaluate.perplexity.own.text={tmp_path}/none.txt"
    for by in (encoder, None):
        with pytest.raises(RegrowError, match=r"evaluate\.perplexity\.own\.text .*none\.txt': no such file or folder"):
            check(missing, by=by)
    assert check(missing, elsewhere=True) == [f"evaluate.perplexity.own: {tmp_path}/none.txt is not on this machine"]
    with pytest.raises(RegrowError, match=r"not one row of 100,000; lower evaluate\.perplexity\.own\.length"):
        check("evaluate.perplexity.own.length=100000")
    # Its length is data.row_length's 64.
    with pytest.raises(RegrowError, match=r"evaluate\.perplexity\.hub\.stride 65: a row has 64 tokens of text"):
        check(NOBODYS, "evaluate.perplexity.hub.stride=65")


@pytest.mark.parametrize(("last", "message"), [(b"Caf\xe9", "z.txt: not UTF-8"), (b"long enough", None)])
def test_every_file_of_a_folder_is_read_before_any_work(tiny_config, tmp_path, texts, encoder, last, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(texts[:6]))
    (folder / "z.txt").write_bytes(last)
    whole, some = (
        load_config(tiny_config, [f"evaluate.perplexity.own={{text: {folder}{rows}}}"]) for rows in ("", ", rows: 2")
    )
    assert check_judged_texts(some, encoder) == [], "what is not judged is none of its business"
    if message is None:
        assert check_judged_texts(whole, encoder) == []
        return
    with pytest.raises(RegrowError, match=message):
        check_judged_texts(whole, encoder)


def test_a_hub_text_too_short_for_a_row_is_left_out(tiny_config, tmp_path, monkeypatch):
    """A folder stands for the hub: the library takes both by the same call."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text('{"text": "Nine words are not enough for a whole row."}\n')
    short = f"evaluate.perplexity.short={{dataset: {tmp_path}/set, split: test, length: 64}}"
    config, run, said = load_config(tiny_config, [short]), Run(tmp_path / "run"), []
    data.work(config, run, World.join(Place(local_world=64)), lambda line: None)
    found, left_out = judged_texts(Inputs(config, run), said.append)
    assert list(found) == ["held_out"] and "tokens in all, not one row of 64" in left_out["short"]
    assert said == [f"left out: evaluate.perplexity.short: {left_out['short']}"]


def test_a_local_text_is_known_by_its_content(tiny_config, tmp_path, local):
    config, run = load_config(tiny_config, [NOBODYS, local]), Run(tmp_path / "run")
    path = tmp_path / "own.txt"
    assert text_hashes(config, run) == {"evaluate.perplexity.own/0/own.txt": hash_file(path)}


def test_a_missing_text_ends_a_run_before_its_first_stage(refused_run, tmp_path):
    message = refused_run(f"evaluate.perplexity.own.text={tmp_path}/none.txt")
    assert "evaluate.perplexity.own.text" in message and "no such file or folder" in message
    assert not (tmp_path / "runs").exists(), "work was begun"


@pytest.fixture
def refused_run(tiny_config, monkeypatch, capsys):
    """``refused_run(override)``: the message of ``regrow run``, which must fail."""

    def run(override: str) -> str:
        from pipeline.cli import main

        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setattr("sys.argv", ["regrow", "run", str(tiny_config), override])
        assert main() == 1
        return capsys.readouterr().err

    return run
