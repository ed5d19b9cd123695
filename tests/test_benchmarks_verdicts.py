"""What arms of recovery show: differences on the same rows, verdicts and savings, on figures that are known."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests import ROOT

SPEC = importlib.util.spec_from_file_location("verdicts", ROOT / "benchmarks" / "verdicts.py")
verdicts = importlib.util.module_from_spec(SPEC)
sys.modules["verdicts"] = verdicts
SPEC.loader.exec_module(verdicts)

TEXTS = ("news", "forums")


def arm(name: str, *losses: float, cut: str = "cut20", spread: float = 0.0, flops: float = 1e9) -> dict[str, Any]:
    """An arm whose rows have these losses at its points, each row a little harder than the one before."""
    draw = torch.Generator().manual_seed(hash_of(name))
    points = []
    for number, loss in enumerate(losses, start=1):
        rows = (loss + 0.5 * torch.arange(16) / 16 + spread * torch.randn(16, generator=draw)).tolist()
        texts = {text: {"value": math.exp(loss), "row_losses": rows} for text in TEXTS}
        points.append({"step": number, "tokens": 1000 * number, "perplexity": texts})
    return {"cut": cut, "arm": name, "flops": flops, "tokens": 1000 * len(losses), "points": points, "tasks": {}}


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 2**31


def test_a_difference_is_of_the_same_rows_and_knows_its_error():
    one, other = arm("cpt", 3.0), arm("lora", 3.1)
    found = verdicts.difference(one, other, TEXTS)
    # Rows differ by 0.5 among themselves and not at all between the arms: unpaired, nothing could be said.
    assert found.value == pytest.approx(-0.1) and found.error == pytest.approx(0, abs=1e-9)
    assert found.verdict() == "confirmed"
    assert verdicts.difference(other, one, TEXTS).verdict() == "refuted"
    noisy = [verdicts.difference(arm(f"cpt-{k}", 3.0, spread=1.0), other, TEXTS) for k in range(200)]
    # Of both texts the rows are the same draw here: the error is that of 16 rows over sqrt(2), the spread is not.
    spread = torch.tensor([one.value for one in noisy], dtype=torch.float64).std().item()
    assert torch.tensor([one.error for one in noisy]).mean().item() == pytest.approx(spread / math.sqrt(2), rel=0.15)
    assert sum(one.verdict() == "not decided" for one in noisy) > 100


def test_the_best_of_a_family_is_taken_on_the_texts_in_question():
    arms = {name: arm(name, loss) for name, loss in (("both", 3.2), ("both-3e-4", 3.1), ("both-ways", 1.0))}
    assert verdicts.best(arms, "both", TEXTS) == "both-3e-4"
    assert verdicts.best(arms, ("both", "both-ways"), TEXTS) == "both-ways"
    assert verdicts.best(arms, "lora", TEXTS) is None


def test_what_is_saved_is_a_share_of_plain_trainings_tokens_and_flops():
    arms = {
        found["arm"]: found for found in (arm("cpt", 4.0, 3.5, 3.2, 3.0), arm("both", 3.4, 2.6, 2.4, 2.3, flops=2e9))
    }
    found = {name: shares for name, _, *shares in verdicts.saved(arms, TEXTS)}
    tokens, flops, end = found["both"]
    assert tokens == pytest.approx(1.5 / 4), "halfway between its first two exports"
    assert flops == pytest.approx(2 * 1.5 / 4) and end == pytest.approx(-0.7)
    assert found["cpt"][0] == 1
    healed = {"cpt": arms["cpt"], "heal": arms["both"] | {"flops_before": 1.2e9}}
    shares = {name: shares for name, _, *shares in verdicts.saved(healed, TEXTS)}
    assert shares["heal"][1] == pytest.approx(1.2 + 0.8 * 1.5 / 4), "healing is paid for by the first step"
    assert verdicts.reached([(1, 3.0), (2, 2.9)], 2.0) == math.inf


def test_the_tables_and_pictures_are_of_every_cut(tmp_path):
    both = [
        arm(name, *losses, cut=cut)
        for cut, more in (("cut20", 0.05), ("cut45", 0.4))
        for name, losses in (("cpt-1e-3", (3.3, 3.0)), ("lora-1e-3", (3.3, 3.0 + more)), ("scratch", (8.0, 7.0)))
    ]
    (tmp_path / "recovery.json").write_text(json.dumps(both))
    command = [sys.executable, "benchmarks/verdicts.py", str(tmp_path / "recovery.json")]
    options = ["--outside", "forums", "--picture", str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| cut45 | a pruned start over a random one | in domain | cpt-1e-3, scratch |" in done.stdout
    more = next(line for line in done.stdout.splitlines() if "more so" in line)
    assert more.endswith("confirmed |") and "cut20 to cut45" in more, done.stdout
    for cut in ("cut20", "cut45"):
        assert (tmp_path / f"recovery-{cut}.png").stat().st_size > 10_000
