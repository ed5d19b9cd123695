"""The keys of the cost of running: at which batches and lengths the models' speed and memory are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.keys import Section, Whole, key

#: What a paper measured, by its name here; a key that a config states beside the name wins.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "shortened-llm": {
        "prompt_tokens": 12,
        "new_tokens": (128, 512),
        "batches": (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "warm_up": 10,
        "repeats": 20,
    }
}


def _none_is_empty(value: object) -> object:
    """``batches: null`` says the same as an empty list."""
    return () if value is None else value


def _each_once(numbers: tuple[int, ...]) -> tuple[int, ...]:
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands twice")
    return numbers


Batches = Annotated[
    tuple[Annotated[Whole, Field(ge=1)], ...], BeforeValidator(_none_is_empty), AfterValidator(_each_once)
]
Lengths = Annotated[tuple[Annotated[Whole, Field(ge=2)], ...], AfterValidator(_each_once)]


class CostSection(Section):
    protocol: Literal["own", *PROTOCOLS] = key(  # type: ignore[valid-type]
        "own",
        "Take the other keys from a paper: shortened-llm (12-token prompt, 128 and 512 new tokens, batch 1 to 256, 10 "
        "runs to warm up, 20 timed); those stated here win. own: as stated.",
        stages="evaluate",
    )
    prompt_tokens: Whole = key(
        12, "Tokens of each prompt, cut from the held-out text.", stages="evaluate", source="Shortened LLM", ge=1
    )
    new_tokens: Lengths = key(
        (128,), "Tokens generated after it; every batch is measured with each.", stages="evaluate", min_length=1
    )
    batches: Batches = key(
        (), "Sequences generated together, one measurement for each number; empty or null: none.", stages="evaluate"
    )
    warm_up: Whole = key(1, "Runs before the timed ones, after each loading of a model.", stages="evaluate", ge=0)
    repeats: Whole = key(3, "Timed runs of each model in each measurement.", stages="evaluate", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_protocol(cls, stated: Any) -> Any:
        if not isinstance(stated, Mapping):
            return {} if stated is None else stated
        named = stated.get("protocol")
        return {**PROTOCOLS.get(named, {}), **stated} if isinstance(named, str) else stated
