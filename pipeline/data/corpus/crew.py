"""A crew: processes that take jobs until none is left, and the lines that tell how far they are.

They are spawned, so that they share nothing with the process that started them, and end with it. One that is killed
is an error that names it and what it was at: what it had finished was given back before.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from pipeline.data.damage import DamagedShard
from pipeline.errors import RegrowError

#: Seconds between two lines of progress.
EVERY = 10.0
#: What a process calls to tell of a job under way: a line for people, or tokens and the share of the job (0 to 1).
Tell = Callable[[str, Any], None]


class Job(Protocol):
    """What a crew can be given: picklable, with a name for messages and a size in bytes."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...


@dataclass
class Worker:
    """A process, the job it has, and how far it is with it: tokens, and the share of the job that is done."""

    process: BaseProcess
    job: Job
    tokens: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class Crew:
    """How many processes there are to be, what each calls first (picklable), and who hears how far they are."""

    processes: int
    die_with_parent: Callable[[], None]
    say: Callable[[str], None]


def outcomes(
    crew: Crew,
    jobs: Sequence[Job],
    prepare: Callable[..., Callable[[Any], dict[str, Any]]],
    arguments: tuple[Any, ...],
) -> Iterator[tuple[Any, dict[str, Any] | str]]:
    """(job, what was made of it, or the message of a DamagedShard), in the order in which they are done.

    Each process calls ``prepare(*arguments, tell)`` once and what that returns with every job; the dict it gives back
    has ``tokens``. All of these are picklable. To be closed: that ends the processes. Raises RegrowError when a
    process raises it, or dies.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    at_work: dict[Connection, Worker] = {}
    pace = Pace(len(jobs), sum(job.size for job in jobs), crew.say)
    try:
        for number in range(min(max(1, crew.processes), len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(theirs, prepare, arguments, crew.die_with_parent),
                name=f"process {number}",
                daemon=True,
            )
            process.start()
            # With our copy of its end closed, its death is the end of the connection.
            theirs.close()
            at_work[ours] = Worker(process, waiting.popleft())
            ours.send(at_work[ours].job)
        while at_work:
            for connection in wait(list(at_work)):
                worker = at_work[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    raise RegrowError(_how_it_ended(worker)) from None
                if kind == "say":
                    crew.say(value)
                elif kind == "failed":
                    raise RegrowError(value)
                elif kind == "progress":
                    worker.tokens, worker.share = value
                else:
                    pace.add(worker.job, value)
                    yield worker.job, value
                    if waiting:
                        at_work[connection] = Worker(worker.process, waiting.popleft())
                        connection.send(at_work[connection].job)
                    else:
                        del at_work[connection]
                        connection.close()
                        worker.process.join()
                pace.tell(at_work.values())
    finally:
        for worker in at_work.values():
            worker.process.terminate()
        for worker in at_work.values():
            worker.process.join()


def _how_it_ended(worker: Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return (
        f"{worker.process.name} (pid {worker.process.pid}) ended with {how} while it had {worker.job.name}; "
        "start again, what is finished stays"
    )


class Pace:
    """Tokens and bytes of the jobs that are done, and the lines that tell of them."""

    def __init__(self, jobs: int, size: int, say: Callable[[str], None]):
        self.jobs, self.size, self.say = jobs, size, say
        self.done = self.bytes = self.tokens = 0
        self.begun: float | None = None

    def add(self, job: Job, outcome: dict[str, Any] | str) -> None:
        """A job is done; ``outcome`` as ``outcomes`` gives it."""
        self.done += 1
        self.bytes += job.size
        self.tokens += outcome["tokens"] if isinstance(outcome, dict) else 0

    def tell(self, crew: Iterable[Worker]) -> None:
        """Say how far it is: after ``EVERY`` seconds, and at the end. The clock starts when the first one is ready."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = self.told = now
        if now - self.told < EVERY and self.done < self.jobs:
            return
        self.told = now
        tokens = self.tokens + sum(worker.tokens for worker in crew)
        size = self.bytes + sum(worker.share * worker.job.size for worker in crew)
        seconds = max(now - self.begun, 1e-9)
        left = timedelta(seconds=round(seconds * (self.size / size - 1))) if size else "unknown time"
        self.say(f"{self.done} of {self.jobs} done: {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s, {left} left")


def _work(
    connection: Connection,
    prepare: Callable[..., Callable[[Any], dict[str, Any]]],
    arguments: tuple[Any, ...],
    die_with_parent: Callable[[], None],
) -> None:
    """A process's life: jobs come through the connection, what became of them goes back."""
    die_with_parent()
    # A Ctrl-C reaches the whole group; whoever started this process ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(kind: str, value: Any) -> None:
        connection.send((kind, value))

    # The connection ends with the last job, or with the process at its other end.
    with contextlib.suppress(EOFError, BrokenPipeError):
        do = prepare(*arguments, tell)
        tell("progress", (0, 0.0))
        while True:
            job = connection.recv()
            try:
                tell("done", do(job))
            except DamagedShard as error:
                tell("damaged", str(error))
            except RegrowError as error:
                tell("failed", str(error))
