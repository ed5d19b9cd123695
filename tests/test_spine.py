"""The spine as a whole, on a tiny configuration: every stage, then a second run that finds everything done."""

import json
from pathlib import Path


def test_a_run_goes_through_all_stages_and_then_skips_them(regrow, reference: Path):
    results = json.loads((reference / "evaluate" / "results.json").read_text())["models"]
    assert [entry["blocks"] for entry in results.values()] == [8, 6, 6]
    dense, pruned, regrown = (entry["perplexity"]["held_out"]["value"] for entry in results.values())
    assert regrown < pruned, f"training did not lower the perplexity: {pruned} -> {regrown}; dense {dense}"
    assert (reference / "report" / "index.html").stat().st_size > 10_000
    export = reference / "train" / "exports" / "step-00000024"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in export.iterdir()}

    again = regrow("run", reference.parent.parent / "longer.yaml")
    assert again.wait() == 0, again.output
    assert again.output.count("done before, skipped") == 6, again.output


def test_the_regrown_folder_generates_in_a_bare_python_as_the_engine_computed(reference: Path):
    """transformers alone loads the export; with the cache it continues a text with the same tokens as without."""
    import subprocess
    import sys

    code = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("The city of", return_tensors="pt").input_ids
cached = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)
plain = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
assert torch.equal(cached, plain), (cached, plain)
assert cached.shape[1] > ids.shape[1] and "pipeline" not in sys.modules
print(model.dtype, len(model.model.layers))
"""
    export = reference / "train" / "exports" / "step-00000024"
    command = [sys.executable, "-c", code, str(export)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=export)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch.bfloat16", "6"], done.stdout
