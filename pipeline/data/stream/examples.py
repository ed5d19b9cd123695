"""Examples: a prompt and its response in a row of their own, of which the response alone is trained on.

What is left of a row is padding. It stands behind the example, where causal attention keeps every token of the example
from seeing it, so that it needs no mask; and it is no target. An example that is longer than a row is cut, and one
whose prompt alone fills the row leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from pipeline.data.instructions import Exchange
from pipeline.data.stream.position import Cursor
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError


@dataclass(frozen=True)
class Example:
    """An exchange as ids (N,) int64, of which the first ``prompt`` are no targets."""

    ids: np.ndarray
    prompt: int

    def __len__(self) -> int:
        return len(self.ids)


def encode_examples(encoder: Encoder, texts: Sequence[Exchange]) -> Iterator[Example]:
    """Each exchange encoded as any document, in one piece: [bos] prompt response separator.

    The prompt's tokens are those that it has by itself as well: one that reaches over into the response is a target.
    """
    leading = 0 if encoder.bos is None else 1
    prompts = encoder.inside([str(text)[: text.prompt] for text in texts])
    for ids, alone in zip(encoder.batch(texts), prompts, strict=True):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[leading:], alone, strict=False)))
        yield Example(np.array(ids, dtype=np.int64), leading + same)


def one_a_row(
    documents: Iterable[tuple[tuple[int, int, int], int, Example]], row_length: int, padding: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Cursor, np.ndarray]]:
    """Rows: ids (row_length,) int64, cu_seqlens int32 (the example, the padding), the cursor behind the row, and which
    tokens are targets (row_length,) bool.

    A document is ((epoch, part, document), first token to take, example): the row of one that was taken is given
    already. RegrowError where a whole epoch has not one row.
    """
    begun, given = None, False
    for place, taken, example in documents:
        begun = place[0] if begun is None else begun
        if not given and place[0] > begun + 1:
            raise RegrowError(
                f"data.row_length {row_length}: the prompt of every example of a lane fills a row, so that no response "
                "is left to train on; raise it"
            )
        if taken >= len(example) or example.prompt >= min(len(example), row_length):
            continue
        given = True
        length = min(len(example), row_length)
        row, counted = np.full(row_length, padding, dtype=np.int64), np.zeros(row_length, dtype=bool)
        row[:length], counted[example.prompt : length] = example.ids[:length], True
        edges = [0, length, *([row_length] if length < row_length else [])]
        yield row, np.array(edges, dtype=np.int32), Cursor(*place, len(example)), counted
