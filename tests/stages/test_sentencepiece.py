"""A model whose tokenizer is a tokenizer.model of sentencepiece and nothing else, through all stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch

from pipeline.data.tokens import load_tokenizer
from tests.families import build
from tests.sentencepieces import write_pieces
from tests.tiny import SHAPE, tiny_yaml

QUICK = [
    "score.processes=1",
    "score.sequences=2",
    "prune.processes=1",
    "train.processes=1",
    "train.tokens=1024",
    "train.evaluate_every=100",
    "evaluate.processes=1",
    "evaluate.perplexity.held_out.rows=2",
    "evaluate.tasks.names=[sums]",
    "evaluate.tasks.limit=4",
]


@pytest.fixture
def model(texts, tmp_path) -> Path:
    """A small Llama, and a tokenizer.model of 1,000 pieces with bytes for what it does not know."""
    folder = tmp_path / "model"
    build("llama", spread=0.05, pad_token_id=None, **{**SHAPE, "bos_token_id": 1, "eos_token_id": 2}).to(
        torch.bfloat16
    ).save_pretrained(folder)
    write_pieces(folder, texts[:300], SHAPE["vocab_size"], byte_fallback=True, unk_id=0, bos_id=1, eos_id=2)
    assert not [path.name for path in folder.glob("*token*") if path.name != "tokenizer.model"]
    return folder


@pytest.mark.slow
def test_a_folder_with_tokenizer_model_alone_goes_through_all_stages(model, demo, texts, regrow, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(tiny_yaml(model, demo, tmp_path / "runs"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    for text in ("The old city", "Zoë's 3 rivers — naïve"):
        ids = load_tokenizer(model)(text, add_special_tokens=False)["input_ids"]
        assert ids == pieces.encode(text), "tokens are not sentencepiece's own"
    command = regrow("run", config, *QUICK)
    assert command.wait() == 0, command.output
    run = tmp_path / "runs" / "tiny"
    (export,) = (run / "train" / "exports").iterdir()
    assert (export / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()
    assert load_tokenizer(export)(texts[0])["input_ids"] == load_tokenizer(model)(texts[0])["input_ids"]
    results = json.loads((run / "evaluate" / "results.json").read_text())["models"]
    assert all(entry["tasks"]["sums"]["items"] == 4 for entry in results.values())
    shutil.rmtree(run)
