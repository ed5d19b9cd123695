"""The one error that people meet, and the reason that another error gives, in a line."""

from __future__ import annotations

import re


class RegrowError(Exception):
    """A failure that its message explains to the person who meets it: what, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class's name; without the query of a URL, which may be a key."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", line)
