"""A chain as configs: what each link removes, trains and begins with, and which configs make no chain."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chain import apportion, chain_links, last_export, stages_of
from pipeline.config import STAGES, ConfigError, dump_config, load_config

LEAST = """\
run: {name: try, folder: some/runs}
model: {path: some/model, revision: abc}
data: {sources: [{path: text}], row_length: 64}
prune: {remove: 7}
train: {tokens: 5000, global_batch: 8}
chain: {parts: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(LEAST)
    return path


@given(st.data(), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_parts_sum_to_the_whole_and_lie_within_one_of_their_share(data, weights):
    whole = data.draw(st.integers(len(weights), 10**6))
    parts = apportion(whole, weights)
    assert sum(parts) == whole and min(parts) >= 1
    for part, weight in zip(parts, weights, strict=True):
        share = whole * weight / sum(weights)
        # A part that is raised to 1 is taken from the others.
        assert part == 1 or share - len(weights) < part < share + 1


def test_parts_by_hand():
    assert apportion(7, [1, 1, 1]) == [3, 2, 2]
    assert apportion(20, [3, 2, 1]) == [10, 7, 3]
    assert apportion(4, [2, 1]) == [3, 1]
    assert apportion(3, [3, 2, 1]) == [1, 1, 1]


def test_the_links_remove_and_train_all_of_it(file):
    config = load_config(file)
    links = chain_links(config)
    assert [link.run.name for link in links] == ["try-1", "try-2", "try-3"]
    assert [link.prune.remove for link in links] == [3, 2, 2]
    # 10 steps of 512 tokens, by the blocks that go; the last link has what is left of the budget.
    assert [link.steps for link in links] == [4, 3, 3]
    assert [link.train.tokens for link in links] == [2048, 1536, 1416]
    assert sum(link.steps for link in links) == config.steps
    front = chain_links(load_config(file, ["chain.schedule=front", "chain.token_shares=[1, 1, 8]"]))
    assert [link.prune.remove for link in front] == [4, 2, 1]
    assert [link.steps for link in front] == [1, 1, 8]


def test_a_link_begins_with_what_the_one_before_it_left(file):
    config = load_config(file)
    first, second, third = chain_links(config)
    assert (first.model, first.data) == (config.model, config.data)
    for link, before in ((second, first), (third, second)):
        assert (
            link.model.path == str(last_export(before)) == f"{before.run_folder}/train/exports/step-{before.steps:08d}"
        )
        assert (link.model.revision, link.data.after) == (None, str(before.run_folder))
        # The first dense model, for whatever is compared with it.
        assert (link.model.dense, link.model.dense_revision) == ("some/model", "abc")
    assert stages_of(0, [first, second]) == ["data", "score", "prune", "train"]
    assert stages_of(1, [first, second]) == list(STAGES)


def test_the_first_dense_model_of_a_chain_that_follows_a_run_is_that_run_s(file):
    overrides = ["model.dense=the/first", "model.dense_revision=v1", "data.after=runs/before"]
    links = chain_links(load_config(file, overrides))
    assert {(link.model.dense, link.model.dense_revision) for link in links} == {("the/first", "v1")}
    assert [link.data.after for link in links] == ["runs/before", "some/runs/try-1", "some/runs/try-2"]


def test_a_link_s_config_is_one_of_an_ordinary_run(file, tmp_path):
    for link in chain_links(load_config(file)):
        path = tmp_path / "link.yaml"
        path.write_text(dump_config(link))
        assert load_config(path) == link
        assert link.chain.parts is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["chain.parts=null"], r"chain\.parts is not set"),
        (["prune.ratio=0.5"], r"prune\.ratio would be taken of each part's own model"),
        (["prune.parameters=1e6"], r"prune\.parameters would be taken"),
        (["prune.perplexity=20"], r"prune\.perplexity is measured on an untrained model"),
        (["prune.blocks=[1, 2]"], r"prune\.blocks names blocks of the first model"),
        (["prune.remove=4", "prune.blocks=order.csv"], r"prune\.blocks order\.csv orders the first model's blocks"),
        (["train.objective=both", "train.distill={samples: 5, store: answers}"], r"train\.distill\.samples: answers"),
        (["train.init=dense"], r"train\.init dense"),
        (["prune.remove=2"], r"chain\.parts 3: prune\.remove 2 is less than one for each part"),
        (["train.tokens=600"], r"chain\.parts 3: train\.tokens \(2 steps\) is less"),
    ],
)
def test_what_cannot_be_removed_in_parts_is_refused_with_the_reason(file, overrides, said):
    with pytest.raises(ConfigError, match=said):
        chain_links(load_config(file, overrides))
