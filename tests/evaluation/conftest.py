"""A small Llama with seeded random weights and a byte-level BPE tokenizer trained on the sentences below."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipeline.data.tokens import Encoder, make_encoder
from tests.families import build
from tests.tiny import train_tokenizer

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
    return train_tokenizer(SENTENCES, 310)


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Documents without a BOS, each ended by the end token."""
    return make_encoder(tokenizer)


@pytest.fixture(scope="session")
def fresh_model(tokenizer: PreTrainedTokenizerFast) -> Callable[[], PreTrainedModel]:
    """Builds the same model at each call."""
    # A wide range of weights gives logits that differ well beyond rounding; dropout shows a forgotten eval().
    shape = {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "attention_dropout": 0.5, "pad_token_id": None}
    return lambda: build("llama", spread=0.3, **shape)


@pytest.fixture
def model(fresh_model: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """In training mode, as a training loop hands it over."""
    return fresh_model().train()


@pytest.fixture(scope="session")
def rows(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Seven rows of 24 tokens: the sentences, one after the other, BOS where each begins."""
    stream = [token for sentence in SENTENCES for token in (0, *tokenizer(sentence)["input_ids"])]
    return torch.tensor(stream[: 7 * 24], dtype=torch.int64).view(7, 24)
