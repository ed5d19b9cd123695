"""A status that goes on: drawn anew on a terminal, and elsewhere a line for each change."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.live import Live
from rich.text import Text

from pipeline.commands.status import Status
from pipeline.display import Terminal, on_terminal


def watch(look: Callable[[], Status], seconds: float) -> None:
    """Show what ``look`` gives every so many ``seconds``: until the run is done, until the command that worked in it
    has ended, or until Ctrl-C. A run that nobody works in is waited for."""
    show, end = _drawn() if on_terminal() else _printed()
    held = False
    try:
        while True:
            status = look()
            show(status)
            if status.done or (held and not status.held):
                return
            held = held or status.held
            time.sleep(seconds)
    except KeyboardInterrupt:
        return
    finally:
        end()


def _drawn() -> tuple[Callable[[Status], None], Callable[[], None]]:
    live = Live(console=Terminal(), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    live.start()

    def show(status: Status) -> None:
        live.update(Text(status.text), refresh=True)

    return show, live.stop


def _printed() -> tuple[Callable[[Status], None], Callable[[], None]]:
    before: frozenset[str] | None = None

    def show(status: Status) -> None:
        nonlocal before
        now = time.strftime("%H:%M:%S")
        for line in status.lines:
            if before is None:
                print(line.text)
            elif line.said not in before:
                print(f"{now} {line.text.strip()}")
        print(end="", flush=True)
        before = frozenset(line.said for line in status.lines)

    return show, lambda: None
