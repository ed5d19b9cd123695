"""Memory between models: what fits side by side, and that nothing stays of what nobody holds."""

from __future__ import annotations

import weakref

import psutil
import pytest
import torch

from pipeline.evaluation import memory
from pipeline.evaluation.memory import SHARE, available_memory, fit_together, give_back, total_memory

CPU = torch.device("cpu")


def test_models_fit_where_their_sum_does():
    free = available_memory()
    third = int(free * SHARE / 3)
    assert fit_together([third // 2] * 3, CPU), "half of what may be taken does not fit"
    assert not fit_together([2 * third] * 3, CPU), "twice of what may be taken fits"
    assert fit_together([2 * third], CPU), "one of these alone does not fit"


GIB = 1 << 30


def write_group(folder, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text + "\n")


@pytest.mark.parametrize(
    ("own", "groups", "left"),
    [
        ("0::/", {".": {"max": f"{GIB}", "current": f"{GIB // 4}", "stat": "anon 7\ninactive_file 0"}}, GIB * 3 // 4),
        ("0::/", {".": {"max": f"{GIB}", "current": f"{GIB}", "stat": f"inactive_file {GIB // 2}"}}, GIB // 2),
        ("0::/", {".": {"max": f"{GIB}", "current": f"{2 * GIB}", "stat": "anon 0"}}, 0),
        # A job's limit stands above the step's own group, which sets none.
        (
            "0::/job/step",
            {
                "job/step": {"max": "max", "current": "5", "stat": "anon 0"},
                "job": {"max": f"{GIB}", "current": "0", "stat": "anon 0"},
            },
            GIB,
        ),
        # Version 1; the path is the host's, and what is mounted is the container's group.
        (
            "4:cpu:/a\n3:hugetlb,memory:/docker/1f\n0::/",
            {"memory": {"limit_in_bytes": f"{GIB}", "usage_in_bytes": "0", "stat": "total_inactive_file 8"}},
            GIB + 8,
        ),
        ("3:memory:/", {"memory": {"limit_in_bytes": f"{1 << 62}", "usage_in_bytes": "0", "stat": "anon 0"}}, None),
        ("0::/", {".": {"max": "max", "current": "0", "stat": "anon 0"}}, None),
        ("0::/", {}, None),
    ],
    ids=[
        "version 2",
        "cached files give way",
        "beyond the limit",
        "a limit above",
        "version 1",
        "version 1, no limit",
        "no limit",
        "no files",
    ],
)
def test_a_container_s_limit_counts(tmp_path, monkeypatch, own, groups, left):
    (tmp_path / "own").write_text(own + "\n")
    for name, files in groups.items():
        write_group(tmp_path / "cgroup" / name, **files)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    if left is None:
        host = psutil.virtual_memory().available
        assert abs(available_memory() - host) < host / 4, "no limit is set, and it is not the host's memory"
        assert total_memory() == psutil.virtual_memory().total
        return
    assert available_memory() == left
    assert total_memory() == GIB, "what is taken now changes what could be taken at most"
    assert fit_together([int(left * SHARE)], CPU) and not fit_together([int(left * SHARE) + 1], CPU)


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
