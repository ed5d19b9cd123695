"""Models larger than one device: the same figures bit for bit, and under a limit of memory that is real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.importance.ppl import perplexity_without
from pipeline.importance.sweep import removal_losses
from pipeline.model.attention import require_document_attention
from pipeline.model.dispatch import DISK, HOST, LINE, Dispatch, FromFiles, lying, place_words
from pipeline.model.head import find_head
from pipeline.model.hollow import without_weights
from pipeline.model.load import load_model
from pipeline.model.replacement import output_projection
from tests import ROOT
from tests.families import build

#: Blocks that return tensors and tuples, weights that are tied, and experts that are fused while they are loaded.
FAMILIES = ["llama", "gpt2", "gemma2", "falcon", "mixtral"]
IDS = torch.randint(0, 200, (4, 24), generator=torch.Generator().manual_seed(0))


def both(family: str, folder: Path):
    """A model whole, and the same with two fifths of its weights and more on disk."""
    build(family).save_pretrained(folder)
    whole = load_model(folder, dtype="float32")
    host = whole.get_memory_footprint() * 3 // 5
    return whole, load_model(folder, dtype="float32", dispatch=Dispatch({}, host, folder / "offloaded"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dispatched_model_gives_the_same_bits(family, tmp_path):
    whole, spread = both(family, tmp_path)
    lies = lying(spread)
    assert lies[DISK] > lies[HOST] > 0, f"shows nothing: {lies}"
    assert sum(lies.values()) == sum(lying(whole).values()) and spread.num_parameters() == whole.num_parameters()
    assert torch.equal(logits(whole), logits(spread))
    settings = {"micro_batch": 2, "device": "cpu"}
    assert find_head(spread) is not None
    one, other = (perplexity(model, IDS, head=find_head(model), **settings) for model in (whole, spread))
    assert one == other == perplexity(spread, IDS, head=find_head(spread), **settings)
    assert torch.equal(logits(whole), logits(spread)), "something was left behind where the head's losses were made"
    asked = {"input_ids": IDS[:2, :8], "attention_mask": torch.ones_like(IDS[:2, :8]), "max_new_tokens": 8}
    assert torch.equal(*(model.generate(**asked, do_sample=False, eos_token_id=None) for model in (whole, spread)))
    assert spread.num_parameters() == whole.num_parameters(), "weights are no longer tied"
    assert bool(list((tmp_path / "offloaded").iterdir())) == (family == "mixtral"), (
        "what needs writing is what is fused"
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_what_looks_between_the_blocks_finds_the_same(family, tmp_path):
    whole, spread = both(family, tmp_path)
    assert torch.equal(*(removal_losses(model, IDS[:2], windows=[(1, 2)]) for model in (whole, spread)))
    values = [perplexity_without(model, IDS.split(2), [0, 3]) for model in (whole, spread)]
    assert values[0] == values[1]
    assert torch.equal(logits(whole), logits(spread)), "blocks were left out for good"
    assert require_document_attention(whole) == require_document_attention(spread)
    if family == "llama":
        assert output_projection(spread, 4) is spread.model.layers[4].mlp.down_proj


def test_weights_on_disk_are_read_to_where_kernels_want_them(tmp_path):
    """A header of another length moves all tensors of a file."""
    values = {"a": torch.randn(7), "b": torch.randn(33, 5), "c": torch.randn(64)}
    for length in range(8):
        path = tmp_path / f"{length}.safetensors"
        save_file(values, path, {"x": "y" * 8 * length})
        index = {key: {"safetensors_file": str(path), "weight_name": key, "dtype": "float32"} for key in values}
        read = FromFiles(index=index)
        for key, value in values.items():
            found = read[key]
            assert found.data_ptr() % LINE == 0 and torch.equal(found, value), (length, key)


def test_all_on_one_device_is_a_whole_model(tmp_path):
    build("llama").save_pretrained(tmp_path)
    whole = load_model(tmp_path, dtype="float32")
    spread = load_model(tmp_path, dtype="float32", dispatch=Dispatch({}, 10**9, tmp_path / "offloaded"))
    assert lying(spread) == {HOST: whole.num_parameters() * 4} and torch.equal(logits(whole), logits(spread))


def test_older_files_are_written_anew(tmp_path):
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    spread = load_model(tmp_path, dtype="float32", dispatch=Dispatch({}, 150_000, tmp_path / "offloaded"))
    assert list((tmp_path / "offloaded").iterdir()) and torch.equal(
        logits(load_model(tmp_path, dtype="float32")), logits(spread)
    )


def test_what_cannot_work_is_refused(tmp_path):
    build("llama").save_pretrained(tmp_path)
    few = Dispatch({}, 30_000, tmp_path / "offloaded")
    with pytest.raises(RegrowError, match=r"model\.host_memory: 30.00 kB do not hold the embeddings .* 25.60 kB"):
        load_model(tmp_path, dtype="float32", dispatch=few)
    hollow = without_weights(tmp_path, torch.float32, None, False)
    hollow._no_split_modules = set()
    with pytest.raises(RegrowError, match=r"LlamaForCausalLM: it does not say .* model\.dispatch=false"):
        few.map(hollow)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.5.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RegrowError, match=r"layers\.5\.mlp\.down_proj\.weight has values that are not finite"):
        load_model(tmp_path, dtype="float32", dispatch=Dispatch({}, 150_000, tmp_path / "offloaded"))


def test_gpus_come_before_the_host_and_the_host_before_the_disk(tmp_path):
    build("llama").save_pretrained(tmp_path)
    hollow = without_weights(tmp_path, torch.float32, None, False)
    lies = lying(hollow, Dispatch({1: 110_000, 3: 60_000}, 90_000, tmp_path).map(hollow))
    assert list(lies) == [1, 3, HOST, DISK] and lies[1] <= 110_000 and lies[3] <= 60_000 and lies[HOST] <= 90_000
    assert place_words({3: 2000, DISK: 10, 1: 5, HOST: 7}) == (
        "5 bytes on GPU 1, 2.00 kB on GPU 3, 7 bytes in host memory, 10 bytes on disk"
    )
    few = Dispatch({0: 20_000}, 10**9, tmp_path / "offloaded")
    with pytest.raises(RegrowError, match=r"model\.device_memory: 20.00 kB do not hold the embeddings"):
        few.arguments(hollow, tmp_path)


#: Evaluates a model of 202 MB with at most 60 MB of it in memory, and then whole, where 120 MB are all that there is.
LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import perplexity
from pipeline.evaluation.resident import _forget_peak, _resident
from pipeline.memory import give_back_at_once
from pipeline.model.dispatch import Dispatch, lying
from pipeline.model.head import find_head
from pipeline.model.load import load_model

def judge(folder, dispatch):
    model = load_model(folder, dtype="float32", dispatch=dispatch)
    rows = torch.arange(128).view(2, 64)
    return lying(model), perplexity(model, rows, micro_batch=2, device="cpu", head=find_head(model))

folder, small = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
judge(small, Dispatch({}, 10**9, folder / "offloaded"))  # all code is loaded
before = _resident("VmRSS")
taken = _resident("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (taken + 120_000_000, resource.RLIM_INFINITY))
_forget_peak()
lies, found = judge(folder, Dispatch({}, 60_000_000, folder / "offloaded"))
peak = _resident("VmHWM") - before
try:
    judge(folder, None)
    whole = "fits"
except (RegrowError, RuntimeError, MemoryError) as error:
    whole = str(error)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps({"lies": lies, "found": found, "peak": peak, "whole": whole, "unlimited": judge(folder, None)[1]}))
"""


def test_a_model_is_evaluated_in_less_memory_than_its_weights_take(tmp_path):
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_key_value_heads": 4, "head_dim": 128}
    large = build("llama", **shape, num_hidden_layers=12)
    bytes_ = large.num_parameters() * 4
    large.save_pretrained(tmp_path / "large")
    build("llama").save_pretrained(tmp_path / "small")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "large"), str(tmp_path / "small")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert bytes_ > 200e6 and found["lies"][DISK] > 140e6, found
    assert found["peak"] < 120e6, f"{found['peak']:,} bytes were resident at the highest"
    assert "memory" in found["whole"], f"shows nothing: the whole model was evaluated too: {found['whole']}"
    assert found["found"] == found["unlimited"]
