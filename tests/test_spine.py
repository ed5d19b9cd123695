"""The spine as a whole, on a tiny configuration: every stage, then a second run that finds everything done."""

import json
from pathlib import Path


def test_a_run_goes_through_all_stages_and_then_skips_them(regrow, tiny_config, tmp_path):
    first = regrow("run", tiny_config)
    assert first.wait() == 0, first.output
    run = tmp_path / "runs" / "tiny"
    results = json.loads((run / "evaluate" / "results.json").read_text())["models"]
    assert [entry["blocks"] for entry in results.values()] == [8, 6, 6]
    dense, pruned, regrown = (entry["perplexity"]["held_out"]["value"] for entry in results.values())
    assert regrown < pruned, f"training did not lower the perplexity: {pruned} -> {regrown}; dense {dense}"
    assert (run / "report" / "index.html").stat().st_size > 10_000
    export = Path(run / "train" / "exports" / "step-00000008")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in export.iterdir()}

    second = regrow("run", tiny_config)
    assert second.wait() == 0, second.output
    assert second.output.count("done before, skipped") == 6, second.output
