"""What models are judged on: the held-out rows, and the rows of every other text of evaluate.perplexity."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from pipeline.config import Config
from pipeline.data.corpus.local import local_files
from pipeline.data.shards import without_secrets
from pipeline.data.tokens import Encoder, make_encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.texts import TextPlace, Unavailable, documents, local_texts
from pipeline.evaluation.windows import Protocol, TextRows, TooShort, text_rows
from pipeline.files import hash_json
from pipeline.inputs import Inputs
from pipeline.run import Run


def text_places(config: Config) -> dict[str, TextPlace]:
    """Where each text beside the held-out one is, by its name."""
    return {
        name: TextPlace(
            f"evaluate.perplexity.{name}",
            text.text,
            text.dataset,
            text.subset,
            text.split,
            text.revision,
            text.column,
        )
        for name, text in config.evaluate.perplexity.texts.items()
    }


def text_hashes(config: Config, run: Run) -> dict[str, str]:
    """sha256 of each file of the local texts, by the text's key and the file's name."""
    local = [place for place in text_places(config).values() if place.path is not None]
    return {
        f"{place.key}/{number}/{path.name}": run.hash_of(path)
        for place in local
        for number, path in enumerate(local_texts(place))
    }


def judged_texts(text: Inputs, say: Callable[[str], None]) -> tuple[dict[str, TextRows], dict[str, str]]:
    """The rows of every text, those that are held out first; and of the hub's texts that cannot be had, or are too
    short for a row, why.

    RegrowError where nothing is held out, and as ``documents`` and ``text_rows``.
    """
    asked = text.config.evaluate.perplexity.held_out
    texts = {"held_out": held_out_text(text, asked.length or text.config.data.row_length, asked.bos, asked.rows)}
    left_out = {}
    for name, place in text_places(text.config).items():
        try:
            texts[name] = _rows(text.config, name, text.encoder, _protocol(text.config, name))
        except (Unavailable, TooShort) as error:
            # A local text may have been cut short since it was looked at.
            if place.path is not None:
                raise
            left_out[name] = str(error).removeprefix(f"{place.key}: ")
            say(f"left out: {place.key}: {left_out[name]}")
    return texts, left_out


def check_judged_texts(config: Config, encoder: Encoder | None, elsewhere: bool = False) -> list[str]:
    """Read each local text as far as it will be judged, without encoding more of it than its first row where it is
    judged whole. Returns a line on each that is not here.

    RegrowError where a path is not there (``elsewhere``: unless it may be on another machine), where a file cannot be
    read or is too short for a row, and where this tokenizer cannot give the rows. Without ``encoder`` texts are looked
    for and not read.
    """
    lines = []
    for name, place in text_places(config).items():
        protocol = _protocol(config, name)
        if encoder is not None:
            protocol.cut(encoder, place.key)
        if place.path is None:
            lines.append(
                f"{place.key}: stage evaluate asks the hub for {place.dataset}; if it is not had, or is too short for "
                "a row, it is left out"
            )
        elif elsewhere and local_files(place.path, "**") is None:
            lines.append(f"{place.key}: {place.path} is not on this machine")
        elif local_texts(place) and encoder is not None:
            _rows(config, name, encoder, replace(protocol, rows=protocol.rows or 1))
            if protocol.rows is None:
                # Damage, or a record without text, in a later file would else end the run at its last stage.
                deque(documents(place), maxlen=0)
    return lines


def _protocol(config: Config, name: str) -> Protocol:
    asked = config.evaluate.perplexity.texts[name]
    return Protocol(asked.length or config.data.row_length, asked.stride, asked.bos, asked.rows, asked.join)


def _rows(config: Config, name: str, encoder: Encoder, protocol: Protocol) -> TextRows:
    place = text_places(config)[name]
    special_tokens = config.evaluate.perplexity.texts[name].special_tokens
    own = make_encoder(encoder.tokenizer, config.data.separator, special_tokens)
    made = text_rows(documents(place), own, protocol, place.key)
    return replace(made, about={**made.about, "text": place.about | made.about["text"]})


def held_out_text(text: Inputs, length: int, bos: str, count: int | None) -> TextRows:
    """The held-out rows, at most ``count`` of ``length`` tokens; the ``sha256`` in what is said of them is of the
    manifest's list of the files, which pins the content of each. RegrowError where nothing is held out."""
    rows = text.held_out_rows(length, bos, count)
    if rows is None:
        raise RegrowError("evaluate: data.held_out is not set, so there is nothing to compute a perplexity on")
    path, sha256 = without_secrets(text.config.data.held_out.path), hash_json(text.manifest["held_out"])
    about = {
        "stride": rows.shape[1] - (bos == "every"),
        "bos": bos,
        "left_over": None,
        "text": {"path": path, "sha256": sha256, "join": None},
    }
    return TextRows(rows, torch.ones(len(rows), dtype=torch.int64), about)
