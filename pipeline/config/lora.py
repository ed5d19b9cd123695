"""The keys of low-rank adapters: how wide they are, and on which linear layers they stand."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from pipeline.config.keys import Real, Section, Whole, key


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands twice")
    return names


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); read where train.method is lora."""

    rank: Whole = key(8, "Rank r of an adapter's two factors.", stages="train", source="Shortened LLM", ge=1)
    alpha: Real = key(
        16, "An adapter's product is multiplied by alpha / rank.", stages="train", source="Shortened LLM", gt=0
    )
    dropout: Real = key(
        0.05, "Dropout of what goes into an adapter, in training.", stages="train", source="Shortened LLM", ge=0, lt=1
    )
    targets: Annotated[tuple[str, ...], AfterValidator(_each_once)] = key(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "Linear layers that get an adapter, by their names inside a block; a head that is not tied may be named too.",
        stages="train",
        source="Shortened LLM",
        min_length=1,
    )
