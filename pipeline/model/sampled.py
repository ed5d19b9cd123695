"""A teacher's answer in samples: a few ids drawn from its softmax at each position, and the loss of a student by them.

Of N ids that are drawn with replacement from the teacher's softmax p at the temperature, the shares p^ = counts / N are
p in expectation. The student's gradient q - p^ is linear in them, and so is q - p in expectation (Sparse Logit
Sampling, arXiv 2503.16870); the k likeliest ids would leave the tail out, and are not. Cross-entropy by p^, less the
entropy of the whole p that is kept beside, has KL(p || q) for its mean too: what is reported may be held against what
a teacher that is asked each time gives, but a single position's may be below zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.model.loss import ChunkLoss

if TYPE_CHECKING:
    from pipeline.model.head import Head

#: Bytes beside a chunk's own for each token and entry of the vocabulary: in fp32 the student's log-softmax and softmax
#: at the temperature. Compiled, nothing of it is written.
PLAIN, COMPILED = 8, 0
#: Bytes that drawing takes for each token and entry of the vocabulary: the product; in fp32 logits, log-softmax and
#: softmax; in fp64 the softmax and its running sums.
DRAWING = 32


@dataclass(frozen=True)
class Sampled:
    """What was drawn at n positions, ``samples`` times each, of a teacher's first ``vocabulary`` ids.

    ``ids`` (n, samples) int32, each once, and how often it was drawn: ``counts`` (n, samples) uint8, 0 behind the last.
    ``entropies`` (n,) fp16 of what was drawn from, in nats.
    """

    ids: torch.Tensor
    counts: torch.Tensor
    entropies: torch.Tensor
    samples: int
    vocabulary: int

    @classmethod
    def alike(cls, positions: int, samples: int, vocabulary: int) -> Sampled:
        """One id drawn each time, at all positions: an answer like another, to see what fits."""
        ids = torch.zeros(positions, samples, dtype=torch.int32)
        counts = ids.to(torch.uint8)
        counts[:, 0] = samples
        return cls(ids, counts, torch.zeros(positions, dtype=torch.float16), samples, vocabulary)

    def between(self, start: int, stop: int) -> Sampled:
        """Of the positions from ``start`` to ``stop``."""
        some = (tensor[start:stop] for tensor in (self.ids, self.counts, self.entropies))
        return Sampled(*some, self.samples, self.vocabulary)

    def pinned(self) -> Sampled:
        """The same in page-locked memory."""
        tensors = (tensor.pin_memory() for tensor in (self.ids, self.counts, self.entropies))
        return Sampled(*tensors, self.samples, self.vocabulary)

    def to(self, device: torch.device) -> Sampled:
        """The same on a device."""
        tensors = (tensor.to(device, non_blocking=True) for tensor in (self.ids, self.counts, self.entropies))
        return Sampled(*tensors, self.samples, self.vocabulary)


def draw(
    logits: torch.Tensor, uniforms: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids drawn from the softmax of logits (n, vocabulary) fp32 over the temperature, where ``uniforms`` (n, samples)
    fp64 in [0, 1) say.

    Returns, each once and in rising order, position behind position, the ids (m,) int64 and how often each was drawn
    (m,) uint8; how many a position has (n,) uint8; and its entropy (n,) fp16, in nats.
    """
    logarithms = F.log_softmax(logits / temperature, dim=1)
    shares = logarithms.exp()
    entropies = -(shares * logarithms.masked_fill(shares == 0, 0.0)).sum(dim=1)
    # In fp32 the running sum of a large vocabulary would lose what is rare.
    sums = shares.double().cumsum(dim=1)
    where = torch.from_numpy(np.sort(uniforms, axis=1)).to(sums.device) * sums[:, -1:]
    ids = torch.searchsorted(sums, where, right=True).clamp_(max=logits.shape[1] - 1).cpu().numpy()
    fresh = np.ones(ids.shape, dtype=bool)
    fresh[:, 1:] = ids[:, 1:] != ids[:, :-1]
    begins = np.flatnonzero(fresh)
    counts = np.diff(begins, append=ids.size).astype(np.uint8)
    different = fresh.sum(axis=1).astype(np.uint8)
    return ids.ravel()[begins], counts, different, entropies.half().cpu().numpy()


def padded(values: np.ndarray, different: np.ndarray, samples: int) -> np.ndarray:
    """Values (m,) of positions that have ``different`` (n,) of them, as (n, samples) in their dtype: zero behind the
    last."""
    table = np.zeros((len(different), samples), dtype=values.dtype)
    table[np.arange(samples) < different[:, None]] = values
    return table


def divergences_by_samples(logits: torch.Tensor, taught: Sampled, temperature: float) -> torch.Tensor:
    """Estimates of KL(p || q), in nats, (N,) fp32: q of the student's ``logits`` (N, vocabulary)."""
    return _away(F.log_softmax(logits[:, : taught.vocabulary].float() / temperature, dim=1), taught)


def with_samples(
    product: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    factor: torch.Tensor,
    taught: Sampled,
    share: float,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``lesson.with_lesson``, with what was drawn in the place of the teacher's logits; the divergences are
    estimates."""
    chunk = ChunkLoss.of(head.logits(product), targets)
    said = F.log_softmax(chunk.logits[:, : taught.vocabulary] / temperature, dim=1)
    away = _away(said, taught).masked_fill(~chunk.counted, 0.0)
    gradient = chunk.gradient() * (1 - share)
    # Of D^2 KL by a logit: D (q - p^).
    gradient[:, : taught.vocabulary] += said.exp() * (share * temperature)
    less = _shares(taught) * (-share * temperature)
    # In one axis, as its deterministic kernel wants it.
    begins = torch.arange(len(gradient), device=gradient.device)[:, None] * gradient.shape[1]
    gradient.view(-1).scatter_add_(0, (begins + taught.ids.long()).flatten(), less.flatten())
    return chunk.losses, away, chunk.by_product(gradient, head.cap, factor).to(product.dtype)


def _shares(taught: Sampled) -> torch.Tensor:
    """p^ of the ids that were drawn, (N, samples) fp32."""
    return taught.counts.float() / taught.samples


def _away(said: torch.Tensor, taught: Sampled) -> torch.Tensor:
    """Cross-entropy of the student's logarithms ``said`` (N, vocabulary) by p^, less the entropy of p: (N,)."""
    return -(_shares(taught) * said.gather(1, taught.ids.long())).sum(dim=1) - taught.entropies.float()
