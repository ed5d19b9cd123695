"""A teacher's answer in draws: the loss against plain torch, and unbiased as the likeliest ids are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.model import head as room
from pipeline.model.head import Head
from pipeline.model.lesson import Lesson, with_lesson
from pipeline.model.loss import NO_TARGET
from pipeline.model.sampled import PLAIN, Sampled, divergences_by_samples, draw, padded, with_samples
from tests.model.objectives import TOKENS, assert_those_of_whole_logits

SAMPLES = 12


def drawn(logits: torch.Tensor, temperature: float, seed: int = 0, samples: int = SAMPLES) -> Sampled:
    """Draws of the softmax of logits over the temperature."""
    uniforms = np.random.default_rng(seed).random((len(logits), samples))
    ids, counts, different, entropies = draw(logits, uniforms, temperature)
    tables = [torch.from_numpy(padded(values, different, samples)) for values in (ids.astype(np.int32), counts)]
    return Sampled(*tables, torch.from_numpy(entropies), samples, logits.shape[1])


def likeliest(logits: torch.Tensor, temperature: float) -> Sampled:
    """The ids that have most of the softmax, with their shares of what they have together: what is not done."""
    shares, ids = (logits / temperature).softmax(dim=1).topk(SAMPLES, dim=1)
    return Sampled(ids.int(), shares / shares.sum(dim=1, keepdim=True), torch.zeros(len(logits)), 1, logits.shape[1])


def plain(logits, sampled, targets, share, temperature):
    """Loss, divergence and objective, summed over targets, by torch's own functions and whole logits."""
    counted = targets != NO_TARGET
    loss = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="sum")
    meant = torch.zeros(len(logits), sampled.vocabulary)
    meant.scatter_add_(1, sampled.ids.long(), sampled.counts.float() / sampled.samples)
    away = F.cross_entropy(logits[:, : sampled.vocabulary] / temperature, meant, reduction="none")
    divergence = (away - sampled.entropies.float())[counted].sum()
    return loss, divergence, (1 - share) * loss + share * temperature**2 * divergence


@pytest.mark.parametrize(("share", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
@pytest.mark.parametrize(
    ("vocabulary", "both", "scale", "cap"), [(97, 97, 1.0, None), (1024, 1000, 3.0, 1.5), (4096, 4096, 0.25, None)]
)
@pytest.mark.parametrize("chunk", [6, TOKENS])
def test_values_and_gradients_are_those_of_whole_logits(
    monkeypatch, chunk, vocabulary, both, scale, cap, share, temperature
):
    monkeypatch.setattr(room, "CHUNK", (room.PLAIN + PLAIN) * vocabulary * chunk)
    torch.manual_seed(both)
    sampled = drawn(2 * torch.randn(TOKENS, both), temperature)
    lesson = Lesson(sampled.between, share, temperature, with_samples, PLAIN, divergences_by_samples)
    logits, targets, divergence = assert_those_of_whole_logits(
        lesson, lambda logits, targets: plain(logits, sampled, targets, share, temperature), vocabulary, scale, cap
    )
    assert float(lesson.divergence(logits, targets)) == pytest.approx(float(divergence), rel=1e-5)


def test_in_the_mean_it_is_what_the_whole_softmax_gives():
    """Over many draws gradient and divergence are the dense ones within their standard errors; the likeliest ids, of
    which there are as many, give another gradient by far more."""
    torch.manual_seed(0)
    draws, positions, vocabulary, temperature = 600, 6, 60, 1.4
    taught, product = 1.5 * torch.randn(positions, vocabulary), torch.randn(positions, vocabulary)
    head, targets, one = Head(nn.Linear(1, vocabulary)), torch.arange(positions), torch.ones(())

    def judged(judge, told) -> torch.Tensor:
        _, away, gradient = judge(product, targets, head, one, told, 0.8, temperature)
        return torch.cat([gradient.flatten(), away]).double()

    found = torch.stack([judged(with_samples, drawn(taught, temperature, seed)) for seed in range(draws)])
    dense, error = judged(with_lesson, taught), found.std(dim=0) / draws**0.5
    away = (found.mean(dim=0) - dense) / error.clamp_min(1e-9)
    assert float(away.abs().max()) < 5 and 0.7 < float(away.square().mean()) < 1.3, "the draws are biased"
    biased = (judged(with_samples, likeliest(taught, temperature)) - dense) / error.clamp_min(1e-9)
    gradients = biased[: positions * vocabulary]
    assert float(gradients.square().mean()) > 5, "the likeliest ids pass for unbiased: this shows nothing"


def test_what_is_drawn():
    """Each id once, in their order, as often as the uniforms say; nothing that has no share, not at the ends either."""
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    uniforms = np.array([[0.8, 0.1, np.nextafter(1.0, 0.0), 0.0, 0.6], [0.0, 0.5, np.nextafter(1.0, 0.0), 0.2, 0.3]])
    ids, counts, different, entropies = draw(shares.log(), uniforms, 1.0)
    assert (ids.tolist(), counts.tolist(), different.tolist()) == ([1, 3, 4, 2], [2, 1, 2, 5], [3, 1])
    assert entropies.tolist() == pytest.approx([1.5 * np.log(2), 0.0], rel=1e-3)
    assert padded(ids, different, 5).tolist() == [[1, 3, 4, 0, 0], [2, 0, 0, 0, 0]]


def test_rare_ids_of_a_large_vocabulary_have_their_share():
    """200,000 ids of which the last 100,000 have a millionth each: sums in fp32 would move them by a tenth."""
    shares = torch.cat([torch.full((100_000,), 9e-6), torch.full((100_000,), 1e-6)])
    ids, counts, *_ = draw(shares.log()[None], np.linspace(0, 1, 255, endpoint=False)[None], 1.0)
    assert int(counts[ids >= 100_000].sum()) in (25, 26) and ids.max() < 200_000


def test_an_answer_to_try_with_is_one():
    alike = Sampled.alike(4, 3, 10)
    assert alike.counts.sum(dim=1).tolist() == [3] * 4 and alike.between(1, 3).ids.shape == (2, 3)
