"""Requests to stop: noted while the main thread runs no Python, handed on once, and from readers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.stopping import AGAIN, hand_on_to_rank, handing_on, noting, other_requests, why_asked
from tests.programs import python

#: A process whose main thread is in a call of C's that goes on after a signal, as in a collective.
IN_C = """
import ctypes, os, sys, threading, time
import pipeline.stopping
from pipeline.stopping import noting, why_asked
pipeline.stopping.ALONE = 0.5

def tell():
    while why_asked() is None:
        time.sleep(0.01)
    print(why_asked(), flush=True)

with noting(peers=[int(pid) for pid in sys.argv[1:]]):
    threading.Thread(target=tell, daemon=True).start()
    print("noting", flush=True)
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""


@pytest.fixture
def in_c() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(*peers: int) -> subprocess.Popen[str]:
        started.append(python(IN_C, *peers))
        assert started[-1].stdout.readline() == "noting\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_noted_where_no_python_runs_and_a_second_ends_the_process(in_c, name):
    process, number = in_c(), getattr(signal, name)
    for _ in range(3):
        process.send_signal(number)
    assert process.stdout.readline() == f"{name}\n"
    time.sleep(AGAIN + 0.5)
    assert process.poll() is None, "one request that came several times ended the process"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_who_was_asked_to_stop_does_not_wait_for_a_peer_that_is_gone(in_c):
    peer = in_c()
    process = in_c(peer.pid)
    peer.kill()
    peer.wait()
    time.sleep(2)
    assert process.poll() is None, "it ended, and nobody had asked it"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_what_is_ignored_stays_so_and_handlers_come_back():
    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGCHLD, lambda *_: None)]
    try:
        with noting():
            for number in (signal.SIGHUP, signal.SIGCHLD):
                signal.raise_signal(number)
            time.sleep(0.2)
            assert why_asked() is None, "a signal that asks for nothing was noted"
            signal.raise_signal(signal.SIGUSR1)
            assert wait_for(why_asked) == "SIGUSR1"
        assert why_asked() == "SIGUSR1", "what was noted is forgotten"
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        with noting():
            assert why_asked() is None
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGCHLD), before, strict=True):
            signal.signal(number, handler)


def test_a_signal_to_a_reader_is_one_to_its_rank_and_the_reader_goes_on():
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def read() -> None:
        hand_on_to_rank()
        begun.set()
        while True:
            time.sleep(0.05)

    with noting():
        reader = context.Process(target=read, daemon=True)
        reader.start()
        try:
            assert begun.wait(30)
            os.kill(reader.pid, signal.SIGTERM)
            assert wait_for(why_asked) == "SIGTERM to a reader"
            time.sleep(AGAIN + 0.2)
            os.kill(reader.pid, signal.SIGTERM)
            time.sleep(0.5)
            assert reader.is_alive(), "a signal ended the reader"
        finally:
            reader.kill()
            reader.join()


def test_a_signal_is_handed_on_once_and_the_second_does_what_it_did_before(monkeypatch):
    monkeypatch.setattr("pipeline.stopping.AGAIN", 0.5)
    met = []
    before = signal.signal(signal.SIGINT, lambda number, frame: met.append(number))
    # Where tests run behind nohup it is ignored, and stays so.
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    child = subprocess.Popen(["sleep", "60"])
    try:
        with handing_on(lambda: [child.pid]) as handed:
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
            assert child.wait(timeout=30) == -signal.SIGTERM
            assert (handed, met) == ([signal.SIGTERM], [])
            time.sleep(0.6)
            signal.raise_signal(signal.SIGINT)
            assert met == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGHUP, hung_up)
        child.kill()


def test_the_clock_and_a_file_ask_too(tmp_path):
    file = tmp_path / "STOP"
    assert other_requests(1, file)() is None
    over = other_requests(1e-6, file)
    time.sleep(0.01)
    assert over() == "train.max_hours"
    look = other_requests(None, file)
    assert look() is None
    file.write_text("")
    assert look() == "STOP"
    file.write_text("SIGUSR1\n")
    assert look() == "STOP: SIGUSR1"
    with noting(look):
        assert wait_for(why_asked) == "STOP: SIGUSR1"
