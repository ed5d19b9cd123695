"""The one error that people meet, and the reason that another error gives, in a line; what is printed meets none."""

from __future__ import annotations

import errno
import io
import re
import sys


class RegrowError(Exception):
    """A failure that its message explains to the person who meets it: what, where, and what to do.

    ``about`` is what it concerns, where the library met it and a config has keys for it: those are told beside it, to
    people who have a config (``config/naming.py``).
    """

    def __init__(self, message: str = "", about: str | None = None):
        super().__init__(message)
        self.about = about


def of_system(error: OSError) -> RegrowError:
    """What the system refused, in a line: a file by its name, what was to be printed, or whatever else it was."""
    if error.filename is not None:
        return RegrowError(f"{error.filename}: {error.strerror or error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return RegrowError(f"what there is to say cannot be written: {error.strerror}")
    return RegrowError(f"{type(error).__name__}: {first_line(error)}")


def print_any_letter() -> None:
    """From now on print a letter that standard output or error has no code for as its number (``\\u6a21``)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def for_a_file(text: str) -> str:
    """The text, for standard output, which is in UTF-8 from here on: an escaped letter would be another value."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next where it ends in a colon, or its class's name; without the
    query of a URL, which may be a key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    end = next((number for number, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    line = " ".join(lines[:end])
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", line)
