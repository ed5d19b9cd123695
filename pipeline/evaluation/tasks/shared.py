"""lm-eval's model around one that stands in memory, its batches shared by processes and kept as they are done.

Which requests stand in a batch decides how they are padded, and so the last digits. Batches are formed of all requests,
as lm-eval forms them, before any process takes one: figures are the same on any number of processes, behind any number
of kills, and on lm-eval's own command line with the same batch size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.figures import computed_by
from pipeline.evaluation.tasks.answers import Answers, batch_key
from pipeline.evaluation.tasks.definitions import harness
from pipeline.world import World

#: A request as lm-eval has tokenized it: its texts, the ids of its context, and those of what is to follow.
Tokenized = tuple[tuple[str, str], list[int], list[int]]


class SharedModel(HFLM):
    """A Hugging Face model that answers lm-eval's requests on every process of ``world`` at once: each must be asked
    the same, computes its share of the batches, and gets all answers. ``at`` is told which batch is at work;
    ``between`` is called before each, on every process as often."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int,
        world: World,
        answers: Answers,
        at: Callable[[str], None],
        between: Callable[[], None] = lambda: None,
    ):
        kind = model.device.type
        # lm-eval switches autocast off, unless it is told of it.
        computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, mixed_precision_dtype=computed
        )
        # What decides the last digits: answers that were given otherwise are not taken for these.
        self._given_by = [computed_by(world.device), str(computed or model.dtype), harness()]
        self._batch, self._shared_by, self._answers, self._at = batch, world, answers, at
        self._between = between

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As lm-eval does, without its bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """As lm-eval does, without its bar; it asks for one batch after the other, so that nothing is shared."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Tokenized], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(logarithm of the probability, whether it is the likeliest) of each request's continuation."""
        batches = token_batches(requests, override_bs or self._batch, self.logits_cache)

        def compute(batch: list[int]) -> list[Any]:
            chosen = [requests[place] for place in batch]
            return super(SharedModel, self)._loglikelihood_tokens(chosen, disable_tqdm=True, override_bs=override_bs)

        def content(batch: list[int]) -> Any:
            return ["loglikelihood", self._given_by, [requests[place][1:] for place in batch]]

        return [tuple(answer) for answer in self._share(len(requests), batches, compute, content)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text that the model puts behind each request's."""
        batches = text_batches(requests, self._batch, self.tok_encode)

        def compute(batch: list[int]) -> list[Any]:
            chosen = [requests[place] for place in batch]
            return super(SharedModel, self).generate_until(chosen, disable_tqdm=True)

        def content(batch: list[int]) -> Any:
            return ["generate", self._given_by, [requests[place].args for place in batch]]

        return self._share(len(requests), batches, compute, content)

    def _share(
        self,
        requests: int,
        batches: list[list[int]],
        compute: Callable[[list[int]], list[Any]],
        content: Callable[[list[int]], Any],
    ) -> list[Any]:
        """Answers to ``requests`` requests, whose places stand in ``batches``."""
        keys = [batch_key(content(batch)) for batch in batches]
        # What a process has read of others' files may not be what they have read.
        known = [set(part) for part in self._shared_by.gather([key for key in keys if self._answers.get(key)])]
        due = [number for number, key in enumerate(keys) if not all(key in part for part in known)]
        mine: dict[int, list[Any]] = {}
        for first in range(0, len(due), self._shared_by.size):
            self._between()
            turn = first + self._shared_by.rank
            if turn >= len(due):
                break
            number = due[turn]
            self._at(f"batch {turn + 1} of {len(due)}")
            found = self._answers.get(keys[number])
            if found is None:
                found = compute(batches[number])
                self._answers.add(keys[number], found)
            mine[number] = found
        done = {number: found for part in self._shared_by.gather(mine) for number, found in part.items()}
        answers: list[Any] = [None] * requests
        for number, batch in enumerate(batches):
            found = done[number] if number in done else self._answers.get(keys[number])
            for place, answer in zip(batch, found, strict=True):
                answers[place] = answer
        return answers


def token_batches(requests: Sequence[Tokenized], size: int, by_context: bool) -> list[list[int]]:
    """Places of requests, batch by batch, as lm-eval forms them: the longest first; and ``by_context`` those whose
    tokens are the same but for the last one stand in one place."""
    keyed = [(place, context, rest) for place, (_, context, rest) in enumerate(requests)]
    collator = Collator(
        keyed,
        sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
        group_by="contexts" if by_context else None,
        group_fn=lambda request: request[1] + request[2][:-1],
    )
    together: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, context, rest in keyed:
        together[tuple(context + rest[:-1])].append(place)
    return [
        [
            place
            for first, context, rest in batch
            for place in (together[tuple(context + rest[:-1])] if by_context else [first])
        ]
        for batch in collator.get_batched(n=size)
    ]


def text_batches(requests: Sequence[Instance], size: int, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Places of requests for text, batch by batch, as lm-eval forms them: the longest first of what is made alike."""
    collator = Collator(
        [(*request.args, place) for place, request in enumerate(requests)],
        sort_fn=lambda request: (-len(encode(request[0])), request[0]),
        group_by="gen_kwargs",
        group_fn=lambda request: request[1],
    )
    return [[request[2] for request in batch] for batch in collator.get_batched(n=size)]
