"""The keys of a source of documents, and of how records of instruction data are read.

The defaults for instructions are Alpaca's fields, and the two templates that Alpaca-LoRA, LLM-Pruner and Shortened LLM
train with.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.config.keys import AsWritten, Real, Section, key

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def _with(*names: str) -> Callable[[str], str]:
    """A template that has these names in braces, and no others."""

    def check(template: str) -> str:
        # What is not a name (a format, an index, a number) is not in names.
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
        if {name for name, _, _ in parts} != set(names) or any(how or conversion for _, how, conversion in parts):
            listed = " and ".join(f"{{{name}}}" for name in names)
            raise ValueError(
                f"a template has {listed}, and no other braces but doubled ones, which stand for themselves"
            )
        return template

    return check


class InstructionSection(Section):
    """Where records of instruction data keep what, and the prompt that is made of it."""

    instruction_key: str = key("instruction", "Field that holds the instruction, or the whole prompt.", source="Alpaca")
    input_key: str | None = key(
        "input", "Field that holds what the instruction is about, if anything; null: there is none.", source="Alpaca"
    )
    response_key: str = key("output", "Field that holds the response, which alone is trained on.", source="Alpaca")
    template: Annotated[str, AfterValidator(_with("instruction"))] = key(
        TEMPLATE, "The prompt of a record without input.", source="Shortened LLM"
    )
    template_with_input: Annotated[str, AfterValidator(_with("instruction", "input"))] = key(
        TEMPLATE_WITH_INPUT, "The prompt of a record with input.", source="Shortened LLM"
    )


class Source(Section):
    path: Annotated[str, AsWritten] = key(
        ...,
        "Folder, glob or file; a data set's name on the hub; or a URL with {000..099} for numbers (https, s3, ...).",
        source="required",
        min_length=1,
    )
    revision: str | None = key(None, "Commit, tag or branch of the data set on the hub.")
    files: str = key("**", "Glob of the files to take inside a folder or hub data set.")
    format: Literal["auto", "jsonl", "tar", "parquet", "tokenised", "instruction"] = key(
        "auto",
        "Format of the shards; auto goes by the file's ending and, for a tar, by what is in it. instruction: jsonl or "
        "parquet, by the ending, with a prompt and a response in each record, which is a row of its own, padded; the "
        "response alone is trained on.",
    )
    text_key: str = key("text", "Field that holds a document's text.", source="SlimPajama")
    instruction: InstructionSection = Field(default_factory=InstructionSection)
    exclude_domains: tuple[str, ...] = key(
        ("RedPajamaBook",),
        "Documents whose meta.redpajama_set_name is one of these are left out (Books3 was withdrawn).",
        source="NeMo's SlimPajama tutorial",
    )
    weight: Real = key(1.0, "Share of the rows that this source gives, relative to the others' weights.", gt=0)
