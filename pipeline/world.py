"""The processes that share a stage's work, and how they talk."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegrowError, first_line
from pipeline.launch import END, TOLD, Place, choose_gpu, cores, name_accelerator, require_own_gpus
from pipeline.life import signs_of_life
from pipeline.links import bound_silence

if TYPE_CHECKING:
    import torch

#: How long a rank may wait while rank 0 alone does a stage's work.
PATIENCE = timedelta(days=1)
#: How gloo, NCCL and the kernel say that a process at the other end, or the link to it, is gone.
GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "connection timed out",
    "no route to host",
    "network is unreachable",
    "broken pipe",
    "remote process exited or there was a network error",
)


class World:
    """``size`` processes, of which this is number ``rank``; ``on_this_machine`` of them are on its machine.

    ``World()`` is a process alone, in a notebook say: there every call gives back what it was given, at once. Values
    (small, picklable) and tensors on the CPU go over gloo, tensors on a GPU over NCCL. Every process must make the same
    calls in the same order.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        on_this_machine: int = 1,
        device: torch.device | None = None,
        control: torch.distributed.ProcessGroup | None = None,
    ):
        self.rank, self.size, self.on_this_machine = rank, size, on_this_machine
        self.threads = max(1, cores() // on_this_machine)
        self.control, self._device = control, device

    @classmethod
    def join(cls, place: Place, use_gpu: bool = True) -> World:
        """Take a place among the processes that a launcher started: set threads and the GPU, and find the others.

        Who waits for the others says so after a while. Raises RegrowError where there is no GPU for this process on a
        machine that has some, where two processes took one, and where they do not find each other.
        """
        import torch

        device = torch.device("cpu")
        name_accelerator()
        if use_gpu and torch.cuda.is_available():
            index = choose_gpu(place, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
            if index != place.local_rank == 1:
                print(f"regrow: each process sees one GPU alone: rank {place.rank} takes its {device}", flush=True)
        control = None
        if place.launcher is not None:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            with _meeting(place):
                torch.distributed.init_process_group(backend, rank=place.rank, world_size=place.world)
            control = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            bound_silence()
        world = cls(place.rank, place.world, on_this_machine=place.local_world, device=device, control=control)
        require_own_gpus(world.gather(_named(device)))
        torch.set_num_threads(world.threads)
        return world

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        import torch

        return self._device or torch.device("cpu")

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.control is not None:
            import torch

            torch.distributed.barrier(group=self.control)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order, on every process."""
        if self.control is None:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, on every process; what the others hand in is not looked at."""
        if self.control is None:
            return value
        import torch

        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def on_first(self, call: Callable[[], Any]) -> Any:
        """What ``call()`` gives on rank 0, on every process.

        What it raises there is raised there alone, so that it is said once: the others end, with status TOLD.
        """
        outcome = None
        if self.rank == 0:
            try:
                outcome = (call(), False)
            except Exception:
                self.broadcast((None, True))
                self.barrier()
                raise
        value, failed = self.broadcast(outcome)
        if failed:
            self.barrier()
            time.sleep(END)
            raise SystemExit(TOLD)
        return value

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, now the sum of every process's: (any shape), of one dtype and kind of device on all of them."""
        if self.control is not None:
            import torch

            # The default group knows each device's backend; the control group is gloo, which has more patience.
            group = self.control if tensor.device.type == "cpu" else None
            torch.distributed.all_reduce(tensor, group=group)
        return tensor

    def be_patient(self) -> None:
        """Have no process group, also of those that a library has made, end what waits in it before PATIENCE is over:
        training has a watchdog, which knows what it waits for. And bound the silence of all links."""
        if self.control is None:
            return
        from torch.distributed import distributed_c10d as c10d

        for group in list(c10d._world.pg_map):
            c10d._set_pg_timeout(PATIENCE, group)
        bound_silence()

    def close(self) -> None:
        """Leave the process group."""
        if self.control is not None:
            import torch

            torch.distributed.destroy_process_group()


def lost_peer(error: BaseException) -> str | None:
    """How an error of a call to the other processes says that one of them, or the link to it, is gone; None where it
    says something else."""
    told = str(error).lower()
    return next((words for words in GONE if words in told), None) if isinstance(error, RuntimeError) else None


@contextlib.contextmanager
def _meeting(place: Place) -> Iterator[None]:
    """While the processes look for each other, the first one of each machine says what it waits for. RegrowError when
    they do not meet."""
    import torch

    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    others = f"the other {place.world - 1} of {place.world} processes" if place.rank == 0 else "rank 0"
    remedy = (
        f"look whether all {place.world} were started and live, whether MASTER_ADDR and MASTER_PORT are the same for "
        "all, and whether that port of rank 0's machine is free and reached from the others"
    )

    def say(line: str) -> None:
        if place.local_rank == 0:
            print(f"regrow: {line}", flush=True)

    def waiting(seconds: float) -> str:
        return f"rank {place.rank} has been waiting for {others} at {where} for {seconds:.0f} s; {remedy}"

    try:
        with signs_of_life(say, waiting):
            yield
    except torch.distributed.DistError as error:
        raise RegrowError(
            f"rank {place.rank} did not meet {others} at {where} ({first_line(error)}); {remedy}"
        ) from error


def _named(device: torch.device) -> tuple[str, str] | None:
    """A GPU by its machine and by the name that no other GPU has; None for a CPU."""
    if device.type != "cuda":
        return None
    import torch

    return socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)


#: A process alone.
ALONE = World()
