"""The plan of a chain: its links, what they add up to, and what is said of cuts that are large."""

from __future__ import annotations

import json

import pytest

from pipeline.commands.plan_chain import chain_text, plan_chain
from pipeline.config import load_config
from pipeline.errors import RegrowError
from tests.commands.presets import PRESETS, preset


def chain(size: str, *overrides: str) -> dict:
    return plan_chain(load_config(PRESETS / f"{size}.yaml", overrides))


def test_the_links_of_a_published_size() -> None:
    """20 of Vicuna-7B's 32 blocks in two parts: the last link ends where one cut would."""
    made = chain("2.7b", "chain.parts=2")
    assert json.loads(json.dumps(made)) == made
    assert [link["run"] for link in made["links"]] == ["vicuna-2.7b-1", "vicuna-2.7b-2"]
    assert [link["blocks"]["left"] for link in made["links"]] == [22, 12]
    whole = preset("2.7b")
    assert made["links"][-1]["parameters"] == whole["parameters"]["pruned"]
    assert sum(link["tokens"] for link in made["links"]) == whole["training"]["tokens"]
    assert sum(link["steps"] for link in made["links"]) == whole["training"]["steps"]
    first, last = made["links"]
    # A token costs the last link what it costs the whole run, and the first one more.
    per_token = [link["flops"] / (link["steps"] * whole["training"]["tokens_per_step"]) for link in (first, last)]
    assert per_token[0] > per_token[1] == whole["flops"]["per_token"]
    assert made["first"]["blocks"] == {"dense": 32, "removed": 10, "pruned": 22, "uniform": True}


@pytest.mark.parametrize("asked", ["train.method=lora", "train.objective=distill"])
def test_adapters_and_a_teacher_are_counted_in_every_link(asked: str) -> None:
    """The last link's model is what one cut leaves; the teacher of both is the first dense model, also of the second,
    which begins with another."""
    made, whole, plain = chain("2.7b", "chain.parts=2", asked), preset("2.7b", asked), preset("2.7b")
    tokens = [link["steps"] * whole["training"]["tokens_per_step"] for link in made["links"]]
    per_token = [link["flops"] / count for link, count in zip(made["links"], tokens, strict=True)]
    assert per_token == [made["first"]["flops"]["per_token"], whole["flops"]["per_token"]]
    assert per_token[1] != plain["flops"]["per_token"]


def test_large_cuts_are_said_with_who_advises_against_them() -> None:
    source = "github.com/NVIDIA/Model-Optimizer, examples/pruning/README.md"
    notes = [note for note in preset("2.7b")["notes"] if source in note]
    assert [note.split(",")[0] for note in notes] == [
        "20 of 32 blocks go in one cut",
        "20 of 32 blocks are gone in all",
    ]
    assert "regrow chain removes them in parts" in notes[0]
    assert not any(source in note for note in preset("5.5b")["notes"])
    made = chain("2.7b", "chain.parts=2")
    assert not any(source in note for note in made["first"]["notes"]), "10 of 32 in one cut are less than a third"
    (cut, whole) = made["notes"]
    assert cut.startswith("link 2: 10 of 22 blocks go in one cut, 45%; up to a third")
    assert whole.startswith("link 2: 20 of 32 blocks are gone in all, 62%; above half")
    assert chain("2.7b", "chain.parts=4", "prune.remove=14")["notes"] == []


def test_the_text_carries_the_links_and_the_first_one_s_plan() -> None:
    text = chain_text(chain("2.7b", "chain.parts=2"))
    for part in ("vicuna-2.7b-2", "22 -> 12", "in all", "note: link 2: ", "plan of vicuna-2.7b-1", "memory per GPU"):
        assert part in text, f"{part!r} is missing in:\n{text}"


def test_what_a_later_link_cannot_remove_is_refused() -> None:
    with pytest.raises(RegrowError, match=r"link 2 of 2, run vicuna-5\.5b-2: .*add 3 to it"):
        cut = ("prune.selection=contiguous", "prune.remove=7", "score.ppl_n=[4]", "chain.parts=2")
        chain("5.5b", *cut)
