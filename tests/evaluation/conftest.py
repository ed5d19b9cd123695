"""A small Llama with seeded random weights and a byte-level BPE tokenizer trained on the sentences below."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.data.tokens import Encoder, make_encoder

SENTENCES = """The river rises in the hills north of the town and reaches the sea after forty miles.
A bridge of stone was built in 1784, and the road over it still carries the market traffic on Saturdays.
In spring the meadows beside the water stand under a foot of snow melt, and herons fish among the reeds.
The mill ground wheat for six villages until the railway brought cheaper flour from the coast.
Its wheel was sold for scrap in the war, but the pond, the sluice and the miller's house remain.
Children learn to swim where the current turns slow behind the island of willows.
Above the town the valley narrows, and the path climbs through beech woods to an old lead mine.
Nobody has worked the mine since 1901; bats live in its upper gallery now.
From the ridge one sees the lighthouse, the harbour and, on a clear day, the mountains across the bay.
The ferry crosses twice a day in summer and once a week in winter, when the wind allows it.""".splitlines()


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """310 tokens, no padding token, and an end token that is set but never added to a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Documents without a BOS, each ended by the end token."""
    return make_encoder(tokenizer)


@pytest.fixture(scope="session")
def fresh_model(tokenizer: PreTrainedTokenizerFast) -> Callable[[], LlamaForCausalLM]:
    """Builds the same model at each call."""
    return lambda: build_model(len(tokenizer))


def build_model(vocabulary: int) -> LlamaForCausalLM:
    # A wide initial range gives logits that differ well beyond rounding; dropout shows a forgotten eval().
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.5,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(20)
    return LlamaForCausalLM(config)


@pytest.fixture
def model(fresh_model: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    """In training mode, as a training loop hands it over."""
    return fresh_model().train()


@pytest.fixture(scope="session")
def rows(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Seven rows of 24 tokens: the sentences, one after the other, BOS where each begins."""
    stream = [token for sentence in SENTENCES for token in (0, *tokenizer(sentence)["input_ids"])]
    return torch.tensor(stream[: 7 * 24], dtype=torch.int64).view(7, 24)
