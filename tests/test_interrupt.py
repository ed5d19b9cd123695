"""Interruptions: none is lost, and what is ignored stays ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from pipeline.interrupt import interruptible, raise_if_interrupted
from tests import ROOT

#: A process that is interrupted while Python frees an object, where a KeyboardInterrupt is dropped.
LOST = """
import os, signal
from pipeline.interrupt import interruptible, raise_if_interrupted

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

with interruptible():
    raise_if_interrupted()
    Freed()
    print("went on", flush=True)
    raise_if_interrupted()
    print("was never asked", flush=True)
"""


@pytest.fixture(autouse=True)
def interruptible_by_ctrl_c():
    """Tests that run in the background have Ctrl-C ignored, or under nohup SIGHUP."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_comes_while_an_object_is_freed_is_met_at_the_next_line(name):
    program = LOST.format(name=name)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Exception ignored in" in ended.stderr, f"the moment was missed: nothing was dropped\n{ended.stderr}"
    assert ended.stdout == "went on\n"
    assert ended.returncode == -signal.SIGINT, "it did not end as by Ctrl-C"


def test_a_signal_raises_at_once_and_is_forgotten_behind_the_context():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
    raise_if_interrupted()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
            raise_if_interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_main_thread_alone_is_ended():
    met = []

    def look() -> None:
        try:
            raise_if_interrupted()
        except KeyboardInterrupt:
            met.append("in the thread")

    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert met == []
