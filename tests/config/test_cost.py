"""The keys of the cost of running: a paper's protocol by its name, and what cannot be measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import dump_config, load_config
from pipeline.config.cost import PROTOCOLS
from tests.config.kit import LEAST, refused, write

NOTA = {
    "prompt_tokens": 12,
    "new_tokens": (128, 512),
    "batches": tuple(2**power for power in range(9)),
    "warm_up": 10,
    "repeats": 20,
}


def test_nothing_is_measured_unless_it_is_asked_for(file: Path) -> None:
    for overrides in ([], ["evaluate.cost=null"], ["evaluate.cost.batches=null"], ["evaluate.cost.batches=[]"]):
        assert load_config(file, overrides).evaluate.cost.batches == (), overrides


def test_one_line_takes_shortened_llms_protocol(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", LEAST + "evaluate: {cost: {protocol: shortened-llm}}\n")
    assert load_config(path).evaluate.cost.model_dump(exclude={"protocol"}) == NOTA
    over = load_config(path, ["evaluate.cost.batches=[1, 2]", "evaluate.cost.repeats=3"]).evaluate.cost
    assert (over.batches, over.repeats, over.new_tokens) == ((1, 2), 3, (128, 512)), "what is stated beside it wins"
    for overrides in ([], ["evaluate.cost.batches=[1, 2]"]):
        config = load_config(path, overrides)
        assert load_config(write(tmp_path / "back.yaml", dump_config(config))) == config


def test_a_protocol_states_every_other_key() -> None:
    for name, stated in PROTOCOLS.items():
        assert stated.keys() == NOTA.keys(), name


def test_what_is_measured_is_part_of_what_the_stage_reads(file: Path) -> None:
    before, after = (load_config(file, [f"evaluate.cost.batches={b}"]).read_by("evaluate") for b in ("[1]", "[1, 2]"))
    assert {key for key in before if before[key] != after[key]} == {"evaluate.cost.batches"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batches=[1, 0]", "cost.batches.1: input should be greater than or equal to 1"),
        ("batches=4", "cost.batches: a list is wanted"),
        ("batches=[2, 4, 2]", "cost.batches: 2 stands twice"),
        ("batches=[2, true]", "cost.batches.1: a number is wanted"),
        ("new_tokens=[]", "cost.new_tokens: a list with at least one item is wanted"),
        ("new_tokens=[1]", "cost.new_tokens.0: input should be greater than or equal to 2"),
        ("prompt_tokens=0", "cost.prompt_tokens: input should be greater than or equal to 1"),
        ("repeats=0", "cost.repeats: input should be greater than or equal to 1"),
        ("warm_up=-1", "cost.warm_up: input should be greater than or equal to 0"),
        ("protocol=shortened_llm", "cost.protocol: not known; did you mean 'shortened-llm'?; got"),
        ("protocol=[1]", "cost.protocol: input should be 'own' or 'shortened-llm'"),
        ("batch=[1]", "did you mean 'evaluate.cost.batches'?"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_its_key(file: Path, override: str, message: str) -> None:
    found = refused(file, f"evaluate.cost.{override}")
    assert message in found, found
