"""The keys of healing: on what text, and how stiffly, pruned models are fitted to the dense one before training."""

from __future__ import annotations

from pipeline.config.keys import Real, Section, Whole, key


class HealingSection(Section):
    sequences: Whole = key(
        512,
        "Sequences that healing reads, pieces of rows as training has them; every eighth judges the fits made on the "
        "others.",
        stages="train",
        ge=8,
    )
    length: Whole = key(
        128, "Tokens in such a sequence; as many as in a row of training is best.", stages="train", ge=8
    )
    ridge: Real = key(1.0, "Ridge of the fits, relative to the mean square of a layer's inputs.", stages="train", gt=0)
    seed: Whole = key(0, "Seed of the order in which the corpus is read for it.", stages="train", ge=0)
    micro_batch: Whole = key(8, "Sequences in one forward; another number rounds otherwise.", stages="train", ge=1)
