"""Compiled blocks: what stands between a block's products becomes a few kernels of its own.

Each block, and the norm behind the last one, is compiled where it stands (``nn.Module.compile``), with the shapes that
it meets; equal blocks share what was compiled. The model around them stays as it is, so that every family's masks,
positions and caches do. DeepSpeed's ZeRO 3 hangs a hook on every submodule, each of which breaks a block into pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters, cumulative_time_spent_ns
from torch._inductor.exc import InductorError

from pipeline.errors import first_line
from pipeline.model.structure import find_blocks


class CompiledBlocks:
    """The blocks of a model, compiled: nothing happens until their first forward.

    Where one of them does not compile, all run as they are, which ``news`` says.
    """

    def __init__(self, model: nn.Module):
        self.parts = [*find_blocks(model), *_norms_behind(model)]
        self.failure: str | None = None
        self._told, self._graphs, self._breaks, self._seconds = False, _graphs(), _breaks(), _seconds()
        logging.getLogger("torch._higher_order_ops.wrap").addFilter(_not_about_recomputing)
        for part in self.parts:
            part.compile(dynamic=False)
            part._compiled_call_impl = self._or_as_it_is(part._call_impl, part._compiled_call_impl)

    def function(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """A function compiled as the blocks are, and run as it is where they are."""
        return self._or_as_it_is(plain, torch.compile(plain, dynamic=False))

    def _or_as_it_is(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.failure is None:
                try:
                    return compiled(*arguments, **keywords)
                except (TorchDynamoException, InductorError) as error:
                    self.failure = first_line(error)
            return plain(*arguments, **keywords)

        return call

    def news(self) -> Iterator[str]:
        """What is new since it was last asked, in lines for people: what was compiled, anew or in pieces."""
        if self.failure is not None:
            if not self._told:
                yield f"the blocks do not compile, and run as they are: {self.failure}"
            self._told = True
            return
        graphs, breaks, seconds = _graphs() - self._graphs, _breaks() - self._breaks, _seconds() - self._seconds
        if graphs and not self._told:
            yield f"compiled: {graphs} graphs for {len(self.parts)} modules and the loss, in {seconds:.1f} s"
        elif graphs:
            yield f"compiled anew: {graphs} graphs for another shape or mode, in {seconds:.1f} s"
        if breaks:
            yield f"compiled in pieces: {breaks} breaks ({_last_break()})"
        self._told |= graphs > 0
        self._graphs, self._breaks, self._seconds = _graphs(), _breaks(), _seconds()


def _norms_behind(model: nn.Module) -> list[nn.Module]:
    """The norms that stand beside the list of blocks, behind it."""
    blocks = find_blocks(model)
    (owner,) = (module for module in model.modules() if any(child is blocks for child in module.children()))
    children = list(owner.children())
    behind = children[next(at for at, child in enumerate(children) if child is blocks) + 1 :]
    return [child for child in behind if "norm" in type(child).__name__.lower()]


def _graphs() -> int:
    """Graphs that this process has compiled."""
    return counters["stats"]["unique_graphs"]


def _breaks() -> int:
    """Breaks of graphs that this process has met."""
    return sum(counters["graph_break"].values())


def _last_break() -> str:
    return next(reversed(counters["graph_break"])).strip().partition("\n")[0]


def _seconds() -> float:
    """Seconds in which this process has compiled."""
    return cumulative_time_spent_ns["entire_frame_compile"] / 1e9


def _not_about_recomputing(record: logging.LogRecord) -> bool:
    """torch warns wherever selective recomputing is compiled that no operation in it may write in place."""
    return "context_fn is passed to torch.utils.checkpoint" not in record.getMessage()
