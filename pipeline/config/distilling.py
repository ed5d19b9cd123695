"""What is learnt from a teacher, in the config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.keys import AsWritten, Folder, Real, Section, Whole, key


class DistillSection(Section):
    teacher: Annotated[str, AsWritten] = key(
        "dense",
        "The teacher: dense, the model that was pruned; or the folder of a model, or of another run, whose ids mean "
        "the same tokens.",
        stages="train",
        min_length=1,
    )
    weight: Real = key(
        0.5,
        "Share of the loss that is the divergence from the teacher under objective both; the rest is the next token's.",
        stages="train",
        gt=0,
        lt=1,
    )
    temperature: Real = key(
        1.0,
        "Both models' logits are divided by it for the divergence, which is multiplied by its square.",
        stages="train",
        source="arXiv 1503.02531",
        gt=0,
    )
    hidden: Real = key(
        0.0,
        "Factor of the disagreement of states, of unit size, behind the blocks that the dense model and the pruned one "
        "have in common; 0 leaves states alone.",
        stages="train",
        ge=0,
    )
    samples: Annotated[Whole, Field(ge=1, le=255)] | None = key(
        None,
        "Ask the teacher once for each training row, and keep so many ids drawn from its softmax at each position in "
        "store, for this run and others; null: ask it in every step. The paper draws 50, of which some 12 differ.",
        stages="train",
        source="arXiv 2503.16870",
    )
    store: Folder | None = key(
        None,
        "Folder of the samples, some 50 bytes a token at 50. Runs that differ in no more than the student share them: "
        "another teacher, temperature, number, seed, corpus or order of rows has a folder of its own in it.",
        free=True,
    )
    sharded: Literal["auto", True, False] = key(
        "auto",
        "Split the teacher's weights over the processes; auto: under ZeRO 3, where it does not fit whole beside the "
        "student.",
        free=True,
    )
    offloaded: bool = key(False, "Keep the teacher's weights in host memory, split over the processes.", free=True)

    @model_validator(mode="after")
    def _of_samples(self) -> DistillSection:
        if self.samples is None:
            return self
        if self.store is None:
            raise ValueError(f"samples {self.samples} are kept in a folder: set store")
        if self.hidden:
            raise ValueError(
                f"hidden {self.hidden:g}: states are not kept with samples; set hidden: 0, or samples: null"
            )
        return self
