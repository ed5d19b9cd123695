"""Who works in a run: told without touching the lock where its text is enough."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from pipeline.commands.holder import look_at_holder


@pytest.fixture
def untouched(run, monkeypatch):
    """The run, whose lock may not be asked for."""

    def touch() -> None:
        raise AssertionError("the lock was taken")

    monkeypatch.setattr(run, "holder", touch)
    return run


def test_nobody_works_where_there_is_no_lock_or_an_empty_one(untouched):
    assert look_at_holder(untouched)[0].said == "  no command works in it now"
    (untouched.folder / ".lock").touch()
    assert look_at_holder(untouched)[0].said == "  no command works in it now"


def test_one_that_was_killed_is_told_by_its_number(untouched):
    gone = subprocess.Popen(["true"])
    gone.wait()
    held = f"host {socket.gethostname()} pid {gone.pid}"
    (untouched.folder / ".lock").write_text(held)
    line, works = look_at_holder(untouched)
    assert line.said == f"  no command works in it now; the last one ({held}) was killed" and not works


@pytest.mark.parametrize("host", [socket.gethostname(), "another"])
def test_of_another_machine_or_a_number_used_again_the_lock_tells(run, host):
    (run.folder / ".lock").write_text(f"host {host} pid {os.getpid()}")
    line, works = look_at_holder(run)
    assert "was killed" in line.said and not works
    with run.lock():
        (run.folder / ".lock").write_text(f"host {host} pid {os.getpid()}")
        run.log("data: at work")
        line, works = look_at_holder(run)
        assert line.said == f"  in use by host {host} pid {os.getpid()}, which is alive" and works
        assert line.passing == "; log.txt was written 0 s ago"
