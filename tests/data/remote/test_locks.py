"""Locks of a shared cache: held by processes that live, on the file that still has the name."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.data.remote.locks import delete_unless_in_use, is_at, locked

#: Locks a file and says so, for as long as it lives.
HOLDER = """
import fcntl, sys, time
from pathlib import Path
from pipeline.data.remote.locks import locked
file = locked(Path(sys.argv[1]), "r+b", fcntl.LOCK_SH)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "copy"
    path.write_bytes(b"of a shard")
    return path


@pytest.fixture
def holder(copy):
    """Another process that reads the copy."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, copy], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_living_process_reads_stays_and_what_a_killed_one_read_goes(copy, holder):
    assert not delete_unless_in_use(copy) and copy.exists()
    with locked(copy, "r+b", fcntl.LOCK_SH) as file:
        assert file.read() == b"of a shard", "two may read at a time"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert delete_unless_in_use(copy) and not copy.exists(), "a killed process still keeps its copy"
    assert delete_unless_in_use(copy), "what is gone is gone"


def test_what_this_process_reads_stays_too(copy):
    with locked(copy, "r+b", fcntl.LOCK_SH):
        assert not delete_unless_in_use(copy) and copy.exists()
    assert delete_unless_in_use(copy)


def test_whoever_waited_for_a_file_that_went_meanwhile_does_not_get_it(copy):
    """The lock is on a file that has no name any more, or whose name is another file's."""
    for replaced in (False, True):
        copy.write_bytes(b"old")
        files = len(os.listdir("/proc/self/fd"))
        first = locked(copy, "r+b", fcntl.LOCK_EX)
        found = []
        waiting = threading.Thread(target=lambda found=found: found.append(locked(copy, "r+b", fcntl.LOCK_SH)))
        waiting.start()
        time.sleep(0.1)
        assert not found, "two have an exclusive lock"
        copy.unlink()
        if replaced:
            copy.write_bytes(b"new")
        assert not is_at(first, copy)
        first.close()
        waiting.join(10)
        assert found == [None], "a file was handed out that is no longer at its path"
        assert len(os.listdir("/proc/self/fd")) == files, "the file that was not handed out stays open, and locked"
    assert locked(copy.with_name("none"), "r+b", fcntl.LOCK_SH) is None
    with locked(copy, "rb", fcntl.LOCK_SH) as file:
        assert is_at(file, copy) and file.read() == b"new"
