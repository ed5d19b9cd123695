"""Exchanges: what a record of instruction data becomes, and what stands in its place where a part is missing."""

from __future__ import annotations

import pickle

import pytest

from pipeline.data.instructions import Exchange
from pipeline.data.texts import key_of, named_key, text_of
from tests.data.exchanges import FORM


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Q: Add. (1 2)\nA:\n"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "Q: Add.\nA:\n"),
        ({"instruction": "Add.", "input": " \n", "output": "3"}, "Q: Add.\nA:\n"),
        ({"instruction": "Add.", "input": None, "output": "3"}, "Q: Add.\nA:\n"),
        ({"instruction": "Add.", "output": "3"}, "Q: Add.\nA:\n"),
    ],
)
def test_prompt_and_response_are_one_text_that_knows_where_the_prompt_ends(record, prompt):
    found = text_of(record, FORM)
    assert isinstance(found, Exchange) and found == prompt + "3"
    assert found[: found.prompt] == prompt
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.prompt) == (found, found.prompt)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"instruction": "Add.", "input": ""}, "no such key"),
        ({"instruction": None, "output": "3"}, "null"),
        ({"instruction": "Add.", "output": ""}, "empty"),
        ({"instruction": " ", "output": "3"}, "white space alone"),
        ({"instruction": "Add.", "input": 12, "output": "3"}, "a number"),
        ({"instruction": "Add.", "output": "\ud83d"}, "half of a surrogate pair"),
    ],
)
def test_a_record_without_one_of_its_parts_has_no_text(record, kind):
    assert text_of(record, FORM).kind == kind


def test_messages_name_the_keys_that_a_record_must_have():
    assert named_key(FORM) == "'instruction' or 'output'" and named_key("text") == "'text'"
    assert (key_of(FORM), key_of("text")) == ("the keys of instruction", "text_key")
