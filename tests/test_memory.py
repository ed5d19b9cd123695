"""Memory of the host: a limit of this process's control groups counts, whichever version they are of."""

from __future__ import annotations

import psutil
import pytest
import torch

from pipeline import memory
from pipeline.evaluation.memory import SHARE, fit_together
from pipeline.memory import available_memory, total_memory

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
    cpu = torch.device("cpu")
    assert fit_together([int(left * SHARE)], cpu) and not fit_together([int(left * SHARE) + 1], cpu)
