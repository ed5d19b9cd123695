"""The launching agent: a process that starts the ranks of each stage as forks of itself, in which all is imported.

What a stage imports takes seconds. So the command imports it once, and forks the agent before it computes anything:
what has run no parallel region and asked no CUDA forks well (the threads that libraries start as they are imported have
handlers for it). The agent waits, in a session of its
own, until the command asks for a stage, forks the ranks, watches them, and answers with the status. No Python is
started for it, no rank imports again what the command has.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from pipeline.launch import AGENT, END, TOLD, cores, die_with_parent, name_accelerator, name_process
from pipeline.stopping import NOTED, STOPPABLE, STOPPED, handing_on

#: Seconds that an agent has for ending its ranks before it is ended itself.
GRACE = 8
#: Seconds between looks at whether a process has ended.
LOOK = 0.01
#: Asks an agent to end at once, where others are handed on.
AT_ONCE = signal.SIGUSR2
#: Signals that ask a process to end.
ENDING = (*NOTED, AT_ONCE)
#: An agent's answer where a signal that was handed on ended it, or a rank, unnoted: a stage had not begun, or was done.
UNNOTED = 76
#: Has torch count GPUs by NVML. CUDA itself, once asked, works in no fork.
COUNT_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


class Agent:
    """The agent as the command sees it; ``modules`` are what the ranks need, and are imported here too.

    Where torch was imported before, in a notebook say, or something may have been computed since, a fork might wait for
    ever for threads that it does not have: there the agent is a Python of its own, started with its first stage.
    """

    def __init__(self, modules: Sequence[str]):
        self._modules, self._more = tuple(modules), ()
        self._forks = "torch" not in sys.modules
        self._pid: int | None = None
        #: The signal by which a stage was asked to stop.
        self.asked: str | None = None
        import_all(self._modules)

    def warm(self, more: Sequence[str] = ()) -> None:
        """Fork the agent now, before anything is computed; while it waits it imports ``more``, for ranks alone."""
        self._more = tuple(more)
        if self._forks:
            self._start(forks=True)

    def launch(self, arguments: Sequence[str], processes: int) -> int:
        """Run ``python -m pipeline ARGUMENTS`` in so many processes; returns 0, TOLD, STOPPED, UNNOTED or, when
        it was said which rank failed and how, another status.

        A Ctrl-C reaches the command alone; the agent and its ranks are ended then, before it goes on. A stage that can
        be stopped is asked to, through the agent: its end is waited for, and a second Ctrl-C ends all.
        """
        if self._pid is None:
            self._start(forks=False)
        pid, answer = self._pid, ""
        stops = arguments[0] in STOPPABLE
        with handing_on(lambda: [pid]) if stops else contextlib.nullcontext([]) as handed:
            try:
                # An agent that was killed reads nothing.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._channel.write(json.dumps([processes, *arguments]) + "\n")
                    self._channel.flush()
                    answer = self._channel.readline()
            finally:
                if not answer:
                    self.end()
        if handed:
            self.asked = signal.Signals(handed[0]).name
            if not answer:
                return UNNOTED
        return int(answer or 1)

    def require_unasked(self) -> None:
        """SystemExit with status STOPPED where a stage was asked to stop, and had been done by then: none follows."""
        if self.asked is not None:
            print(f"regrow: stopped by {self.asked} behind a stage that is done; the same command goes on", flush=True)
            raise SystemExit(STOPPED)

    def end(self) -> None:
        """End the agent, and with it its ranks; it is gone afterwards."""
        if self._pid is None:
            return
        pid, self._pid = self._pid, None
        os.kill(pid, AT_ONCE)
        if not _ended(pid, time.monotonic() + GRACE):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            self._channel.close()

    def _start(self, forks: bool) -> None:
        parent = os.getpid()
        ours, theirs = socket.socketpair()
        self._pid = _fork()
        if self._pid:
            theirs.close()
            self._channel = ours.makefile("rw")
            ours.close()
            return
        with _leaving():
            os.setsid()
            die_with_parent(parent)
            ours.close()
            if not forks:
                theirs.set_inheritable(True)
                words = ["-m", "pipeline.agent", str(theirs.fileno()), *self._modules, *self._more]
                os.execv(sys.executable, [sys.executable, *words])
            _serve(theirs, self._more)


def import_all(modules: Sequence[str]) -> None:
    """Import ``modules``, if any, and tell DeepSpeed where there is no GPU.

    The collector of garbage is kept from looking again and again at all that stays (a fifth of the time), and in forks
    at what was there before them.
    """
    before = os.environ.get(COUNT_BY_NVML)
    os.environ[COUNT_BY_NVML] = "1"
    gc.disable()
    try:
        for name in modules:
            importlib.import_module(name)
        if modules:
            name_accelerator()
    finally:
        gc.enable()
        gc.freeze()
        if before is None:
            del os.environ[COUNT_BY_NVML]


def _fork() -> int:
    """As os.fork(); the child meets ENDING signals as a new program would: by ending, or as ignored from its start."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        pid = os.fork()
        if pid == 0:
            for number in ENDING:
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """The process ends with the context, with the status that is raised in it: nothing behind the fork is its own."""
    status = 0
    try:
        yield
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _ended(pid: int, end: float) -> bool:
    """Whether a child ends before the clock (time.monotonic) shows ``end``; it is reaped then."""
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            return False
        time.sleep(LOOK)
    return True


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _serve(pipe: socket.socket, modules: Sequence[str]) -> None:
    """The agent's own: import ``modules``, then carry out what the command asks for, one stage after the other, until
    it closes the pipe."""
    name_process("regrow-agent")
    os.environ[AGENT] = str(os.getpid())
    import_all(modules)
    # Until here, without ranks, a signal ends it by itself.
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    with pipe, pipe.makefile("rw") as channel:
        for line in channel:
            processes, *arguments = json.loads(line)
            channel.write(f"{_carry_out(arguments, processes, pipe)}\n")
            channel.flush()


def _carry_out(arguments: list[str], processes: int, pipe: socket.socket) -> int:
    """Fork the ranks and watch them: the status is that of the first that fails, and no other outlives it.

    Ranks of a stage that can be stopped are handed what signal comes here; their end is waited for.
    """
    place = _environment(processes)
    ranks: dict[int, int] = {}
    stops = arguments[0] in STOPPABLE
    # Ranks that note a SIGTERM are not ended by it.
    endings = (signal.SIGKILL,) if stops else (signal.SIGTERM, signal.SIGKILL)
    try:
        with handing_on(lambda: ranks) if stops else contextlib.nullcontext([]) as handed:
            for rank in range(processes):
                agent, pid = os.getpid(), _fork()
                if pid == 0:
                    with _leaving():
                        die_with_parent(agent)
                        os.close(pipe.detach())
                        _be_rank(rank, place, arguments)
                ranks[pid] = rank
                if handed:  # It came before this rank was known to be there.
                    os.kill(pid, handed[0])
            return _watch(ranks, processes, handed)
    finally:
        for number in endings:
            for pid in ranks:
                os.kill(pid, number)
            end = time.monotonic() + END
            ranks = {pid: rank for pid, rank in ranks.items() if not _ended(pid, end)}


def _watch(ranks: dict[int, int], processes: int, handed: list[int]) -> int:
    """Wait for ranks, which are taken out as they end: until all are done or have stopped, or one has failed."""
    outcome = 0
    while ranks:
        pid, status = os.waitpid(-1, 0)
        rank, code = ranks.pop(pid), os.waitstatus_to_exitcode(status)
        if code == TOLD:
            return TOLD
        if code == STOPPED:
            outcome = STOPPED
        elif -code in handed:
            return UNNOTED
        elif code:
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            print(f"regrow: rank {rank} of {processes} (pid {pid}) ended with {how}", file=sys.stderr, flush=True)
            return 1
    return outcome


def _environment(processes: int) -> dict[str, str]:
    """What every rank of so many finds in its environment; each finds its own number there too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, cores() // processes))
    return {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # As under torchrun: a rank that waits for one that is gone ends.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }


def _be_rank(rank: int, place: dict[str, str], arguments: list[str]) -> None:
    """In a fork of the agent: what ``python -m pipeline ARGUMENTS`` would do as this rank."""
    import numpy as np
    import torch

    name_process(f"regrow-rank-{rank}")
    os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    if torch.cuda._is_in_bad_fork():
        # What was imported asked CUDA itself, as it must where NVML cannot count (parts of a GPU): a new Python then.
        os.execv(sys.executable, [sys.executable, "-m", "pipeline", *arguments])
    # From the system, as in a new Python; Python's own generator does that by itself.
    np.random.seed()
    sys.argv = ["regrow", *arguments]
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    with _leaving():
        _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
