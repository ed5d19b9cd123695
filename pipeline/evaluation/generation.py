"""What a model writes, and how fast: greedy continuations of prompts, latency, throughput and peak memory.

Everything here is greedy with a KV cache. The settings that a checkpoint carries for chatting (temperature, penalties,
minimum lengths) are put aside for the call, so that the dense, the pruned and the regrown model are compared on what
they predict, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.perplexity import evaluating
from pipeline.run import RegrowError


def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    device: torch.device | str,
    end_token: int | None = None,
) -> list[dict[str, str]]:
    """Continue each prompt greedily by at most ``new_tokens`` tokens; an end-of-sequence token ends a text earlier.

    ``end_token`` is one more that ends it: the token that stood between documents in training.

    One prompt at a time, so that no padding touches the result. ``model`` stands on ``device``. Returns for each
    prompt ``{"prompt", "text"}``, where text is the continuation alone, without special tokens. RegrowError: a prompt
    without tokens, or one that does not fit the model's positions together with ``new_tokens``.
    """
    ends = sorted({*(_end_tokens(model, tokenizer) or ()), *([] if end_token is None else [end_token])})
    settings = _settings(new_tokens, ends or None, _pad_token(tokenizer))
    samples = []
    for prompt in prompts:
        ids = _encode(model, tokenizer, prompt, new_tokens)
        with _generating(model, settings):
            output = _generate(model, ids.to(device), settings)
        # The prompt is decoded along and cut off: alone, a first word would lose its space in SentencePiece.
        whole, before = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (output[0], ids[0]))
        text = whole[len(before) :] if whole.startswith(before) else whole
        samples.append({"prompt": prompt, "text": text})
    return samples


def measure_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str,
    new_tokens: int,
    batch: int,
    repeats: int,
    device: torch.device | str,
) -> dict[str, float | int | None]:
    """Time the greedy generation of exactly ``new_tokens`` tokens after ``batch`` copies of ``prompt``.

    End-of-sequence tokens are ignored, so that every model does the same work. One generation warms up, ``repeats``
    are timed, from the prompt on the device to the last token, with a GPU synchronised around each.

    Returns ``prompt_tokens``, ``new_tokens``, ``batch``, ``repeats``, ``latency_seconds`` (mean of one generation),
    ``latency_std`` (seconds, sample standard deviation; None for one repeat), ``tokens_per_second`` (batch x
    new_tokens / latency) and ``peak_memory_bytes``: the most memory that tensors held on the GPU in the timed runs,
    weights included. The last is None on a CPU: torch keeps no count there, and the process's own peak would tell of
    everything that it did before. RegrowError as ``generate_samples``, and for a batch or repeats below 1.
    """
    for name, number in (("batch", batch), ("repeats", repeats)):
        if number < 1:
            raise RegrowError(f"generation cannot be measured with {name} {number}; it must be 1 or more")
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    settings = _settings(new_tokens, None, _pad_token(tokenizer))
    ids = _encode(model, tokenizer, prompt, new_tokens).repeat(batch, 1).to(device)
    seconds = []
    with _generating(model, settings):
        output = _generate(model, ids, settings)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(repeats):
            if on_gpu:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            output = _generate(model, ids, settings)
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    latency = statistics.fmean(seconds)
    made = output.shape[1] - ids.shape[1]
    return {
        "prompt_tokens": ids.shape[1],
        "new_tokens": made,
        "batch": batch,
        "latency_seconds": latency,
        "latency_std": statistics.stdev(seconds) if repeats > 1 else None,
        "tokens_per_second": batch * made / latency,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "repeats": repeats,
    }


def _settings(new_tokens: int, end_tokens: list[int] | None, pad_token: int) -> GenerationConfig:
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
        pad_token_id=pad_token,
    )


@contextlib.contextmanager
def _generating(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Evaluation mode, with the model's own generation settings put aside: generate fills gaps from those."""
    own = model.generation_config
    model.generation_config = settings
    try:
        with evaluating(model):
            yield
    finally:
        model.generation_config = own


def _generate(model: PreTrainedModel, ids: torch.Tensor, settings: GenerationConfig) -> torch.Tensor:
    """(batch, prompt) int64 in, (batch, prompt + new) int64 out; every token of the prompt is attended to."""
    output: Any = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output


def _encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int) -> torch.Tensor:
    """The prompt's tokens as the tokenizer begins a text (BOS where it sets one): (1, tokens) int64 on the CPU."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.int64)
    if ids.shape[1] == 0:
        raise RegrowError(f"prompt {prompt!r} has no tokens, and the tokenizer sets no BOS; give it some text")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and ids.shape[1] + new_tokens > positions:
        raise RegrowError(
            f"prompt {prompt[:40]!r} has {ids.shape[1]} tokens and {new_tokens} are to follow, but the model has only "
            f"{positions} positions; shorten the prompt or lower evaluate.generation.new_tokens"
        )
    return ids


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """All end-of-sequence ids that the model's settings or the tokenizer name; chat models often have several."""
    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [own]
    return sorted({token for token in (*named, tokenizer.eos_token_id) if token is not None}) or None


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id for generate, which asks for one. It is never written: no batch here holds texts of unlike lengths."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None), 0)
