"""Memory between models: what fits side by side, and that nothing stays of what nobody holds."""

from __future__ import annotations

import weakref

import psutil
import torch

from pipeline.evaluation.memory import SHARE, fit_together, give_back
from pipeline.memory import available_memory

CPU = torch.device("cpu")


def test_models_fit_where_their_sum_does():
    free = available_memory()
    third = int(free * SHARE / 3)
    assert fit_together([third // 2] * 3, CPU), "half of what may be taken does not fit"
    assert not fit_together([2 * third] * 3, CPU), "twice of what may be taken fits"
    assert fit_together([2 * third], CPU), "one of these alone does not fit"


def test_the_memory_of_a_model_that_refers_to_itself_is_given_back():
    process = psutil.Process()
    before = process.memory_info().rss
    layer = torch.nn.Linear(4096, 4096)  # 64 MiB
    layer.register_forward_hook(layer.forward)
    held, gone = process.memory_info().rss, weakref.ref(layer)
    del layer
    assert gone() is not None, "shows nothing: counting references was enough"
    give_back(CPU)
    after = process.memory_info().rss
    assert gone() is None
    assert held - before > 50e6 > after - before, f"{held - before:,} bytes were taken, {after - before:,} stayed"
