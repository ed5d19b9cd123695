"""What a model writes: greedy continuations of prompts, with a KV cache.

The settings that a checkpoint carries for chatting (temperature, penalties, minimum lengths) are put aside for the
call, so that the dense, the pruned and the regrown model are compared on what they predict, and put back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.perplexity import evaluating


def generate_samples(
    model: PreTrainedModel, encoder: Encoder, prompts: Sequence[str], new_tokens: int, device: torch.device | str
) -> list[dict[str, str]]:
    """Continue each prompt greedily by at most ``new_tokens`` tokens; an end-of-sequence token ends a text earlier.

    So does the separator: the token that stood between documents in training. One prompt at a time, so that no padding
    touches the result. ``model`` stands on ``device``. Returns for each prompt ``{"prompt", "text"}``, where text is
    the continuation alone, without special tokens. RegrowError as ``encode_prompt``.
    """
    ends = sorted({*_end_tokens(model, encoder.tokenizer), encoder.separator})
    samples = []
    for prompt in prompts:
        ids = encode_prompt(model, encoder, prompt, new_tokens)
        with greedy(model, new_tokens, ends) as generate:
            output = generate(ids.to(device))
        samples.append({"prompt": prompt, "text": _behind(encoder.tokenizer, ids[0].tolist(), output[0].tolist())})
    return samples


def encode_prompt(model: PreTrainedModel, encoder: Encoder, prompt: str, new_tokens: int) -> torch.Tensor:
    """The prompt as a document begins, BOS where documents have one, and without an end: (1, tokens) int64 on the CPU.

    An empty prompt is the BOS alone. Of ``model`` the config is asked; it may stand on the meta device. RegrowError: no
    token, or no place for ``new_tokens`` behind them.
    """
    leading = [] if encoder.bos is None else [encoder.bos]
    ids = torch.tensor([[*leading, *next(encoder.inside([prompt]))]], dtype=torch.int64)
    if ids.shape[1] == 0:
        raise RegrowError(
            f"prompt {prompt!r} has no tokens, and this tokenizer puts no BOS before a text; give it some text in "
            "evaluate.generation.prompts"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and ids.shape[1] + new_tokens > positions:
        raise RegrowError(
            f"prompt {prompt[:40]!r} has {ids.shape[1]} tokens and {new_tokens} are to follow, but the model has only "
            f"{positions} positions; shorten the prompt or lower evaluate.generation.new_tokens"
        )
    return ids


@contextlib.contextmanager
def greedy(model: PreTrainedModel, new_tokens: int, ends: list[int] | None) -> Iterator[Callable[..., torch.Tensor]]:
    """Within it the model is in evaluation mode, and its own generation settings are put aside: generate fills gaps
    from those. Gives a function: (batch, prompt) int64 in, (batch, prompt + at most ``new_tokens``) int64 out; a second
    argument holds what is to be asked behind each token (transformers' stopping criteria).

    ``ends`` are the ids that end a text; None writes exactly ``new_tokens``. RegrowError for less than one.
    """
    settings = _settings(new_tokens, ends)

    def generate(ids: torch.Tensor, asked: Sequence[StoppingCriteria] = ()) -> torch.Tensor:
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList(asked),
        )

    own = model.generation_config
    model.generation_config = settings
    try:
        with evaluating(model):
            yield generate
    finally:
        model.generation_config = own


def _behind(tokenizer: PreTrainedTokenizerBase, prompt: list[int], whole: list[int]) -> str:
    """The text of ``whole`` behind its beginning, ``prompt``.

    The prompt is decoded along and cut off: alone, a first word would lose its space in SentencePiece. Spaces are not
    cleaned up, which would take them out of the prompt too.
    """

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    before, text = decoded(prompt), decoded(whole)
    # A decoder may still join the last of the prompt with what follows; then the ids say where to cut.
    return text[len(before) :] if text.startswith(before) else decoded(whole[len(prompt) :])


def _settings(new_tokens: int, end_tokens: list[int] | None) -> GenerationConfig:
    if new_tokens < 1:
        raise RegrowError(f"generation was asked for {new_tokens} new tokens; it must be 1 or more")
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        # None to write exactly new_tokens: there is nothing to stop at then. A minimum beside an end token would hold
        # the count too, but by setting that token's logit to -inf, and so change what is written.
        eos_token_id=end_tokens,
        # Generate asks for one, and never writes it: no batch here holds texts of unlike lengths.
        pad_token_id=0,
    )


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All end-of-sequence ids that the model's settings or the tokenizer name; chat models often have several."""
    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [own]
    return {token for token in (*named, tokenizer.eos_token_id) if token is not None}
