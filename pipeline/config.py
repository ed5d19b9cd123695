"""The whole configuration as one typed, frozen tree.

A YAML 1.2 file (optionally extending others) and dotted overrides are parsed here once, checked, and handed to
the stages. Every field says in one sentence what it is, which stages read it (that is what the stages' fingerprints
hash), whether it may differ when a run is resumed (``free``), and where its default comes from. Nothing in this
module imports torch, so that ``regrow --help`` and a mistyped key answer at once.
"""

from __future__ import annotations

import difflib
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pipeline.run import RegrowError

STAGES = ("data", "score", "prune", "train", "evaluate", "report")

#: The four ways of saying how much to prune; exactly one of them holds.
CUTS = ("remove", "ratio", "parameters", "blocks")


class ConfigError(RegrowError):
    """A configuration that cannot be used; its message names the key, the place and the remedy."""


def key(default: Any, what: str, *, stages: str = "", free: bool = False, source: str = "ours", **limits: Any) -> Any:
    """A field: its default, one sentence, the stages that read it and the source of the default.

    ``stages`` is a space-separated list; ``free`` marks a field that may differ when a stage is resumed or checked
    for staleness; ``limits`` are pydantic's (``ge``, ``gt``, ``le``, ``lt``, ``min_length``).
    """
    extra = {"stages": stages.split(), "free": free, "source": source}
    return Field(default, description=what, json_schema_extra=extra, **limits)


def _whole(value: Any) -> Any:
    """Accept 150e9 where a whole number is wanted: YAML reads it as a float."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Processes = Union[Literal["auto"], Annotated[int, Field(ge=1)]]  # noqa: UP007 (pydantic names the branches)


class Section(BaseModel):
    """One concern of the tree: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())


class RunSection(Section):
    name: str = key(..., "Name of the run: its folder's name.", source="required", pattern=r"^[A-Za-z0-9._-]+$")
    folder: Path = key(Path("runs"), "Folder that holds the run folders.")


class ModelSection(Section):
    path: str = key(..., "Hugging Face folder, or a model's name on the hub.", source="required")
    revision: str | None = key(None, "Commit, tag or branch on the hub.")
    dtype: Literal["bfloat16", "float16", "float32"] = key(
        "bfloat16", "Precision of saved weights and of training's compute.", stages="prune train evaluate",
        source="field's practice",
    )  # fmt: skip
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = key(
        "auto", "Attention kernel; auto takes the best that is installed.", stages="score prune train evaluate",
    )  # fmt: skip
    trust_remote_code: bool = key(False, "Run code that the model's folder brings along.", stages="data score prune")


class Source(Section):
    path: str = key(..., "Folder, glob or file; or a data set's name on the hub.", source="required")
    revision: str | None = key(None, "Commit, tag or branch of the data set on the hub.")
    files: str = key("**", "Glob of the files to take inside a folder or hub data set.")
    format: Literal["auto", "jsonl", "parquet"] = key("auto", "Format of the shards; auto goes by the file's ending.")
    text_key: str = key("text", "Field that holds a document's text.", source="SlimPajama")
    exclude_domains: tuple[str, ...] = key(
        ("RedPajamaBook",),
        "Documents whose meta.redpajama_set_name is one of these are left out (Books3 was withdrawn).",
        source="NeMo's SlimPajama tutorial",
    )


class DataSection(Section):
    sources: tuple[Source, ...] = key(..., "The training corpus.", stages="data", source="required", min_length=1)
    held_out: Source | None = key(None, "Documents kept for evaluation, disjoint from the corpus.", stages="data")
    separator: str = key(
        "eos", "Token put after each document: eos, or a token of the tokenizer.", stages="data score train evaluate"
    )
    row_length: Whole = key(
        2048, "Tokens in a training row.", stages="train evaluate", source="ours: Vicuna-v1.3's context", ge=8
    )
    lanes: Whole = key(384, "Logical streams that fix the sample order for the life of a run.", stages="data", ge=1)
    workers: Whole = key(4, "Reader processes for each training process; 0 reads in the process.", free=True, ge=0)
    seed: Whole = key(0, "Seed of the order of the corpus.", stages="data train", ge=0)
    cache: Path = key(Path(".cache/shards"), "Folder for shards fetched from the hub.", free=True)


class ScoreSection(Section):
    criteria: tuple[Literal["ppl"], ...] = key(
        ("ppl",), "Criteria to compute in the sweep.", stages="score", source="Shortened LLM", min_length=1
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
    processes: Processes = key("auto", "Processes that share the sequences; auto: one for each GPU.", free=True)


class PruneSection(Section):
    criterion: Literal["ppl"] = key("ppl", "Criterion whose order is followed.", stages="prune", source="Shortened LLM")
    remove: Whole | None = key(None, "Number of blocks to remove.", stages="prune", ge=1)
    ratio: float | None = key(None, "Share of the blocks to remove: floor(ratio x blocks).", stages="prune", gt=0, lt=1)
    parameters: Whole | None = key(
        None, "Target: the fewest removals that reach at most so many parameters.", stages="prune", gt=0
    )
    blocks: tuple[int, ...] | Path | None = key(
        None, "Explicit block indices, or a block_order.csv to be followed with prune.remove.", stages="prune"
    )
    protect_first: Whole = key(4, "Blocks at the start that stay.", stages="prune", source="Shortened LLM", ge=0)
    protect_last: Whole = key(2, "Blocks at the end that stay.", stages="prune", source="Shortened LLM", ge=0)

    @model_validator(mode="after")
    def _one_cut(self) -> PruneSection:
        stated = [cut for cut in CUTS if getattr(self, cut) is not None]
        if isinstance(self.blocks, Path):
            if stated != ["remove", "blocks"]:
                raise ValueError("a block_order.csv in blocks goes with remove, and with nothing else")
        elif len(stated) != 1:
            have = " and ".join(stated) if stated else "none"
            raise ValueError(f"exactly one of remove, ratio, parameters, blocks must be set; set here: {have}")
        return self


class TrainSection(Section):
    tokens: Whole = key(..., "Token budget; steps = ceil(tokens / (global_batch x row_length)).", stages="train",
                        source="required", gt=0)  # fmt: skip
    global_batch: Whole = key(512, "Rows in an optimizer step, over all processes.", stages="train", source="mission",
                              ge=1)  # fmt: skip
    micro_batch: Whole = key(2, "Rows in one forward of one process; accumulation is derived from it.", free=True,
                             source="mission", ge=1)  # fmt: skip
    learning_rate: float = key(1e-4, "Peak learning rate.", stages="train", source="mission", gt=0)
    final_learning_rate: float = key(1e-5, "Learning rate at the last step.", stages="train", ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = key(
        (0.9, 0.95), "AdamW's betas.", stages="train", source="mission"
    )
    eps: float = key(1e-8, "AdamW's epsilon.", stages="train", source="ours: torch's default", gt=0)
    weight_decay: float = key(0.1, "Decoupled weight decay.", stages="train", source="mission", ge=0)
    no_decay: tuple[Literal["bias", "norm", "embedding"], ...] = key(
        ("bias", "norm"), "Parameters that weight decay leaves alone.", stages="train"
    )
    warmup: float = key(0.01, "Share of the steps in which the rate rises linearly.", stages="train", ge=0, lt=1)
    schedule: Literal["cosine", "wsd", "constant"] = key("cosine", "Shape of the rate after warm-up.", stages="train")
    decay: float = key(0.2, "Share of the steps of WSD's linear decay.", stages="train", gt=0, le=1)
    clip: float = key(1.0, "Largest global gradient norm; 0 leaves gradients alone.", stages="train", ge=0)
    zero_stage: Literal[0, 1, 2, 3] = key(1, "DeepSpeed's ZeRO stage.", free=True)
    gradient_checkpointing: bool = key(False, "Recompute activations in the backward pass.", free=True)
    seed: Whole = key(0, "Seed of everything random in training.", stages="train", ge=0)
    deterministic: Literal["auto", True, False] = key(
        "auto", "Deterministic kernels: auto is on for a CPU and off for a GPU.", free=True
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


class PerplexitySection(Section):
    length: Whole | None = key(None, "Tokens in a row; null takes data.row_length.", stages="evaluate", ge=2)
    bos: Literal["document", "every", "none"] = key(
        "document", "BOS policy: document (where documents begin), every (before each row), none.", stages="evaluate"
    )
    rows: Whole | None = key(256, "Held-out rows to score; null takes all.", stages="evaluate", ge=1)


class GenerationSection(Section):
    prompts: tuple[str, ...] = key(
        ("The history of the city begins", "Water is a substance that", "In mathematics, a prime number is"),
        "Prompts that each of the three models continues.", stages="evaluate", min_length=1,
    )  # fmt: skip
    new_tokens: Whole = key(64, "Tokens generated after each prompt.", stages="evaluate", ge=1)
    batch: Whole = key(1, "Sequences generated together when speed is measured.", stages="evaluate", ge=1)
    repeats: Whole = key(3, "Timed repetitions after one that warms up.", stages="evaluate", ge=1)


class EvaluateSection(Section):
    perplexity: PerplexitySection = Field(default_factory=PerplexitySection)
    generation: GenerationSection = Field(default_factory=GenerationSection)
    micro_batch: Whole = key(8, "Rows in one forward.", free=True, ge=1)
    processes: Processes = key("auto", "Processes that share the rows; auto: one for each GPU.", free=True)


class ReportSection(Section):
    title: str | None = key(None, "Title of the page; null takes the run's name.", stages="report")
    model_note: str | None = key(None, "A sentence about the dense model that the page and the card carry.",
                                 stages="report")  # fmt: skip
    data_note: str | None = key(None, "A sentence about the corpus that the page and the card carry.", stages="report")
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

    def read_by(self, stage: str) -> dict[str, Any]:
        """The values that ``stage`` reads and that may not differ on a re-run, by dotted key, JSON-ready."""
        plain = self.model_dump(mode="json")
        return {
            dotted: _at(plain, dotted)
            for dotted, field in fields(type(self))
            if stage in field.json_schema_extra["stages"] and not field.json_schema_extra["free"]
        }


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, pydantic field) of every leaf of the tree, in the order of definition."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a config file, what it extends, and ``section.key=value`` overrides; check everything.

    Raises ConfigError naming each bad key with its file and line (or the override), what is allowed, and the
    nearest known key for a typo.
    """
    places: dict[str, str] = {}
    tree = _read_file(Path(path), places, ())
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted.strip():
            raise ConfigError(f"override {override!r}: write it as section.key=value, for example prune.remove=9")
        try:
            value = _yaml().load(text)
        except MarkedYAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not YAML ({error.problem})") from None
        tree = _merge(tree, _nest(dotted.strip(), value, tree, override), places, "", f"override {override!r}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, places, str(path)) for item in error.errors())) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that ``load_config`` reads back to an equal tree."""
    out = io.StringIO()
    writer = _yaml(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.dump(config.model_dump(mode="json"), out)
    return out.getvalue()


def json_schema() -> str:
    """The tree's JSON schema, for editors."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False)


def key_table() -> str:
    """A Markdown table of every key, its default, the default's source, and what may differ on a resume."""
    lines = ["| key | default | from | may differ on resume | what it is |", "| --- | --- | --- | --- | --- |"]
    for dotted, field in fields(Config):
        extra = field.json_schema_extra
        default = "required" if field.is_required() else f"`{_plain(field.default)}`"
        free = "yes" if extra["free"] else ""
        what = field.description.replace("|", "\\|")
        lines.append(f"| `{dotted}` | {default} | {extra['source']} | {free} | {what} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str, ensure_ascii=False)


def _yaml(typ: str = "rt") -> YAML:
    yaml = YAML(typ=typ, pure=True)
    yaml.version = None
    return yaml


def _read_file(path: Path, places: dict[str, str], parents: tuple[Path, ...]) -> dict[str, Any]:
    """One file merged over what it extends; ``places`` learns the file and line of every key."""
    if path.resolve() in parents:
        raise ConfigError(f"{path}: extends itself, by way of {' -> '.join(p.name for p in parents)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        tree = _yaml().load(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: a config is a mapping of sections (run, model, data, ...); this file is not")
    base: dict[str, Any] = {}
    if "extends" in tree:
        base = _read_file(path.parent / str(tree["extends"]), places, (*parents, path.resolve()))
    own = {name: value for name, value in tree.items() if name != "extends"}
    _locate(tree, "", str(path), places)
    return _merge(base, own, places, "", None)


def _locate(tree: Any, prefix: str, file: str, places: dict[str, str]) -> None:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for name, value in items:
        line = (tree.lc.key(name) if isinstance(tree, Mapping) else tree.lc.item(name))[0] + 1
        places[f"{prefix}{name}"] = f"{file}:{line}"
        if isinstance(value, Mapping | list):
            _locate(value, f"{prefix}{name}.", file, places)


def _merge(base: Any, over: Any, places: dict[str, str], prefix: str, where: str | None) -> Any:
    """``over`` on ``base``: mappings deep, everything else replaced. Stating one cut of prune clears the others."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        if where is not None:
            places[prefix.rstrip(".")] = where
        return over
    merged = dict(base)
    if prefix == "prune.":
        stated = {name for name in CUTS if over.get(name) is not None}
        follows_a_file = isinstance(over.get("blocks", base.get("blocks")), str)
        if stated and not (follows_a_file and stated <= {"remove", "blocks"}):
            merged = {name: value for name, value in merged.items() if name not in CUTS}
    for name, value in over.items():
        if where is not None:
            places[f"{prefix}{name}"] = where
        merged[name] = _merge(merged.get(name), value, places, f"{prefix}{name}.", where)
    return merged


def _nest(dotted: str, value: Any, tree: Any, override: str) -> Any:
    """``a.b=value`` as {a: {b: value}}; a number in the path replaces an item of a list that the tree holds."""
    head, _, rest = dotted.partition(".")
    inner = tree.get(head) if isinstance(tree, Mapping) else None
    if rest and isinstance(inner, list | tuple):
        index, _, below = rest.partition(".")
        if not index.isdigit() or int(index) >= len(inner):
            raise ConfigError(f"override {override!r}: {head} is a list of {len(inner)}; name an item 0 to "
                              f"{len(inner) - 1}, or give the whole list")  # fmt: skip
        items = list(inner)
        old = items[int(index)]
        items[int(index)] = _merge(old, _nest(below, value, old, override), {}, "", None) if below else value
        return {head: items}
    return {head: _nest(rest, value, inner, override) if rest else value}


def _explain(item: Mapping[str, Any], places: dict[str, str], file: str) -> str:
    """One line for one pydantic error."""
    parts = [str(part) for part in item["loc"] if not _is_branch(str(part))]
    dotted = ".".join(parts)
    where = next((places[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in places), file)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}{_nearest(parts)}"
    if item["type"] == "missing":
        return f"{where}: {dotted} is required"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = "" if isinstance(item["input"], Mapping | Section) else f"; got {item['input']!r}"
    return f"{where}: {dotted}: {message}{got}"


def _is_branch(part: str) -> bool:
    """Pydantic adds the tried branch of a union to an error's place; it is no part of the key."""
    return "[" in part or part in {"int", "str", "float", "bool", "path", "tuple"}


def _nearest(parts: list[str]) -> str:
    model: Any = Config
    for part in parts[:-1]:
        field = None if part.isdigit() else getattr(model, "model_fields", {}).get(part)
        model = _section_of(field.annotation) if field is not None else model
    known = list(getattr(model, "model_fields", {}))
    near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {'.'.join([*parts[:-1], near[0]])!r}?"
    elsewhere = [dotted for dotted, _ in fields(Config) if dotted.split(".")[-1] == parts[-1]]
    return f"; did you mean {elsewhere[0]!r}?" if elsewhere else f"; known here: {', '.join(known)}"


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_of(arg) for arg in get_args(annotation)] if get_origin(annotation) else []
    return next((found for found in inner if found is not None), None)


def _at(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree[part]
    return tree
