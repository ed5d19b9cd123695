"""The keys of a config that an error of the library is about, which itself speaks of arguments alone."""

from __future__ import annotations

from pipeline.errors import RegrowError

#: By ``RegrowError.about``.
KEYS = {
    "attention": "model.attention",
    "code": "model.trust_remote_code",
    "linear": "prune.linear, prune.protect_first",
    "perplexity": "prune.perplexity",
    "scoring": "score.dtype",
    "uniform": "prune.criterion, prune.remove",
    "windows": "score.ppl_n, score.linear_n",
}


def name_keys(error: RegrowError) -> None:
    """Have an error's message end in the keys that it is about, once."""
    if error.about is not None:
        error.args = (f"{error} (in a config: {KEYS[error.about]})",)
        error.about = None
