"""A lesson: what a teacher says of each position of a micro-batch, and the loss of a student that is to say the same.

For each position that has a target the student's loss is (1 - w) CE + w D^2 KL(p || q), with p and q the teacher's and
the student's softmax of logits divided by the temperature D, and CE the loss of the next token (Hinton et al., arXiv
1503.02531, section 2: the factor D^2 keeps the gradient's size). The divergence is the forward one: what the teacher
may say the student must not leave out. Both softmaxes are over the ids that both models have: heads may be padded to
different sizes. Here the teacher's logits are known; where a few draws of its softmax are, ``sampled`` says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F

from pipeline.model.loss import NO_TARGET, ChunkLoss

if TYPE_CHECKING:
    from pipeline.model.head import Head
    from pipeline.model.sampled import Sampled

#: What is known of a teacher at some positions: its logits (N, vocabulary) fp32, or draws.
Told: TypeAlias = "torch.Tensor | Sampled"
#: Bytes beside a chunk's own for each token and entry of the vocabulary: the teacher's product in bf16; in fp32 its
#: logits, log-softmax and softmax, and the student's softmax at the temperature. Compiled, its product and its logits.
PLAIN, COMPILED = 18, 6


def divergences(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(p || q), in nats, (N,) fp32: p of the teacher's logits ``taught`` (N, its vocabulary), q of ``logits``."""
    return _compared(logits, taught, temperature)[0]


def with_lesson(
    product: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    factor: torch.Tensor,
    taught: torch.Tensor,
    share: float,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses and divergences (N,) fp32 of a chunk's product (N, vocabulary) beside the teacher's logits ``taught``, and
    the gradient of the objective's sum by the product without the head's scale, times ``factor`` (), in the product's
    dtype. ``share`` is w."""
    chunk = ChunkLoss.of(head.logits(product), targets)
    away, said, meant = _compared(chunk.logits, taught, temperature)
    gradient = chunk.gradient() * (1 - share)
    # Of D^2 KL by a logit: D (q - p).
    gradient[:, : said.shape[1]] += (said.exp() - meant) * (share * temperature)
    gradient = chunk.by_product(gradient, head.cap, factor)
    return chunk.losses, away.masked_fill(~chunk.counted, 0.0), gradient.to(product.dtype)


def _compared(
    logits: torch.Tensor, taught: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(KL(p || q) (N,), log q, p), fp32: both of the ids that both heads have."""
    common = min(logits.shape[1], taught.shape[1])
    said = F.log_softmax(logits[:, :common].float() / temperature, dim=1)
    known = F.log_softmax(taught[:, :common].float() / temperature, dim=1)
    meant = known.exp()
    return (meant * (known - said)).sum(dim=1), said, meant


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of N positions: ``tell(start, stop)`` gives what is known of the positions between.

    ``share`` (w) is how much of the loss is the divergence, at ``temperature``. ``judge`` is ``with_lesson`` or another
    for what is told, or what was compiled of it; ``apart`` gives the divergences of whole logits from it.
    """

    tell: Callable[[int, int], Told]
    share: float
    temperature: float = 1.0
    judge: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default=with_lesson, repr=False)
    #: Bytes that a chunk takes more, for each token and entry of the vocabulary.
    entry_bytes: int = PLAIN
    apart: Callable[..., torch.Tensor] = field(default=divergences, repr=False)

    def judged(
        self, product: torch.Tensor, targets: torch.Tensor, head: Head, factor: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``judge`` makes of the positions from ``start`` on."""
        taught = self.tell(start, start + len(targets))
        return self.judge(product, targets, head, factor, taught, self.share, self.temperature)

    def objective(self, loss: torch.Tensor, divergence: torch.Tensor) -> torch.Tensor:
        """The objective of a loss and a divergence."""
        return loss * (1 - self.share) + divergence * (self.share * self.temperature**2)

    def divergence(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed divergence () of a student's whole ``logits`` (N, vocabulary), where ``targets`` (N,) has one."""
        away = self.apart(logits, self.tell(0, len(logits)), self.temperature)
        return away.masked_fill(targets == NO_TARGET, 0.0).sum()
