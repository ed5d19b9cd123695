"""Head and loss as one operation, against whole logits: values, gradients, what is held, and every family's head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import head as room
from pipeline.model.head import Head, chunk_length, find_head, losses_at
from pipeline.model.loss import NO_TARGET, next_tokens, token_losses
from tests.families import FAMILIES, OTHERS, build

WIDTH, ROWS, LENGTH = 24, 3, 16


class Model(nn.Module):
    """States come in as they are: a model whose only part is a head."""

    def __init__(self, vocabulary: int, bias: bool, tied: bool):
        super().__init__()
        torch.manual_seed(vocabulary)
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.last = nn.Linear(WIDTH, vocabulary, bias=bias)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.words(input_ids)))


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of six tokens or so, of the 48 that there are."""
    monkeypatch.setattr(room, "CHUNK", room.PLAIN * 1000 * 6)


def targets_of(ids: torch.Tensor) -> torch.Tensor:
    """The next tokens, some of them left out, and one row without any."""
    targets = next_tokens(ids, torch.rand(ROWS, LENGTH - 1, generator=torch.Generator().manual_seed(1)) > 0.3)
    targets[1] = NO_TARGET
    return targets


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.double().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("vocabulary", "bias", "tied", "scale", "cap"),
    [
        (97, True, False, 1.0, None),
        (1000, False, True, 1.0, None),
        (1000, False, False, 0.25, None),
        (4096, True, True, 1.0, 2.0),
        (5003, False, False, 3.0, 1.5),
    ],
)
def test_values_and_gradients_are_those_of_whole_logits(small_chunks, vocabulary, bias, tied, scale, cap, dtype):
    model = Model(vocabulary, bias, tied).to(dtype)
    head, ids = Head(model.last, scale, cap), torch.randint(0, vocabulary, (ROWS, LENGTH))
    targets, factor = targets_of(ids), 1 / 7
    whole = token_losses(head.logits(model(ids)), targets).sum()
    wanted = gradients(model, whole * factor)
    with losses_at(head, targets, factor) as taken:
        thin = model(ids)
    found = gradients(model, taken.objective)
    assert thin.shape == (ROWS, LENGTH, 1), "the logits were made after all"
    near = 3e-6 if dtype == torch.float32 else 1e-2
    assert float(taken.total) == pytest.approx(float(whole), rel=near)
    for name, gradient in wanted.items():
        error = float((found[name] - gradient).norm() / gradient.norm())
        assert error < near, f"gradient of {name} is off by {error:.1e} of its norm"


def test_a_token_without_a_target_has_no_loss_and_no_gradient(small_chunks):
    model = Model(1000, bias=True, tied=False)
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    targets = targets_of(ids)
    with losses_at(Head(model.last), targets) as taken:
        model(ids)
    taken.objective.backward()
    felt = model.words.weight.grad[: ROWS * LENGTH].abs().sum(dim=1).view(ROWS, LENGTH) > 0
    assert torch.equal(felt, targets != NO_TARGET), "a token without a target is felt, or one with it is not"
    with torch.no_grad(), losses_at(Head(model.last), targets) as taken:
        model(ids)
    assert torch.equal(taken.losses != 0, targets != NO_TARGET)


def test_without_gradients_the_losses_are_those_of_whole_logits(small_chunks):
    model = Model(1000, bias=True, tied=False)
    ids = torch.randint(0, 1000, (ROWS, LENGTH))
    with torch.no_grad():
        wanted = token_losses(model(ids), next_tokens(ids))
        with losses_at(Head(model.last), next_tokens(ids)) as taken:
            model(ids)
    torch.testing.assert_close(taken.losses, wanted, rtol=1e-6, atol=0)
    assert model(ids).shape == (ROWS, LENGTH, 1000), "the head is not what it was"


@pytest.mark.parametrize("autocast", [False, True])
def test_sums_over_chunks_are_in_fp32(monkeypatch, autocast):
    """One token a chunk: sums in bf16 would be off by several percent."""
    monkeypatch.setattr(room, "CHUNK", 4)
    model, ids = Model(64, bias=True, tied=False), torch.randint(0, 64, (8, 128))
    model = model if autocast else model.bfloat16()
    with losses_at(Head(model.last), next_tokens(ids)) as taken, torch.autocast("cpu", torch.bfloat16, autocast):
        model(ids)
    found = gradients(model, taken.objective)
    wanted = gradients(model.double(), F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) * 1016)
    for name in ("last.weight", "last.bias"):
        error = float((found[name] - wanted[name]).norm() / wanted[name].norm())
        assert error < 6e-3, f"gradient of {name} is off by {error:.1e} of its norm"


class Largest(TorchDispatchMode):
    """The most values that a tensor of any operation has."""

    values = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return made


@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_is_as_large_as_the_logits_of_all_tokens(small_chunks, training):
    model = Model(1000, bias=False, tied=True)
    ids = torch.randint(0, 1000, (ROWS, LENGTH))
    with Largest() as largest, torch.set_grad_enabled(training), losses_at(Head(model.last), next_tokens(ids)) as taken:
        model(ids)
        if training:
            taken.objective.backward()
    assert largest.values == 1000 * WIDTH, "the head's own weight is to be the largest"


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "length"),
    [(16384, 32000, 4096), (16384, 262144, 512), (4096, 151936, 512), (2, 10**10, 1), (1021, 262144, 585)],
)
def test_chunks_are_equal_and_of_bounded_size(tokens, vocabulary, length):
    assert chunk_length(tokens, vocabulary) == length


def test_compiled_chunks_are_longer_since_they_write_less():
    assert chunk_length(16384, 32000, room.COMPILED) == 16384, "8 rows of 2,048 tokens of Llama's are one chunk"
    assert chunk_length(16384, 262144, room.COMPILED) == 2048


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_every_familys_head_is_known(family, dtype):
    head = find_head(build(family).to(dtype))
    assert head is not None, "whole logits would be computed"
    assert (head.scale != 1) == (family == "cohere2") and (head.cap is not None) == (family == "gemma2"), str(head)


def test_a_factor_that_divides_is_told_from_one_that_multiplies():
    assert find_head(build("granite", logits_scaling=8.0)).scale == 1 / 8
    assert find_head(build("cohere2", logit_scale=0.5)).scale == 0.5


def test_a_head_that_something_unknown_follows_is_not_taken():
    model = build("llama")
    forward = model.forward

    def warmer(**arguments):
        output = forward(**arguments)
        output.logits = output.logits / 0.7
        return output

    model.forward = warmer
    assert find_head(model) is None
    model.train()
    model.forward = forward
    assert find_head(model) is not None and model.training, "the model is not left as it was"
    model.lm_head = nn.Sequential(model.lm_head)
    assert find_head(model) is None, "only a plain product can be taken in chunks"
