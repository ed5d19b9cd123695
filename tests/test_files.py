"""Files: written whole or not at all, read back, locked, and with room beside them."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from pipeline.errors import RegrowError
from pipeline.files import link_or_copy, of_bytes, read_json, require_space, write_atomic, write_json
from pipeline.run import Run
from tests.programs import python


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on a file's size stands for the full disk: the write ends in the middle with an error of the kernel."""
    path = tmp_path / "scores.json"
    write_atomic(path, "old")
    process = python(
        """
import pathlib, resource, sys
from pipeline.errors import RegrowError
from pipeline.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_atomic(pathlib.Path(sys.argv[1]), "new" * 100_000)
except RegrowError as error:
    print(error)
""",
        path,
    )
    out, _ = process.communicate(timeout=60)
    assert "scores.json: cannot be written (File too large); nothing was lost" in out
    assert path.read_text() == "old", "the old file is gone"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"], "half a file was left behind"


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "stage" / "stage.json"
    write_atomic(path, "old")
    process = python(
        """
import os, pathlib, signal, sys
from pipeline.files import write_atomic
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(pathlib.Path(sys.argv[1]), "new")
""",
        path,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert Run(tmp_path).outputs("stage") == {}, "what the killed write left counts as a result"
    write_atomic(path, "newer")
    assert path.read_text() == "newer"


def test_a_byte_order_mark_is_said_to_be_one(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8-sig")
    with pytest.raises(RegrowError, match=r"config\.json: begins with a byte order mark \(BOM\).*without one$"):
        read_json(tmp_path / "config.json")


def test_json_is_read_back_and_damage_names_the_file(tmp_path):
    value = {"name": "Łódź", "losses": [0.1, 1e-300, 3]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    for data in (b'{"half": ', b"\xff\xfe", b"", b"[" * 200_000):
        (tmp_path / "a.json").write_bytes(data)
        with pytest.raises(RegrowError, match=r"a\.json: damaged"):
            read_json(tmp_path / "a.json")
    with pytest.raises(RegrowError, match=r"b\.json: cannot be read"):
        read_json(tmp_path / "b.json")


def test_space_is_asked_for_before_it_is_needed(tmp_path):
    require_space(tmp_path / "new", 1000, "a checkpoint")
    with pytest.raises(RegrowError, match=r"no space for a checkpoint: 1000000000\.00 GB needed in .*, \S+ GB free"):
        require_space(tmp_path, 10**18, "a checkpoint")


def test_small_sizes_are_told_in_small_units(tmp_path, monkeypatch):
    told = {
        999: "999 bytes",
        1000: "1.00 kB",
        310_000: "310.00 kB",
        2_500_000: "2.50 MB",
        80e9: "80.00 GB",
        0: "0 bytes",
    }
    assert {size: of_bytes(size) for size in told} == told
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=20_000))
    with pytest.raises(RegrowError, match=r"310\.00 kB needed in .*, 20\.00 kB free"):
        require_space(tmp_path, 310_000, "the states")


def test_a_file_that_lines_are_added_to_is_no_link(tmp_path):
    for name, linked in (("model.safetensors", True), ("metrics.jsonl", False)):
        (tmp_path / name).write_text("a line\n")
        assert link_or_copy(tmp_path / name, tmp_path / "other" / name) is linked
        assert (tmp_path / "other" / name).samefile(tmp_path / name) is linked
        assert (tmp_path / "other" / name).read_text() == "a line\n"


def test_damaged_json_is_told_with_what_helps(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(
        RegrowError, match=r"a\.json: damaged, not valid JSON \(.*\); move it aside and redo its stage$"
    ):
        read_json(tmp_path / "a.json")
    with pytest.raises(RegrowError, match=r"a\.json: damaged, not valid JSON \(.*\); fetch it$"):
        read_json(tmp_path / "a.json", "fetch it")
