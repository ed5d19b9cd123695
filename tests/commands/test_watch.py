"""A status that goes on: each change once, and an end with the run or with Ctrl-C."""

from __future__ import annotations

import pytest

from pipeline.commands.status import Status
from pipeline.commands.telling import Line
from pipeline.commands.watch import watch
from tests.terminal import on_terminal

HEAD, NOBODY = Line("run tiny in runs/tiny"), Line("  no command works in it now")
HELD = Line("  in use by host here pid 7", "; log.txt was written 1 s ago")


def at(step: int, held: bool = True, done: bool = False) -> Status:
    lines = (HEAD, HELD if held else NOBODY, Line(f"  train     begun     step {step} of 8", f", {step} s ago"))
    return Status(lines, held, done)


@pytest.mark.parametrize(
    ("looks", "changes"),
    [
        ([at(1), at(2), at(2), at(3, held=False)], ["step 2", "no command", "step 3"]),
        ([at(1), at(2, done=True)], ["step 2"]),
        ([at(0, held=False), at(0, held=False), at(1), at(1, held=False)], ["in use by", "step 1", "no command"]),
        ([at(8, held=False, done=True)], []),
        ([at(1), at(2), KeyboardInterrupt()], ["step 2"]),
    ],
    ids=["its command ends", "it is done", "it is waited for", "it was done", "Ctrl-C"],
)
def test_each_change_is_a_line_until_the_run_ends(capsys, looks, changes):
    left = iter(looks)

    def look() -> Status:
        found = next(left)
        if isinstance(found, KeyboardInterrupt):
            raise found
        return found

    watch(look, seconds=0)
    first, *lines = [line for line in capsys.readouterr().out.splitlines()]
    assert first == HEAD.said
    told = lines[2:]
    assert len(told) == len(changes) and all(change in line for change, line in zip(changes, told, strict=True)), told
    assert next(left, None) is None, "it ended before the run did"


def test_on_a_terminal_it_is_drawn_in_its_place():
    program = (
        "from tests.commands.test_watch import at\n"
        "from pipeline.commands.watch import watch\n"
        "looks = iter([at(1), at(2), at(3, held=False)])\n"
        "watch(lambda: next(looks), 0)\n"
    )
    printed = on_terminal("-c", program)
    assert printed.count("\x1b[1A\x1b[2K") >= 4, "the lines of before are still there"
    assert "step 3 of 8" in printed.rpartition("\x1b[2K")[2], "the last state does not stay"
