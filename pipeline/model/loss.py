"""Token losses: the one place where logits become losses, for scoring, training and evaluation alike.

Logits are taken to fp32 before the softmax whatever the model's precision: in bf16 the rounding of a loss (1e-2) is
as large as the gaps between neighbouring blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def next_token_losses(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood, in nats, of every token given those before it in its row.

    ``logits`` (rows, T, vocabulary), any floating dtype; ``input_ids`` (rows, T), int64. Returns (rows, T - 1) fp32:
    column t is the loss of token t + 1, so that the first token of a row is never a target.
    """
    targets = input_ids[:, 1:]
    predicted = logits[:, :-1].float()
    losses = F.cross_entropy(predicted.reshape(-1, predicted.shape[-1]), targets.reshape(-1), reduction="none")
    return losses.view(targets.shape)
