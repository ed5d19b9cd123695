"""The keys of perplexity: the held-out rows first, then other texts by name, and presets of texts that papers use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipeline.config.keys import AsWritten, Section, Whole, key

#: Keys that stood in evaluate.perplexity itself when it had one text.
MOVED = ("length", "bos", "rows")
#: Of a text on the hub alone.
OF_HUB = ("subset", "split", "revision")


def _every(value: object) -> object:
    """``row`` says what ``every`` says: a BOS before each row."""
    return "every" if value == "row" else value


Bos = Annotated[Literal["document", "every", "none"], BeforeValidator(_every)]
BOS = "BOS policy: document (where documents begin, if the tokenizer puts one there), every (before each row), none."


class HeldOutSection(Section):
    length: Whole | None = key(None, "Tokens in a row; null takes data.row_length.", stages="evaluate", ge=2)
    bos: Bos = key("document", BOS, stages="evaluate")
    rows: Whole | None = key(256, "Held-out rows to score; null takes all.", stages="evaluate", ge=1)


class TextSection(Section):
    text: Annotated[str, AsWritten] | None = key(
        None,
        "Folder, glob or file: jsonl, parquet or tar as in data.sources, or plain text (.txt, .raw, .tokens).",
        min_length=1,
    )
    dataset: str | None = key(None, "Data set on the hub instead, as the library datasets names it.", min_length=1)
    subset: str | None = key(None, "Subset (configuration) of the data set.")
    split: str | None = key(None, "Split of the data set; required with it.")
    revision: str | None = key(None, "Commit, tag or branch of the data set.")
    column: str = key("text", "Field that holds a document's text.", source="field's practice")
    join: str | None = key(
        "\n\n",
        "What stands between documents that become one text; null: documents one by one, as training has them.",
        source="Shortened LLM",
    )
    special_tokens: Literal["parse", "plain"] = key(
        "parse",
        "As data.special_tokens. parse, as tokenizers do by themselves, makes <unk> the token where there is one.",
        source="Shortened LLM",
    )
    length: Whole | None = key(None, "Tokens in a row, its BOS included; null takes data.row_length.", ge=2)
    stride: Whole | None = key(
        None,
        "Tokens of text between the beginnings of rows; null: no overlap. With overlap only a row's new tokens count.",
        ge=1,
    )
    bos: Bos = key("document", BOS)
    rows: Whole | None = key(None, "The first so many rows; null takes all.", ge=1)

    @model_validator(mode="after")
    def _one_place(self) -> TextSection:
        if (self.text is None) == (self.dataset is None):
            both = "both are" if self.text is not None else "neither is"
            raise ValueError(f"exactly one of text (local) and dataset (on the hub) must be set; {both}")
        stated = [name for name in OF_HUB if getattr(self, name) is not None]
        if self.text is not None and stated:
            raise ValueError(f"{stated[0]} goes with dataset; text is local")
        if self.dataset is not None and self.split is None:
            raise ValueError("dataset needs its split, for example split: test")
        return self

    @model_validator(mode="after")
    def _no_gap(self) -> TextSection:
        room = None if self.length is None else self.length - (self.bos == "every")
        if room is not None and self.stride is not None and self.stride > room:
            raise ValueError(f"stride {self.stride} leaves tokens out: a row has {room} tokens of text")
        return self


_WIKITEXT2 = {"dataset": "Salesforce/wikitext", "subset": "wikitext-2-raw-v1", "split": "test"}
# Its own branch has a script, which datasets no longer runs; this one is the hub's conversion of it.
_PTB = {
    "dataset": "ptb-text-only/ptb_text_only",
    "revision": "refs/convert/parquet",
    "split": "validation",
    "column": "sentence",
}
#: Texts by name, as a paper's code measures them. Shortened LLM's (after LLM-Pruner's): rows of 128 tokens of the
#: joined text, and the same with a BOS put before each.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "shortened-llm": {
        f"{name}{suffix}": {**place, **rows}
        for name, place in (("wikitext2", _WIKITEXT2), ("ptb", _PTB))
        for suffix, rows in (
            ("", {"length": 128, "bos": "document"}),
            ("-bos", {"length": 129, "bos": "every"}),
        )
    }
}


class PerplexitySection(Section):
    """``held_out``, and texts under names of their own; one that is null is not measured."""

    model_config = ConfigDict(extra="allow")
    named: ClassVar[type[BaseModel] | None] = TextSection
    __pydantic_extra__: dict[str, TextSection | None]

    preset: Literal[tuple(PRESETS)] | None = key(  # type: ignore[valid-type]
        None,
        "Texts of a published protocol: shortened-llm is WikiText-2 and PTB in rows of 128 tokens, without and with a "
        "BOS before each (wikitext2, wikitext2-bos, ptb, ptb-bos). What is stated for one of them counts.",
    )
    held_out: HeldOutSection = Field(default_factory=HeldOutSection)

    @field_validator("held_out", mode="before")
    @classmethod
    def _always(cls, value: object) -> object:
        if value is None:
            raise ValueError("it is always measured, and cannot be null")
        return value

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, stated: Any) -> Any:
        """The texts of the preset under what is stated of them."""
        if isinstance(stated, str):
            raise ValueError(f"a section of keys is wanted; for a preset write perplexity: {{preset: {stated}}}")
        if not isinstance(stated, Mapping):
            return stated
        # As a text null would mean one that is not measured, and the old key would be passed over.
        texts = {name: "null" if name in MOVED and value is None else value for name, value in stated.items()}
        preset = stated.get("preset")
        for name, text in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
            own = texts.get(name, {})
            if isinstance(own, Mapping):
                local = own.get("text") is not None
                texts[name] = {**({} if local else text), **_of_rows(text), **own}
        return texts

    @model_validator(mode="after")
    def _names(self) -> PerplexitySection:
        for name in self.__pydantic_extra__:
            if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
                raise ValueError(f"the name of a text has letters, digits, _ and - alone; {name!r} has others")
        return self

    @property
    def texts(self) -> dict[str, TextSection]:
        """The texts beside ``held_out`` by name, in the order in which they were stated."""
        return {name: text for name, text in self.__pydantic_extra__.items() if text is not None}


def _of_rows(text: Mapping[str, Any]) -> dict[str, Any]:
    return {name: text[name] for name in ("length", "bos")}
