"""The keys of a source: templates of instruction data, and what is refused of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.config import load_config
from pipeline.config.source import InstructionSection
from pipeline.errors import RegrowError


def test_the_default_prompts_are_alpaca_s():
    asked = InstructionSection()
    assert (asked.instruction_key, asked.input_key, asked.response_key) == ("instruction", "input", "output")
    assert asked.template.format(instruction="Add.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )
    given = asked.template_with_input.format(instruction="Add.", input="1 2")
    assert given.startswith("Below is an instruction that describes a task, paired with an input that provides further")
    assert given.endswith("request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")


@pytest.mark.parametrize(
    "template", ["no braces", "{instruction} {other}", "{instruction!r}", "{0}", "{instruction:>9}"]
)
def test_a_template_that_records_do_not_fill_is_refused(template):
    with pytest.raises(ValidationError, match=r"a template has \{instruction\}, and no other braces"):
        InstructionSection(template=template)


def test_a_template_may_have_braces_of_its_own():
    assert InstructionSection(template="{{x}} {instruction}").template.format(instruction="y") == "{x} y"


def test_instruction_data_is_not_tokenised_ahead(tiny_config):
    asked = ["data.sources=[{path: here, format: instruction}]", "data.tokenised=ids"]
    with pytest.raises(RegrowError, match="tokenised keeps no prompt's end"):
        load_config(tiny_config, asked)
