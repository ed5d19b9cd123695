"""The config tree: one section for each concern, one sentence for each key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.cost import CostSection
from pipeline.config.keys import (
    AsWritten,
    Folder,
    PathOrName,
    Processes,
    Real,
    Section,
    Whole,
    fields,
    key,
    number,
    recomputing,
)
from pipeline.config.lora import LoraSection
from pipeline.config.perplexity import PerplexitySection
from pipeline.config.pruning import PruneSection, ScoreSection
from pipeline.config.source import Source
from pipeline.config.tasks import DuringSection, TasksSection

STAGES = ("data", "score", "prune", "train", "evaluate", "report")


class RunSection(Section):
    name: str = key(
        ..., "Name of the run: its folder's name.", source="required", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )
    folder: Folder = key(Path("runs"), "Folder that holds the run folders.")


class ModelSection(Section):
    path: PathOrName = key(..., "Hugging Face folder, or a model's name on the hub.", source="required", min_length=1)
    revision: str | None = key(None, "Commit, tag or branch on the hub.")
    architecture: Path | None = key(
        None,
        "Folder with the model's config.json, for plan, so that no weights and no network are needed; relative to the "
        "file that states it.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = key(
        "bfloat16",
        "Precision of saved weights and of training's compute.",
        stages="prune train evaluate",
        source="field's practice",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = key(
        "auto",
        "Attention kernel; auto takes the best that is installed.",
        stages="score train evaluate",
    )
    trust_remote_code: bool = key(
        False, "Run code that the model's folder brings along.", stages="score prune train evaluate report"
    )


class DataSection(Section):
    sources: tuple[Source, ...] = key(..., "The training corpus.", stages="data", source="required", min_length=1)
    held_out: Source | None = key(None, "Documents kept for evaluation, disjoint from the corpus.", stages="data")
    separator: str = key(
        "eos", "Token put after each document: eos, or a token of the tokenizer.", stages="score train evaluate"
    )
    special_tokens: Literal["parse", "plain"] = key(
        "plain",
        "The string of a special token ('</s>') in a text: plain encodes it as ordinary text, since a page on mark-up "
        "must not end documents or open chat turns; parse makes it the token, for text that was marked up with them.",
        stages="score train evaluate",
    )
    row_length: Whole = key(
        2048, "Tokens in a training row.", stages="train evaluate", source="ours: Vicuna-v1.3's context", ge=8
    )
    lanes: Whole = key(
        384, "Logical streams that fix the sample order for the life of a run.", stages="data train", ge=1
    )
    workers: Whole = key(4, "Reader processes for each training process; 0 reads in the process.", free=True, ge=0)
    seed: Whole = key(0, "Seed of the order of the corpus.", stages="train", ge=0)
    attention: Literal["across", "within"] = key(
        "across",
        "Training attention in a row: across documents, or within each alone (then no document's first token is a "
        "target). Scoring and perplexities are across.",
        stages="train",
        source="field's practice",
    )
    on_damage: Literal["raise", "skip"] = key(
        "raise",
        "A damaged shard ends the run, or is left out whole, recorded, for the rest of the run.",
        stages="data train",
    )
    on_no_text: Literal["skip", "raise"] = key(
        "skip",
        "A record without text (null, no such key, a number, a list, white space alone) is left out, counted and said, "
        "or ends the run.",
        stages="data",
        source="field's practice",
    )
    tokenised: Annotated[Path, AsWritten] | None = key(
        None,
        "Folder where stage data keeps the corpus tokenised ahead; null tokenises text as it trains.",
        stages="data",
    )
    tokenise_processes: Processes = key("auto", "Processes that tokenise ahead; auto: one for each core.", free=True)
    cache: Folder = key(Path(".cache/shards"), "Folder for shards fetched from the hub or a URL.", free=True)
    cache_size: Whole | None = key(
        None,
        "Bytes that copies of remote shards may take; null: what the disk has. Too little for all lanes is "
        "refused before training; a fetch that would go over it deletes copies that nobody reads, or is an error.",
        free=True,
        gt=0,
    )

    @model_validator(mode="after")
    def _masks(self) -> DataSection:
        if self.tokenised is not None and any(source.format == "instruction" for source in self.sources):
            raise ValueError("tokenised keeps no prompt's end: set it to null with a source of format instruction")
        return self

    @property
    def texts(self) -> dict[str, Source]:
        """Every source by its key: those of the corpus, and the held-out text where there is any."""
        corpus = {f"data.sources.{number}": source for number, source in enumerate(self.sources)}
        return corpus if self.held_out is None else corpus | {"data.held_out": self.held_out}


class TrainSection(Section):
    tokens: Whole = key(
        ...,
        "Token budget; steps = ceil(tokens / (global_batch x row_length)).",
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
    checkpoint_every: Whole = key(250, "Steps between checkpoints.", free=True, ge=1)
    keep_checkpoints: Whole = key(2, "Complete checkpoints that are kept.", free=True, ge=1)
    export_every: Whole | None = key(None, "Steps between exports; the last step is exported always.", free=True, ge=1)
    evaluate_every: Whole = key(250, "Steps between held-out evaluations in the loop.", free=True, ge=1)
    evaluate_rows: Whole = key(64, "Held-out rows that the loop evaluates.", free=True, ge=1)
    processes: Processes = key("auto", "Processes; auto: one for each GPU, else one.", free=True)

    @model_validator(mode="after")
    def _rates(self) -> TrainSection:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate:g} is above learning_rate {self.learning_rate:g}"
            )
        return self


class GenerationSection(Section):
    prompts: tuple[str, ...] = key(
        ("The history of the city begins", "Water is a substance that", "In mathematics, a prime number is"),
        "Prompts that each of the three models continues.",
        stages="evaluate",
        min_length=1,
    )
    new_tokens: Whole = key(64, "Tokens generated after each prompt.", stages="evaluate", ge=1)
    batch: Whole = key(1, "Sequences generated together when speed is measured.", stages="evaluate", ge=1)
    repeats: Whole = key(3, "Timed repetitions after one that warms up.", stages="evaluate", ge=1)


class EvaluateSection(Section):
    perplexity: PerplexitySection = Field(default_factory=PerplexitySection)
    tasks: TasksSection = Field(default_factory=TasksSection)
    during: DuringSection = Field(default_factory=DuringSection)
    generation: GenerationSection = Field(default_factory=GenerationSection)
    cost: CostSection = Field(default_factory=CostSection)
    micro_batch: Whole = key(8, "Rows in one forward.", free=True, ge=1)
    processes: Processes = key("auto", "Processes that share the rows; auto: one for each GPU.", free=True)


class ReportSection(Section):
    title: str | None = key(None, "Title of the page; null takes the run's name.", stages="report")
    model_note: str | None = key(
        None, "A sentence about the dense model that the page and the card carry.", stages="report"
    )
    data_note: str | None = key(None, "A sentence about the corpus that the page and the card carry.", stages="report")
    base_model: str | None = key(
        None, "Name of the dense model on the hub, for the card, where model.path is a folder.", stages="report"
    )
    license: str | None = key(None, "License for the model card's front matter.", stages="report")
    language: str | None = key(None, "Language code for the model card's front matter.", stages="report")


class Config(Section):
    """The root of the tree."""

    run: RunSection
    model: ModelSection
    data: DataSection
    score: ScoreSection = Field(default_factory=ScoreSection)
    prune: PruneSection
    train: TrainSection
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    report: ReportSection = Field(default_factory=ReportSection)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.train.global_batch * self.data.row_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: whole ones, so that the token budget is reached."""
        return -(-self.train.tokens // self.tokens_per_step)

    def read_by(self, stage: str) -> dict[str, Any]:
        """The values that ``stage`` reads and that may not differ on a re-run, by dotted key, JSON-ready."""
        plain = self.model_dump(mode="json")
        values = {
            dotted: _at(plain, dotted)
            for dotted, field in fields(type(self))
            if stage in field.json_schema_extra["stages"] and not field.json_schema_extra["free"]
        }
        texts = [f"evaluate.perplexity.{name}" for name in self.evaluate.perplexity.texts]
        return values | ({dotted: _at(plain, dotted) for dotted in texts} if stage == "evaluate" else {})


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree[part]
    return tree
