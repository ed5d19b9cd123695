"""Scoring on one GPU, for whoever has it: the same scores as on a CPU, within what the dtypes round."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.criteria import CRITERIA
from pipeline.importance.criteria import Settings
from pipeline.importance.scoring import score_blocks
from tests.families import VOCABULARY, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: test.sh -m gpu there"),
]
ROWS, LENGTH = 24, 32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_scores_on_a_gpu_are_those_on_a_cpu(family, dtype, tolerance):
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    here = build(family).to(dtype)
    there = copy.deepcopy(here).to("cuda")
    settings = Settings(linear_lengths=(2,))
    on_cpu, on_gpu = (
        # The ids lie where the model does not.
        score_blocks(model, rows.split(4), CRITERIA, settings)
        for model, rows in ((here, ids.cuda()), (there, ids))
    )
    for name in CRITERIA:
        scores, wanted = on_gpu[name]["scores"], on_cpu[name]["scores"]
        # Relative to the largest: a block that changes next to nothing has a score of rounding alone.
        size = max(map(abs, wanted))
        off = max(abs(score - other) for score, other in zip(scores, wanted, strict=True)) / size
        print(f"{family}, {dtype}: {name} differs by {off:.1e} of {size:.3g}")
        assert off <= tolerance, f"{family}, {dtype}, {name}: {off:.1e} of the largest score off: {scores}, {wanted}"
