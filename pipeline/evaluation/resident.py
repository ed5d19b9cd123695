"""What generation takes of the host's memory, seen in a process of its own.

torch counts no memory on a CPU, and a process that has done other work has had peaks of its own. So a process is
started for each model. It first builds the model without weights, which loads all the code that there is; what is
resident then is what a process has that holds no model. Then it loads the weights and generates. The kernel keeps the
highest resident memory of a process (VmHWM), and forgets it when asked: before each size, so that loading does not
count. What the kernel kills for taking too much is that process, and not the one that asked.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.errors import RegrowError
from pipeline.evaluation.memory import ran_out
from pipeline.evaluation.protocol import Size, prompts
from pipeline.evaluation.timing import Timed
from pipeline.launch import die_with_parent
from pipeline.memory import give_back_at_once
from pipeline.model.dispatch import Dispatch
from pipeline.model.hollow import without_weights
from pipeline.model.load import attention_kernel, load_model

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Stored:
    """A model's folder, and how it is loaded: whole, or as ``dispatch`` says."""

    folder: Path
    dtype: str
    attention: str
    trust_remote_code: bool
    dispatch: Dispatch | None = None

    def load(self, device: torch.device) -> PreTrainedModel:
        """The model on ``device``, as ``load_model`` gives it."""
        return load_model(
            self.folder,
            dtype=self.dtype,
            attention=self.attention,
            device=device,
            trust_remote_code=self.trust_remote_code,
            dispatch=self.dispatch,
        )


def resident_peaks(
    stored: Stored, sizes: Sequence[Size], text: torch.Tensor, prompt_tokens: int
) -> dict[Size, int | None]:
    """Bytes that a process has resident at its highest while it generates with each size, above what it had before it
    loaded the weights: weights, cache and activations. None for what does not fit, and for what takes no less.

    ``text`` as for ``prompts``. A size is generated once, on as many threads as this process has. RegrowError where a
    process ends for another reason than memory, or this machine does not tell what is resident (``tells_resident``).
    """
    peaks: dict[Size, int | None] = {}
    left = sorted(sizes)
    while left:
        answered = list(_answers(stored, left, text, prompt_tokens))
        peaks.update(zip(left, answered, strict=False))
        # Where the last one did not fit, the process has ended with it.
        left = left[len(answered) :]
        full = [size for size, peak in peaks.items() if peak is None]
        peaks |= dict.fromkeys([size for size in left if any(size.holds(other) for other in full)])
        left = [size for size in left if size not in peaks]
    return peaks


def _answers(stored: Stored, sizes: Sequence[Size], text: torch.Tensor, prompt_tokens: int) -> Iterator[int | None]:
    """What one process finds of the sizes in their order, up to the first that does not fit."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Numbers: a tensor would be shared with the process, and not sent.
    ids = text.flatten()[: max(size.batch for size in sizes) * prompt_tokens].tolist()
    arguments = (theirs, stored, tuple(sizes), ids, prompt_tokens, torch.get_num_threads())
    process = context.Process(target=_measure, args=arguments, name=f"memory of {stored.folder.name}", daemon=True)
    process.start()
    # With our copy of its end closed, its death is the end of the connection.
    theirs.close()
    try:
        for _ in sizes:
            try:
                found = ours.recv()
            except (EOFError, OSError):
                process.join()
                if process.exitcode != -signal.SIGKILL:
                    raise RegrowError(
                        f"{stored.folder}: the process that measures its memory ended with exit status "
                        f"{process.exitcode}; what it said stands above. evaluate.cost.batches=[] measures no cost"
                    ) from None
                found = None
            if isinstance(found, str):
                raise RegrowError(found)
            yield found
            if found is None:
                return
    finally:
        process.terminate()
        process.join()
        ours.close()


def _measure(
    connection: Connection, stored: Stored, sizes: Sequence[Size], ids: list[int], prompt_tokens: int, threads: int
) -> None:
    """The process's life: for each size bytes go through the connection, None where it does not fit, or a message."""
    die_with_parent()
    # A Ctrl-C reaches the whole group; whoever started this process ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Where the host's memory is not enough, this process is to go and not one that holds work.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(threads)
    # Or what a large batch has freed would count for a small one behind it.
    give_back_at_once()
    text = torch.tensor(ids, dtype=torch.int64)
    try:
        before = _without_model(stored)
        model = stored.load(CPU)
        for size in sizes:
            timed = Timed(model, prompts(text, size.batch, prompt_tokens), size.new_tokens, CPU)
            gc.collect()
            _forget_peak()
            timed.run()
            connection.send(_resident("VmHWM") - before)
    except RegrowError as error:
        connection.send(str(error))
    except Exception as error:
        if not ran_out(error):
            raise
        connection.send(None)


def _without_model(stored: Stored) -> int:
    """Bytes that are resident once the model's code is loaded and its weights are not."""
    dtype = getattr(torch, stored.dtype)
    kernel = attention_kernel(stored.attention, CPU, dtype)
    without_weights(stored.folder, dtype, kernel, stored.trust_remote_code)
    gc.collect()
    return _resident("VmRSS")


def tells_resident() -> bool:
    """Whether this machine's kernel says how much a process has resident, and forgets its highest when asked."""
    try:
        _forget_peak()
        return _resident("VmHWM") > 0
    except (OSError, KeyError):
        return False


def _resident(what: str) -> int:
    """Bytes that the kernel says of this process: VmRSS, resident now, or VmHWM, at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int({name: value for name, _, value in (line.partition(":") for line in lines)}[what].split()[0])


def _forget_peak() -> None:
    """Have the kernel take what is resident now for the highest so far."""
    Path("/proc/self/clear_refs").write_text("5")
