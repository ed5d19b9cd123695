"""The keys of scoring and pruning: which criteria, on what text, and which blocks go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.keys import Count, Real, Section, Whole, key
from pipeline.criteria import CONTROLS, CRITERIA

#: The ways of saying how much to prune; exactly one of them holds.
CUTS = ("remove", "ratio", "parameters", "perplexity", "blocks")

Criterion = Literal[tuple(CRITERIA)]  # type: ignore[valid-type]
Control = Literal[tuple(CONTROLS)]  # type: ignore[valid-type]


class ScoreSection(Section):
    criteria: tuple[Criterion, ...] = key(
        ("ppl",), "Criteria to compute.", stages="score", source="Shortened LLM", min_length=1
    )
    sequences: Whole = key(10, "Calibration sequences.", stages="score", source="Shortened LLM", ge=1)
    length: Whole = key(128, "Tokens in a calibration sequence.", stages="score", source="Shortened LLM", ge=8)
    bos: Literal["document", "every", "none"] = key(
        "document",
        "BOS policy: document (only where the crop begins its document), every (put before each crop), none.",
        stages="score",
        source="Shortened LLM",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = key(
        "bfloat16", "Precision of the sweep's blocks; logits and losses are fp32 always.", stages="score"
    )
    seed: Whole = key(1234, "Seed of the draw of calibration sequences.", stages="score", source="Shortened LLM", ge=0)
    position: Whole = key(
        -1,
        "Token that angular_last and euclidean_last look at, counted as in a list.",
        stages="score",
        source="short-transformers",
    )
    ppl_n: tuple[Annotated[Whole, Field(ge=2)], ...] = key(
        (),
        "Lengths of the windows that ppl is measured for, beside single blocks, in the same sweep: each adds as many "
        "variants as it has starts.",
        stages="score",
    )
    linear_n: tuple[Annotated[Whole, Field(ge=1)], ...] | None = key(
        None,
        "Lengths of the windows that linear is fitted for, beside single blocks; null: the planned cut.",
        stages="score",
    )
    linear_sequences: Whole | None = key(
        None,
        "Sequences for linear maps, packed as training's rows are, every fourth to judge them; null: 8 tokens to fit "
        "on for each input.",
        stages="score prune",
        ge=4,
    )
    linear_ridge: Real = key(
        0.1, "Ridge of linear maps, relative to the mean square of their inputs.", stages="score prune", gt=0
    )
    norm_power: Real = key(
        1, "Power of a weight's value in magnitude and taylor.", stages="score", source="Shortened LLM", gt=0
    )
    weight_reduction: Literal["sum", "mean", "max", "prod"] = key(
        "sum",
        "From a tensor's rows, each summed, to its score, in magnitude and taylor.",
        stages="score",
        source="Shortened LLM",
    )
    block_reduction: Literal["sum", "mean", "max", "prod"] = key(
        "sum", "From its tensors' scores to a block's, in magnitude and taylor.", stages="score", source="Shortened LLM"
    )
    loop: Literal["auto", "batch-major", "block-major"] = key(
        "auto",
        "Order of the sweep: all blocks for a micro-batch, or all sequences through a block (for models larger "
        "than the device); auto goes by the size of the weights.",
        stages="score",
    )
    micro_batch: Whole = key(
        1, "Sequences in one forward of the sweep; another number rounds otherwise.", stages="score prune", ge=1
    )
    processes: Count = key("auto", "Processes that share the sequences; auto: one for each GPU.", free=True)

    @model_validator(mode="after")
    def _fits(self) -> ScoreSection:
        if not -self.length <= self.position < self.length:
            raise ValueError(f"position {self.position} is not a token of a sequence of length {self.length}")
        if "taylor" in self.criteria and self.dtype == "float16":
            raise ValueError("taylor needs gradients, which vanish in float16; set dtype to bfloat16 or float32")
        return self


class CompareSection(Section):
    enabled: bool = key(
        True,
        "Measure the chosen set beside the scored criteria and the controls, before training.",
        stages="prune",
    )
    shares: tuple[Annotated[Real, Field(gt=0, lt=1)], ...] = key(
        (),
        "Further shares of the blocks at which all of them are measured.",
        stages="prune",
    )
    greedy: bool = key(False, "Compare greedy with one-shot removal too, for every number of blocks.", stages="prune")
    rows: Whole = key(16, "Held-out rows of each measurement.", stages="prune", ge=1)
    length: Whole = key(512, "Tokens in such a row.", stages="prune", ge=2)


class PruneSection(Section):
    criterion: Criterion | Control = key(
        "ppl", "Criterion whose order is followed, or a control.", stages="prune", source="Shortened LLM"
    )
    selection: Literal["one-shot", "contiguous", "greedy"] = key(
        "one-shot",
        "The first blocks of the order, the best window of neighbours, or one by one, scored again by ppl after each.",
        stages="prune",
        source="Shortened LLM",
    )
    remove: Whole | None = key(None, "Number of blocks to remove.", stages="prune", ge=1)
    ratio: Real | None = key(None, "Share of the blocks to remove: floor(ratio x blocks).", stages="prune", gt=0, lt=1)
    parameters: Whole | None = key(
        None, "Target: the fewest removals that reach at most so many parameters.", stages="prune", gt=0
    )
    perplexity: Real | None = key(
        None,
        "Budget: as many removals as keep the perplexity of the calibration sequences at or below it.",
        stages="prune",
        gt=1,
    )
    blocks: tuple[Annotated[Whole, Field(ge=0)], ...] | Path | None = key(
        None, "Explicit block indices, or a block_order.csv to be followed with prune.remove.", stages="prune"
    )
    protect_first: Whole = key(4, "Blocks at the start that stay.", stages="prune", source="Shortened LLM", ge=0)
    protect_last: Whole = key(2, "Blocks at the end that stay.", stages="prune", source="Shortened LLM", ge=0)
    seed: Whole = key(0, "Seed of the control random.", stages="prune", ge=0)
    linear: bool = key(
        False,
        "Put a fitted linear map in the place of every removed run of blocks, folded into the block before it.",
        stages="prune",
        source="ReplaceMe",
    )
    compare: CompareSection = Field(default_factory=CompareSection)
    processes: Count = key(
        "auto", "Processes that share the sequences where pruning runs the model; auto: one for each GPU.", free=True
    )

    @property
    def runs_model(self) -> bool:
        """Whether choosing or comparing runs the model, on held-out rows too."""
        return self.selection == "greedy" or self.perplexity is not None or self.linear or self.compare.enabled

    @model_validator(mode="after")
    def _one_cut(self) -> PruneSection:
        stated = [cut for cut in CUTS if getattr(self, cut) is not None]
        if isinstance(self.blocks, Path):
            if stated != ["remove", "blocks"]:
                raise ValueError("a block_order.csv in blocks goes with remove, and with nothing else")
        elif len(stated) != 1:
            have = " and ".join(stated) if stated else "none"
            raise ValueError(f"exactly one of {', '.join(CUTS)} must be set; set here: {have}")
        elif isinstance(self.blocks, tuple):
            twice = sorted({block for block in self.blocks if self.blocks.count(block) > 1})
            if twice or not self.blocks:
                raise ValueError(f"blocks lists {f'block {twice[0]} twice' if twice else 'no block'}")
        return self

    @model_validator(mode="after")
    def _one_selection(self) -> PruneSection:
        if self.blocks is not None and self.selection != "one-shot":
            raise ValueError(f"selection {self.selection} chooses by itself, and blocks names what goes: set one")
        if self.selection == "greedy" and self.criterion != "ppl":
            raise ValueError(f"selection greedy scores by ppl in every round, criterion is {self.criterion}")
        of_windows = [name for name, criterion in CRITERIA.items() if criterion.windows]
        if self.selection == "contiguous" and self.criterion not in of_windows:
            raise ValueError(
                f"selection contiguous needs a criterion of windows ({', '.join(of_windows)}); {self.criterion} scores "
                "single blocks"
            )
        if self.selection == "contiguous" and self.perplexity is not None:
            raise ValueError("perplexity goes with one-shot and greedy; say remove, ratio or parameters for contiguous")
        return self
