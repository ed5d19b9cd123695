"""On what the cost of running is measured: how many sequences together, how long, and the real text before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import RegrowError


@dataclass(frozen=True, order=True)
class Size:
    """Exactly ``new_tokens`` tokens after each of ``batch`` prompts. Short ones come before long ones, and of the same
    length small batches before large ones."""

    new_tokens: int
    batch: int

    def holds(self, other: Size) -> bool:
        """Whether this takes at least the memory of the other: what does not fit there does not fit here."""
        return self.new_tokens >= other.new_tokens and self.batch >= other.batch


@dataclass(frozen=True)
class CostProtocol:
    """Every batch with every length; of each, ``warm_up`` runs after a model was loaded, and ``repeats`` timed ones."""

    prompt_tokens: int
    new_tokens: tuple[int, ...]
    batches: tuple[int, ...]
    warm_up: int
    repeats: int

    def __post_init__(self) -> None:
        least = {"prompt_tokens": 1, "warm_up": 0, "repeats": 1}
        numbers = {name: getattr(self, name) for name in least}
        # A first token, and further ones: their times are told apart.
        for name, lowest, stated in (("new_tokens", 2, self.new_tokens), ("batches", 1, self.batches)):
            least[name], numbers[name] = lowest, min(stated, default=lowest)
        for name, number in numbers.items():
            if number < least[name]:
                raise RegrowError(
                    f"the cost of running cannot be measured with {name} {number}; it must be {least[name]} or more"
                )

    @property
    def sizes(self) -> list[Size]:
        """The smallest first."""
        return sorted({Size(new, batch) for new in self.new_tokens for batch in self.batches})


def prompts(text: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """(batch, tokens) int64 on the CPU: pieces of ``text``, (any shape) int64, one behind the other, and from its
    beginning again where it ends. They differ, as users' prompts do: alike, they would all go to the same experts.

    RegrowError where there is no text.
    """
    flat = text.flatten()
    if not len(flat):
        raise RegrowError("the cost of running cannot be measured: there is no held-out text to cut prompts from")
    return flat[torch.arange(batch * tokens) % len(flat)].view(batch, tokens)


def require_positions(protocol: CostProtocol, model: Any) -> None:
    """RegrowError where a model, which may be on the meta device, lacks positions for a prompt and its new tokens."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = protocol.prompt_tokens + max(protocol.new_tokens)
    if protocol.batches and positions is not None and longest > positions:
        raise RegrowError(
            f"evaluate.cost: {protocol.prompt_tokens} tokens of a prompt and {max(protocol.new_tokens)} new ones are "
            f"{longest}, but the model has only {positions} positions; lower evaluate.cost.new_tokens or prompt_tokens"
        )
