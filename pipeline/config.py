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
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

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


def _number(value: Any) -> Any:
    """Refuse true and false where a number is wanted: pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted")
    return value


def _whole(value: Any) -> Any:
    """Accept 150e9 where a whole number is wanted: YAML reads it as a float."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole), BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Processes = Union[Literal["auto"], Annotated[Whole, Field(ge=1)]]  # noqa: UP007 (pydantic names the branches)


class Section(BaseModel):
    """One concern of the tree: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())


class RunSection(Section):
    name: str = key(
        ..., "Name of the run: its folder's name.", source="required", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )
    folder: Path = key(Path("runs"), "Folder that holds the run folders.")


class ModelSection(Section):
    path: str = key(..., "Hugging Face folder, or a model's name on the hub.", source="required")
    revision: str | None = key(None, "Commit, tag or branch on the hub.")
    architecture: Path | None = key(
        None,
        "Folder with the model's config.json, for plan, so that no weights and no network are needed; relative to the "
        "file that states it.",
    )
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
    ratio: Real | None = key(None, "Share of the blocks to remove: floor(ratio x blocks).", stages="prune", gt=0, lt=1)
    parameters: Whole | None = key(
        None, "Target: the fewest removals that reach at most so many parameters.", stages="prune", gt=0
    )
    blocks: tuple[Annotated[Whole, Field(ge=0)], ...] | Path | None = key(
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
        elif isinstance(self.blocks, tuple):
            twice = sorted({block for block in self.blocks if self.blocks.count(block) > 1})
            if twice or not self.blocks:
                raise ValueError(f"blocks lists {f'block {twice[0]} twice' if twice else 'no block'}")
        return self


class TrainSection(Section):
    tokens: Whole = key(..., "Token budget; steps = ceil(tokens / (global_batch x row_length)).", stages="train",
                        source="required", gt=0)  # fmt: skip
    global_batch: Whole = key(512, "Rows in an optimizer step, over all processes.", stages="train", source="mission",
                              ge=1)  # fmt: skip
    micro_batch: Whole = key(2, "Rows in one forward of one process; accumulation is derived from it.", free=True,
                             source="mission", ge=1)  # fmt: skip
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
    schedule: Literal["cosine", "wsd", "constant"] = key("cosine", "Shape of the rate after warm-up.", stages="train")
    decay: Real = key(0.2, "Share of the steps of WSD's linear decay.", stages="train", gt=0, le=1)
    clip: Real = key(1.0, "Largest global gradient norm; 0 leaves gradients alone.", stages="train", ge=0)
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_number)] = key(1, "DeepSpeed's ZeRO stage.", free=True)
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

    Later layers win key by key. Stating one cut of prune clears the others, and a new model.path clears
    model.architecture. Raises ConfigError naming each bad key with its file and line (or the override), what is
    allowed, and the nearest known key for a typo.
    """
    places: dict[str, str] = {}
    tree = _read_file(Path(path), places, ())
    for override in overrides:
        dotted, separator, text = (part.strip() for part in override.partition("="))
        if not separator or not all(dotted.split(".")):
            raise ConfigError(f"override {override!r}: write it as section.key=value, for example prune.remove=9")
        try:
            value = _yaml().load(text)
        except YAMLError as error:
            problem = getattr(error, "problem", None) or error
            raise ConfigError(f"override {override!r}: the value is not YAML ({problem})") from None
        over = _beside(_nest(dotted, value, tree, override), Path.cwd())
        tree = _merge(tree, over)
        _locate(value, dotted, f"override {override!r}", places)
        places.setdefault(dotted.partition(".")[0], f"override {override!r}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, places, str(path))) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that ``load_config`` reads back to an equal tree."""
    out = io.StringIO()
    writer = _yaml(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    plain = config.model_dump(mode="json")
    # YAML 1.1 called these line breaks, and the reader still does: with one of them, write everything escaped.
    writer.allow_unicode = not re.search("[\x85\u2028\u2029\ufeff]", json.dumps(plain, ensure_ascii=False))
    writer.dump(plain, out)
    return out.getvalue()


def json_schema() -> str:
    """The tree's JSON schema, for editors; a file may leave required keys to the one that it extends."""
    schema = Config.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "Config that this one changes, relative to it."}
    for name, part in [("", schema), *schema["$defs"].items()]:
        if name != Source.__name__:
            part.pop("required", None)
    return json.dumps(schema, indent=2, ensure_ascii=False)


def key_page() -> str:
    """docs/config.md: what the table means, and the table."""
    return (
        "# Configuration keys\n\n"
        "One YAML file, one tree; a file states only what differs from these defaults. `extends: other.yaml` takes\n"
        "another file's keys first. `section.key=value` on the command line wins over files. A source is an item of\n"
        "`data.sources` (`data.sources.0.path` in an override), and so is `data.held_out`.\n\n"
        "*From* says where a default comes from: the mission's recipe, a paper's code, or our own choice.\n\n"
        f"{key_table()}\n"
        "This page is generated: `python -c 'from pipeline.config import key_page; print(key_page(), end=\"\")' > "
        "docs/config.md`\n"
    )


def key_table() -> str:
    """A Markdown table of every key, its default, the default's source, and what may differ on a resume."""
    lines = ["| key | default | from | may differ on resume | what it is |", "| --- | --- | --- | --- | --- |"]
    for dotted, field in fields(Config):
        lines.append(_row(dotted, field))
        if dotted == "data.held_out":
            lines += [_row(f"source: {name}", inner) for name, inner in fields(Source)]
    return "\n".join(lines) + "\n"


def _row(name: str, field: Any) -> str:
    extra = field.json_schema_extra
    default = "required" if field.is_required() else f"`{_plain(field.default)}`"
    what = field.description.replace("|", "\\|")
    return f"| `{name}` | {default} | {extra['source']} | {'yes' if extra['free'] else ''} | {what} |"


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str, ensure_ascii=False)


def _yaml(typ: str = "rt") -> YAML:
    yaml = YAML(typ=typ, pure=True)
    yaml.version = None
    return yaml


def _read_file(path: Path, places: dict[str, str], parents: tuple[Path, ...]) -> dict[str, Any]:
    """One file merged over what it extends; ``places`` learns the file and line of every key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        tree = _yaml().load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: a config is a mapping of sections (run, model, data, ...); this file is not")
    base: dict[str, Any] = {}
    if "extends" in tree:
        base = _read_base(path, tree["extends"], f"{path}:{_line(tree, 'extends')}", places, parents)
    own = {name: value for name, value in tree.items() if name != "extends"}
    for name, value in own.items():
        _locate(value, str(name), f"{path}:{_line(tree, name)}", places, path)
    return _merge(base, _beside(own, path.parent))


def _read_base(
    path: Path, extends: Any, where: str, places: dict[str, str], parents: tuple[Path, ...]
) -> dict[str, Any]:
    """What ``path`` extends, at ``where``: refused when it is missing or leads back to a file that asked for it."""
    if not isinstance(extends, str):
        raise ConfigError(f"{where}: extends: the path of one config file is wanted; got {extends!r}")
    base, chain = path.parent / extends, (*parents, path)
    if not base.is_file():
        raise ConfigError(f"{where}: extends: {base} is not a file")
    if base.resolve() in [parent.resolve() for parent in chain]:
        raise ConfigError(f"{where}: extends: goes in a circle: {' -> '.join(str(p) for p in (*chain, base))}")
    return _read_file(base, places, chain)


def _line(tree: Any, name: Any) -> int:
    """The line, from 1, of a key or list item; the mapping's own line for a key that a YAML merge brought in."""
    position = (tree.lc.data or {}).get(name)
    return (position[0] if position else tree.lc.line) + 1


def _locate(value: Any, dotted: str, where: str, places: dict[str, str], file: Path | None = None) -> None:
    """Note where a key was stated, and the keys inside it; what a replaced list held before is forgotten."""
    if not isinstance(value, Mapping):
        for old in [known for known in places if known.startswith(f"{dotted}.")]:
            del places[old]
    places[dotted] = where
    if isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            place = f"{file}:{_line(value, name)}" if file else where
            _locate(inner, f"{dotted}.{name}", place, places, file)


def _beside(tree: Any, folder: Path) -> Any:
    """The tree with model.architecture made absolute, from the folder of the file (or shell) that states it."""
    model = tree.get("model") if isinstance(tree, Mapping) else None
    stated = model.get("architecture") if isinstance(model, Mapping) else None
    if not isinstance(stated, str):
        return tree
    return {**tree, "model": {**model, "architecture": str((folder / stated).resolve())}}


def _merge(base: Any, over: Any, prefix: str = "") -> Any:
    """``over`` on ``base``: mappings deep, everything else replaced. Stating one cut of prune clears the others."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    merged = dict(base)
    if prefix == "prune.":
        stated = {name for name in CUTS if over.get(name) is not None}
        follows_a_file = isinstance(over.get("blocks", base.get("blocks")), str)
        together = {"remove", "blocks"} if follows_a_file and stated <= {"remove", "blocks"} else set()
        if stated:
            merged = {name: value for name, value in merged.items() if name not in set(CUTS) - together}
    if prefix == "model." and over.get("path", base.get("path")) != base.get("path"):
        merged.pop("architecture", None)
    for name, value in over.items():
        merged[name] = _merge(merged.get(name), value, f"{prefix}{name}.")
    return merged


def _nest(dotted: str, value: Any, tree: Any, override: str, section: Any = Config) -> Any:
    """``a.b=value`` as {a: {b: value}}; a number in the path replaces an item of the list that stands there."""
    head, _, rest = dotted.partition(".")
    field = section.model_fields.get(head) if section is not None else None
    below = _section_of(field.annotation) if field is not None else None
    inner = tree.get(head) if isinstance(tree, Mapping) else None
    if inner is None and field is not None and isinstance(field.default, tuple):
        inner = field.default
    if not rest:
        return {head: value}
    if not isinstance(inner, list | tuple):
        return {head: _nest(rest, value, inner, override, below)}
    index, _, deeper = rest.partition(".")
    if not index.isdigit() or int(index) >= len(inner):
        items = f"name an item 0 to {len(inner) - 1}, or give the whole list" if inner else "give the whole list"
        raise ConfigError(f"override {override!r}: {head} is a list of {len(inner)}; {items}")
    old = inner[int(index)]
    new = _merge(old, _nest(deeper, value, old, override, below)) if deeper else value
    return {head: [*inner[: int(index)], new, *inner[int(index) + 1 :]]}


def _explain(error: ValidationError, places: dict[str, str], file: str) -> str:
    """One line for each key that is wrong."""
    complaints: dict[tuple[str, ...], list[str]] = {}
    values = {}
    for item in error.errors():
        parts = _key_of(item["loc"])
        complaints.setdefault(parts, []).append(_complaint(item, parts))
        values[parts] = item["input"]
    lines = []
    for parts, found in complaints.items():
        if any(other[: len(parts)] == parts and other != parts for other in complaints):
            continue  # what is wrong inside a value is said; that the value as a whole is wrong follows from it
        prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        where = next((places[prefix] for prefix in prefixes if prefix in places), file)
        if found[0].startswith("unknown key"):
            lines.append(f"{where}: {found[0]}")
            continue
        got = "" if isinstance(values[parts], Mapping | Section) else f"; got {values[parts]!r}"
        # A union complains once for each branch that it tried.
        lines.append(f"{where}: {'.'.join(parts)}: {', or '.join(found)}{got}")
    return "\n".join(lines)


def _complaint(item: Mapping[str, Any], parts: tuple[str, ...]) -> str:
    """What is wrong with one key, in a person's words."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return f"unknown key {'.'.join(parts)!r}{_nearest(list(parts))}"
    if kind == "missing":
        return "required, and not set"
    if kind == "string_type" and isinstance(item["input"], int | float):
        return "YAML reads this as a number; put it in quotes"
    message = _WORDS.get(kind) or item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


#: Pydantic's complaints that speak of Python rather than of YAML.
_WORDS = {
    "model_type": "a section of keys is wanted",
    "tuple_type": "a list is wanted",
    "path_type": "a path is wanted",
    "too_short": "a list with at least one item is wanted",
    "string_pattern_mismatch": "only letters, digits, and . _ - after the first letter or digit",
}


def _key_of(location: tuple[Any, ...]) -> tuple[str, ...]:
    """An error's place without the branches of a union that pydantic tried, which are no part of the key."""
    section: Any = Config
    parts = []
    for part in location:
        if isinstance(part, str):
            if section is None:
                continue
            field = section.model_fields.get(part)
            section = _section_of(field.annotation) if field is not None else None
        parts.append(str(part))
    return tuple(parts)


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
