"""Perplexity of what a notebook has: to the bit the evaluation's, for every form of the same ids."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, BertConfig, BertForMaskedLM

from pipeline.errors import RegrowError
from pipeline.evaluation.notebook import perplexity
from pipeline.evaluation.perplexity import perplexity as of_rows
from pipeline.importance.scoring import score_blocks
from pipeline.model.head import find_head
from tests.families import VOCABULARY, build

IDS = torch.randint(0, VOCABULARY, (7, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return build("llama")


def test_it_is_what_the_evaluation_finds(model):
    found = perplexity(model, IDS.split(3))
    assert found == of_rows(model, IDS, micro_batch=3, device="cpu", head=find_head(model))
    with torch.no_grad():
        logits = model(IDS).logits[:, :-1].double()
    losses = F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    assert found["value"] == pytest.approx(losses.exp().item(), rel=1e-6)
    assert (found["tokens"], found["rows"], found["length"]) == (7 * 15, 7, 16)
    assert perplexity(model, [{"input_ids": row} for row in IDS.tolist()])["value"] == pytest.approx(found["value"])


def test_sequences_of_several_lengths_count_by_their_tokens(model):
    parts = [IDS[:2], IDS[2:3, :9], IDS[3:5, :4], IDS[5:]]
    found, alone = perplexity(model, parts), [perplexity(model, part) for part in parts]
    total = sum(one["loss"] * one["tokens"] for one in alone)
    assert found["tokens"] == sum(one["tokens"] for one in alone) == 2 * 15 + 8 + 2 * 3 + 2 * 15
    assert found["value"] == pytest.approx(math.exp(total / found["tokens"]))
    assert found["row_losses"] == pytest.approx([loss for one in alone for loss in one["row_losses"]])
    assert (found["rows"], found["length"], alone[1]["stderr"]) == (7, None, None)


def test_the_model_is_left_as_it_was(model):
    model.train()
    perplexity(model, IDS)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    model.eval()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (AutoModel, "LlamaModel has no head and predicts nothing; load_model"),
        (BertForMaskedLM, "BertForMaskedLM predicts a token from both sides of it"),
    ],
)
def test_a_model_that_predicts_no_next_token_is_refused(model, kind, words):
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    other = kind.from_config(model.config) if kind is AutoModel else kind(BertConfig(**small))
    for ask in (lambda: perplexity(other, IDS), lambda: score_blocks(other, IDS, progress=False)):
        with pytest.raises(RegrowError, match=words):
            ask()


def test_a_loss_that_is_no_number_is_refused():
    broken = build("llama")
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    with pytest.raises(RegrowError, match=r"row 0 of 7 has a loss of nan .* lm_head\.weight"):
        perplexity(broken, IDS)
