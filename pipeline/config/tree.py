"""The config tree: one section for each concern, one sentence for each key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from pipeline.config.chain import ChainSection
from pipeline.config.cost import CostSection
from pipeline.config.keys import (
    AsWritten,
    Count,
    Folder,
    PathOrName,
    Section,
    Whole,
    fields,
    key,
)
from pipeline.config.perplexity import PerplexitySection
from pipeline.config.pruning import PruneSection, ScoreSection
from pipeline.config.source import Source
from pipeline.config.tasks import DuringSection, TasksSection
from pipeline.config.training import TrainSection

STAGES = ("data", "score", "prune", "train", "evaluate", "report")


class _RunKeys(Section):
    name: str = key(
        ..., "Name of the run: its folder's name.", source="required", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )
    folder: Folder = key(Path("runs"), "Folder that holds the run folders.")

    @property
    def source(self) -> str | None:
        """``run.from``."""
        return getattr(self, "from")


#: With ``from``, a word that no class body can have as a name.
RunSection = create_model(
    "RunSection",
    __base__=_RunKeys,
    __module__=__name__,
    **{
        "from": (
            Annotated[str, AsWritten] | None,
            key(
                None,
                "Another run, by its name in run.folder or by its folder, whose finished stages are taken where they "
                "fit, as files linked or copied, before this run does its own; null: none.",
                min_length=1,
            ),
        )
    },
)


class ModelSection(Section):
    path: PathOrName = key(..., "Hugging Face folder, or a model's name on the hub.", source="required", min_length=1)
    revision: str | None = key(None, "Commit, tag or branch on the hub.")
    dense: PathOrName | None = key(
        None,
        "What evaluate and report call dense, where model.path was pruned before: the first dense model's folder or "
        "name; null: model.path.",
        stages="evaluate report",
    )
    dense_revision: str | None = key(None, "Commit, tag or branch of model.dense on the hub.")
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
    dispatch: Literal["auto", True, False] = key(
        "auto",
        "Spread a model over a process's GPUs, host memory and disk where stages evaluate and prune run it: auto where "
        "its weights do not fit on the device, with a margin.",
        free=True,
    )
    device_memory: Whole | None = key(
        None, "Bytes of a dispatched model's weights on each GPU; null: 80% of what is free.", free=True, gt=0
    )
    host_memory: Whole | None = key(
        None,
        "Bytes of its weights that each process holds in host memory; null: its share of 80% of what is free.",
        free=True,
        ge=0,
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
    lanes: Count = key(
        384,
        "Logical streams that fix the sample order for the life of a run. auto: 1,536 where every source has so many "
        "shards or documents, else fewer; stage data chooses, and keeps the number in its manifest.",
        stages="data train",
    )
    workers: Whole = key(4, "Reader processes for each training process; 0 reads in the process.", free=True, ge=0)
    seed: Whole = key(0, "Seed of the order of the corpus.", stages="train", ge=0)
    after: Annotated[str, AsWritten] | None = key(
        None,
        "Folder of a run whose training is done: this run trains on the rows behind its last one, in the same order; "
        "null: from the first row on.",
        stages="train",
        min_length=1,
    )
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
    tokenise_processes: Count = key("auto", "Processes that tokenise ahead; auto: one for each core.", free=True)
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
    processes: Count = key("auto", "Processes that share the rows; auto: one for each GPU.", free=True)


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


def steps_of(tokens: int, global_batch: int, row_length: int) -> int:
    """Optimizer steps for so many tokens: whole ones, so that the budget is reached."""
    return -(-tokens // (global_batch * row_length))


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
    chain: ChainSection = Field(default_factory=ChainSection)

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        return self.run.folder / self.run.name

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.train.global_batch * self.data.row_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return steps_of(self.train.tokens, self.train.global_batch, self.data.row_length)

    def values(self) -> dict[str, Any]:
        """Every value by its dotted key, JSON-ready; a text beside ``held_out`` is one, under its name."""
        plain = self.model_dump(mode="json")
        texts = [f"evaluate.perplexity.{name}" for name in self.evaluate.perplexity.texts]
        return {dotted: _at(plain, dotted) for dotted in [*(name for name, _ in fields(type(self))), *texts]}

    def read_by(self, stage: str) -> dict[str, Any]:
        """Those of ``values`` that ``stage`` reads and that may not differ on a re-run."""
        known = {dotted: field.json_schema_extra for dotted, field in fields(type(self))}
        return {
            dotted: value
            for dotted, value in self.values().items()
            if (
                stage in known[dotted]["stages"] and not known[dotted]["free"]
                if dotted in known
                else stage == "evaluate"
            )
        }


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree[part]
    return tree
