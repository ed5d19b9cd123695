"""The chain section: in how many parts blocks are removed, with training between, and how much each part takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.keys import Real, Section, Whole, key


class ChainSection(Section):
    parts: Whole | None = key(
        None,
        "Runs that regrow chain makes of this config, one after the other, each removing a part of prune.remove from "
        "what the one before it exported; null: no chain.",
        ge=2,
    )
    schedule: Literal["equal", "front"] = key(
        "equal",
        "Blocks that each part removes: as many as the others, or more the earlier it is (three parts as 3 : 2 : 1).",
    )
    token_shares: tuple[Annotated[Real, Field(gt=0)], ...] | None = key(
        None,
        "Share of train.tokens that each part trains, relative to the others'; null: as the blocks that it removes.",
    )

    @model_validator(mode="after")
    def _one_share_each(self) -> ChainSection:
        if self.token_shares is not None and len(self.token_shares) != (self.parts or 0):
            raise ValueError(
                f"token_shares has {len(self.token_shares)} shares and parts is {self.parts}: give one for each part"
            )
        return self
