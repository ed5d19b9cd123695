"""The train section: where training begins, its recipe and schedule, and how it is laid out and kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.distilling import DistillSection
from pipeline.config.healing import HealingSection
from pipeline.config.keys import AsWritten, Count, Real, Section, Whole, key, number, recomputing
from pipeline.config.lora import LoraSection


class TrainSection(Section):
    init: Annotated[str, AsWritten] = key(
        "pruned",
        "Where training begins: pruned; random, new weights in the pruned model's shape; dense, nothing removed; or "
        "the folder of a model, or of another run, whose last export is taken.",
        stages="train",
        min_length=1,
    )
    objective: Literal["lm", "distill", "both"] = key(
        "lm", "The loss: of the next token, of the divergence from a teacher, or a part of each.", stages="train"
    )
    distill: DistillSection = Field(default_factory=DistillSection)
    tokens: Whole = key(
        ...,
        "Token budget; steps = ceil(tokens / (global_batch x row_length)). With more of them a training that is done "
        "goes on, where its schedule allows.",
        stages="train",
        source="required",
        gt=0,
    )
    global_batch: Whole = key(
        512, "Rows in an optimizer step, over all processes.", stages="train", source="mission", ge=1
    )
    micro_batch: Annotated[Whole, Field(ge=1)] | Literal["auto"] = key(
        2,
        "Rows in one forward of one process; accumulation is derived from it. auto: as many as fit on the GPU, found "
        "once and kept with the run; more is recomputed only where nothing fits else.",
        free=True,
        source="mission",
    )
    method: Literal["full", "lora"] = key(
        "full",
        "What is trained: all that text reaches, or low-rank adapters (lora) beside linear layers that stay as they "
        "are; exports have them merged.",
        stages="train",
    )
    lora: LoraSection = Field(default_factory=LoraSection)
    learning_rate: Real = key(1e-4, "Peak learning rate.", stages="train", source="mission", gt=0)
    final_learning_rate: Real = key(1e-5, "Learning rate at the last step.", stages="train", ge=0)
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = key(
        (0.9, 0.95), "AdamW's betas.", stages="train", source="mission"
    )
    eps: Real = key(1e-8, "AdamW's epsilon.", stages="train", source="ours: torch's default", gt=0)
    weight_decay: Real = key(0.1, "Decoupled weight decay.", stages="train", source="mission", ge=0)
    no_decay: tuple[Literal["bias", "norm", "embedding"], ...] = key(
        ("bias", "norm"), "Parameters that weight decay leaves alone.", stages="train"
    )
    warmup: Real = key(0.01, "Share of the steps in which the rate rises linearly.", stages="train", ge=0, lt=1)
    warmup_steps: Whole | None = key(
        None, "Steps of the warm-up, in the place of warmup's share; null: by that.", stages="train", ge=0
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = key(
        "cosine", "Shape of the rate after warm-up.", stages="train"
    )
    decay: Real = key(0.2, "Share of the steps of WSD's linear decay.", stages="train", gt=0, le=1)
    clip: Real = key(1.0, "Largest global gradient norm; 0 leaves gradients alone.", stages="train", ge=0)
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(number)] = key(1, "DeepSpeed's ZeRO stage.", free=True)
    gradient_checkpointing: Annotated[Literal["none", "selective", "full"], BeforeValidator(recomputing)] = key(
        "none",
        "What the backward pass computes again: nothing, all but products and attention, or whole blocks (true).",
        free=True,
    )
    compile: Literal["auto", True, False] = key(
        "auto", "Compile the blocks: auto does it on a GPU, but under ZeRO 3.", free=True
    )
    seed: Whole = key(0, "Seed of everything random in training.", stages="train", ge=0)
    deterministic: Literal["auto", True, False] = key(
        "auto", "Deterministic kernels: auto is on for a CPU and off for a GPU.", free=True
    )
    log_samples: bool = key(
        False, "Write the sha256 of every row that a step trained on to train/samples.jsonl.", free=True
    )
    tensorboard: bool = key(
        False,
        "Write what metrics.jsonl, held_out.jsonl and tasks.jsonl hold to train/tensorboard/ too; needs the package "
        "tensorboard.",
        free=True,
    )
    wandb: str | None = key(
        None,
        "A project of Weights & Biases that is sent the same; needs the package wandb, which is told the rest by its "
        "own variables (WANDB_API_KEY, WANDB_MODE=offline); null: nothing is sent.",
        free=True,
        min_length=1,
    )
    bad_steps: Whole = key(
        0,
        "Steps whose loss or gradient norm is not finite, or whose loss is a spike, are skipped, until so many in a "
        "row end training; 0: the first one does. train/bad_steps.jsonl has their rows.",
        free=True,
        ge=0,
    )
    spike: Real | None = key(
        None,
        "A loss is a spike where it lies above the median of the last spike_window finite ones by more than so many "
        "times their median absolute deviation; null: none is.",
        free=True,
        gt=0,
    )
    spike_window: Whole = key(
        100, "Losses that a loss is compared with; until there are so many none is a spike.", free=True, ge=2
    )
    hang_seconds: Real = key(
        600,
        "A process that shows no progress for so many seconds within a step, but the first, leaves its stacks in "
        "train/stacks/ and ends.",
        free=True,
        gt=0,
    )
    checkpoint_every: Whole = key(250, "Steps between checkpoints.", free=True, ge=1)
    keep_checkpoints: Whole = key(2, "Complete checkpoints that are kept.", free=True, ge=1)
    keep_every: Whole | None = key(
        None, "Checkpoints at multiples of so many steps are never taken away; null: none are.", free=True, ge=1
    )
    save: Literal["background", "blocking"] = key(
        "background",
        "Checkpoints are written while training goes on, from a copy in host memory, or training waits.",
        free=True,
    )
    export_every: Whole | None = key(None, "Steps between exports; the last step is exported always.", free=True, ge=1)
    evaluate_every: Whole = key(250, "Steps between held-out evaluations in the loop.", free=True, ge=1)
    evaluate_rows: Whole = key(64, "Held-out rows that the loop evaluates.", free=True, ge=1)
    max_hours: Real | None = key(
        None,
        "Hours of one start after which training saves and stops, to be started again; null: no end.",
        free=True,
        gt=0,
    )
    processes: Count = key("auto", "Processes; auto: one for each GPU, else one.", free=True)

    heal: Literal["none", "local"] = key(
        "none",
        "Before the first step: nothing, or least squares wherever blocks are gone, towards the dense model's states.",
        stages="train",
    )
    healing: HealingSection = Field(default_factory=HealingSection)

    @model_validator(mode="after")
    def _beginning(self) -> TrainSection:
        if self.heal != "none" and self.init != "pruned":
            raise ValueError(f"heal {self.heal} fits the pruned model, and init is {self.init}; set heal: none")
        if self.method == "lora" and self.init == "random":
            raise ValueError("method lora trains adapters beside weights that are known, and init is random")
        return self

    @model_validator(mode="after")
    def _rates(self) -> TrainSection:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate:g} is above learning_rate {self.learning_rate:g}"
            )
        return self
