"""What a command shows of its work: plain lines, and on a terminal colours, and a bar for lines that count.

A line that counts says what, how far and of how many: ``step 12 of 24: loss 3.4``. On a terminal it moves the bar below
the other lines and takes no line of its own; anywhere else every line is printed as it is.
"""

from __future__ import annotations

import os
import re
import sys

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

#: What, how far, of how many, and the rest of a line that counts.
COUNTING = re.compile(r"(?P<what>[a-z-]+) (?P<done>\d+) of (?P<of>\d+)(?::|$)\s*(?P<rest>.*)")


def on_terminal() -> bool:
    """Whether standard output is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Terminal(Console):
    """Rich's console on standard output, that leaves the cursor alone: a process that is killed could not bring it
    back. Without colours where NO_COLOR is set."""

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, highlight=False, markup=False, emoji=False)

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Display:
    """What one process shows. ``say`` may be called from any thread."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._counted = ""

    def say(self, topic: str, line: str) -> None:
        """Show a line on ``topic``, a stage's name say."""
        if not on_terminal():
            print(f"[{topic}] {line}", flush=True)
            return
        counting = COUNTING.fullmatch(line)
        if counting is None:
            console = Terminal() if self._live is None else self._live.console
            console.print(Text.assemble((f"[{topic}]", "bold cyan"), f" {line}"), soft_wrap=True)
        else:
            self._count(topic, counting)

    def _count(self, topic: str, line: re.Match[str]) -> None:
        """Move the bar, or draw one; that of something else stays as it stood."""
        counted = f"{topic} {line['what']} {line['of']}"
        if self._live is None or self._counted != counted:
            self.close()
            self._counted = counted
            # Nothing is drawn between lines: a thread for it would take its turn from the work.
            self._live = Live(console=Terminal(), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._live.update(_bar(topic, line), refresh=True)
        if line["done"] == line["of"]:
            self.close()

    def close(self) -> None:
        """The bar stays as it stands; what is shown next comes below it."""
        if self._live is not None:
            self._live.stop()
            self._live, self._counted = None, ""


#: A process has one standard output.
display = Display()


def _bar(topic: str, line: re.Match[str]) -> Group:
    """Topic, bar and count in one row of the terminal, and what else the line says below."""
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=int(line["of"]), completed=int(line["done"]), complete_style="cyan", finished_style="green")
    row.add_row(Text(f"[{topic}]", "bold cyan"), bar, f"{line['what']} {line['done']} of {line['of']}")
    # Another process's message is printed behind it.
    rest = Text(f"{line['rest']}  ", "dim", no_wrap=True, overflow="ellipsis")
    return Group(row, *([rest] if line["rest"] else []))
