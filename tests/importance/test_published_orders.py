"""The block orders that Shortened LLM published, and the models that come out of them here.

The orders are the ``block_order.csv`` files of github.com/Nota-NetsPresso/shortened-llm at 4031a92, the removed sets
and the parameter counts those of its models (its "20%" model of 7B has 26 of 32 blocks, ...). Blocks are really
removed, from models of the published shapes on the meta device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.criteria import CONTROLS, CRITERIA
from pipeline.importance.controls import control_blocks
from pipeline.importance.criteria import Settings
from pipeline.importance.cut import Cut
from pipeline.importance.greedy import greedy_rounds
from pipeline.importance.scoring import score_blocks
from pipeline.importance.selection import choose_blocks, choose_window, order_blocks, read_block_order
from pipeline.model.blocks import find_blocks, remove_blocks
from pipeline.model.costs import meta_model
from tests.families import VOCABULARY, build

#: (model, criterion) -> the order, least important first. Taylor and magnitude are without the "+" rule.
ORDERS = {
    ("llama-2-7b", "ppl"): "11,8,24,21,12,7,9,10,18,27,14,23,25,15,20,26,17,6,13,28,22,19,5,29,4,16,30,3,2,31,1,0",
    ("llama-2-7b", "taylor"): "0,28,27,25,29,26,24,23,21,22,30,20,19,18,17,14,16,13,12,15,31,11,10,1,9,8,7,6,5,2,4,3",
    ("vicuna-7b", "ppl"): "25,27,10,24,11,20,8,29,6,5,26,22,9,7,15,12,16,18,21,13,28,19,4,23,14,30,17,3,1,31,2,0",
    ("vicuna-7b", "taylor"): "0,27,26,24,25,29,28,23,30,21,22,31,20,19,18,17,1,15,14,16,13,12,11,10,9,8,7,6,3,2,5,4",
    ("vicuna-7b", "magnitude"): "0,1,9,8,10,5,7,3,12,4,6,13,14,15,11,2,18,17,16,19,21,23,20,22,24,25,26,28,27,30,29,31",
    ("llama-1-7b", "ppl"): "24,26,25,10,27,13,22,14,9,29,12,15,8,21,7,28,6,16,18,23,5,20,11,19,17,3,4,30,1,31,2,0",
    ("llama-1-7b", "taylor"): "0,27,24,26,25,29,28,23,22,21,30,20,19,18,17,15,14,13,16,31,1,12,11,10,9,8,7,6,5,3,2,4",
    ("vicuna-13b", "ppl"): "35,32,24,12,34,20,26,36,9,31,13,27,21,25,14,29,37,30,18,19,28,23,38,15,33,5,16,10,4,22,8,"
    "7,11,3,17,6,39,1,2,0",
    ("vicuna-13b", "taylor"): "0,36,33,32,34,37,35,31,30,29,38,27,39,28,26,24,25,23,22,21,19,20,1,18,17,16,15,14,13,12,"
    "11,8,10,9,7,6,5,2,4,3",
    ("llama-3-8b", "ppl"): "8,23,9,11,10,25,26,12,22,19,24,14,7,21,3,15,18,4,28,13,16,20,17,27,6,5,29,2,30,31,1,0",
    ("llama-3-8b", "taylor"): "24,25,26,28,29,23,27,22,20,19,21,30,18,17,16,13,14,15,12,11,10,9,8,7,6,5,31,4,3,0,2,1",
    ("gemma-2b", "ppl"): "7,8,6,9,5,4,10,12,11,3,2,13,1,15,14,16,17,0",
    ("gemma-2b", "taylor"): "10,9,8,11,15,12,7,14,13,16,6,5,4,3,2,17,1,0",
    ("gemma-7b", "ppl"): "14,15,13,18,7,12,11,16,9,5,10,17,20,6,21,4,8,22,19,23,3,24,2,1,25,26,27,0",
}
#: The same file for both: weights alone make it, and Vicuna's fine-tuning did not change their order.
ORDERS["llama-1-7b", "magnitude"] = ORDERS["vicuna-7b", "magnitude"]

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
#: model -> (class of its config, shape, parameters of the dense model, parameters of one block)
MODELS: dict[str, tuple[str, dict[str, int], int, int]] = {
    "llama-1-7b": ("LlamaConfig", LLAMA_7B, 6_738_415_616, 202_383_360),
    "llama-2-7b": ("LlamaConfig", LLAMA_7B, 6_738_415_616, 202_383_360),
    "vicuna-7b": ("LlamaConfig", LLAMA_7B, 6_738_415_616, 202_383_360),
    "vicuna-13b": (
        "LlamaConfig",
        {
            **LLAMA_7B,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_attention_heads": 40,
            "num_hidden_layers": 40,
        },
        13_015_864_320,
        317_204_480,
    ),
    "llama-3-8b": (
        "LlamaConfig",
        {**LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
        8_030_261_248,
        218_112_000,
    ),
    "gemma-2b": (
        "GemmaConfig",
        {
            "num_key_value_heads": 1,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "head_dim": 256,
            "vocab_size": 256000,
        },
        2_506_172_416,
        110_104_576,
    ),
    "gemma-7b": (
        "GemmaConfig",
        {
            "num_key_value_heads": 16,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "head_dim": 256,
            "vocab_size": 256000,
        },
        8_537_680_896,
        276_830_208,
    ),
}


def steps(*added: tuple[int, set[int]]) -> dict[int, set[int]]:
    """Removed sets as the table of the published models has them: each row is what is added to the one before it."""
    sets: dict[int, set[int]] = {}
    for count, blocks in added:
        sets[count] = blocks | (sets[max(sets)] if sets else set())
    return sets


ALL_FREE = set(range(4, 30))
TAYLOR = {6: set(range(24, 30)), 9: set(range(21, 30)), 11: set(range(19, 30)), 26: ALL_FREE}
#: (model, criterion) -> how many go -> which, first 4 and last 2 protected.
REMOVED = {
    ("llama-2-7b", "ppl"): steps(
        (6, {7, 8, 11, 12, 21, 24}), (9, {9, 10, 18}), (11, {14, 27}), (15, {15, 20, 23, 25}), (20, {6, 13, 17, 26, 28})
    )
    | {26: ALL_FREE},
    ("vicuna-7b", "ppl"): steps(
        (6, {10, 11, 20, 24, 25, 27}), (9, {6, 8, 29}), (11, {5, 26}), (15, {7, 9, 15, 22}), (20, {12, 13, 16, 18, 21})
    )
    | {26: ALL_FREE},
    ("llama-1-7b", "ppl"): steps((6, {10, 13, 24, 25, 26, 27}), (9, {9, 14, 22}), (11, {12, 29})) | {26: ALL_FREE},
    ("llama-3-8b", "ppl"): {6: {8, 9, 10, 11, 23, 25}, 26: ALL_FREE},
    ("vicuna-13b", "ppl"): steps((8, {12, 20, 24, 26, 32, 34, 35, 36}), (11, {9, 13, 31}), (15, {14, 21, 25, 27})),
    ("llama-1-7b", "taylor"): TAYLOR,
    ("llama-2-7b", "taylor"): TAYLOR,
    ("vicuna-7b", "taylor"): TAYLOR,
}
OF_7B = {
    1: 6_536_032_256,
    6: 5_524_115_456,
    9: 4_916_965_376,
    11: 4_512_198_656,
    15: 3_702_665_216,
    20: 2_690_748_416,
    26: 1_476_448_256,
}
#: model -> how many go -> parameters of what is left, as published.
PARAMETERS = {
    "llama-1-7b": OF_7B,
    "llama-2-7b": OF_7B,
    "vicuna-7b": OF_7B,
    "llama-3-8b": {1: 7_812_149_248},
    "vicuna-13b": {8: 10_478_228_480},
}


def on_meta(name: str) -> Any:
    """A dense model of the published shape, without memory for its weights."""
    import transformers

    class_name, values, *_ = MODELS[name]
    return meta_model(getattr(transformers, class_name)(**values))


@pytest.mark.parametrize(("name", "criterion"), ORDERS, ids=lambda value: value)
def test_a_published_order_gives_the_published_models(name, criterion, tmp_path: Path):
    (tmp_path / "block_order.csv").write_text(ORDERS[name, criterion] + "\n")
    _, shape, dense, block = MODELS[name]
    total = shape["num_hidden_layers"]
    order = read_block_order(tmp_path / "block_order.csv", total)
    sets = REMOVED.get((name, criterion), {})
    counted = PARAMETERS.get(name, {})
    # Where no set is published, the rule's ends: one block, and all that are free.
    for count in sorted({1, *sets, *counted, total - 6}):
        removed = choose_blocks(order, Cut(remove=count))
        assert set(removed) == sets.get(count, set(removed)), f"{count} blocks: another set than the published one"
        # How many parameters stay does not depend on the criterion: each model's counts are taken once.
        if criterion == "ppl" and count in {*counted, total - 6}:
            model = on_meta(name)
            assert sum(parameter.numel() for parameter in model.parameters()) == dense, "not the published shape"
            remove_blocks(model, removed)
            assert len(find_blocks(model)) == model.config.num_hidden_layers == total - count
            left = sum(parameter.numel() for parameter in model.parameters())
            assert left == dense - count * block == counted.get(count, left), f"{count} blocks: {left:,} are left"
            assert model.config.regrow["removed_blocks"] == removed
    assert removed == list(range(4, total - 2)), "only the protected blocks were left to stay"


def test_facts_that_hold_for_every_published_model():
    """What Shortened LLM reports of its scores: if these fail, an order was copied wrongly."""
    orders = {key: [int(block) for block in line.split(",")] for key, line in ORDERS.items()}
    assert all(order[-1] == 0 for (_, criterion), order in orders.items() if criterion == "ppl")
    blamed = {name for (name, criterion), order in orders.items() if criterion != "ppl" and order[0] == 0}
    assert blamed == {"llama-1-7b", "llama-2-7b", "vicuna-7b", "vicuna-13b"}, "the reason for the protect rule"


def test_26_of_32_is_one_model_by_every_criterion_every_selection_and_every_control():
    """The protect rule leaves six blocks, so that comparing criteria there compares nothing."""
    model = build("llama", num_hidden_layers=32)
    ids = torch.randint(0, VOCABULARY, (24, 16), generator=torch.Generator().manual_seed(0))
    entries = score_blocks(model, [ids], CRITERIA, Settings(ppl_lengths=(26,), linear_lengths=(26,)))
    assert len({tuple(entry["order"]) for entry in entries.values()}) > 3, "the criteria order alike: nothing is shown"
    one_shot = {name: choose_blocks(entry["order"], Cut(remove=26)) for name, entry in entries.items()}
    by_ratio = {f"{name}, 26/32": choose_blocks(entry["order"], Cut(ratio=26 / 32)) for name, entry in entries.items()}
    windows = {
        f"{name}, contiguous": choose_window(entry["windows"], Cut(remove=26))
        for name, entry in entries.items()
        if name != "linear" and "windows" in entry
    }
    greedy = {"greedy": sorted(one.removed for one in greedy_rounds(model, [ids[:1, :4]], Cut(remove=26)))}
    controls = {name: control_blocks(name, 32, Cut(remove=26), seed=5) for name in CONTROLS}
    chosen = {**one_shot, **by_ratio, **windows, **greedy, **controls}
    assert len(windows) == 9 and len(chosen) == 2 * len(CRITERIA) + 9 + 1 + 3
    assert {name: blocks for name, blocks in chosen.items() if blocks != list(range(4, 30))} == {}
    assert order_blocks(entries["ppl"]["scores"]) == entries["ppl"]["order"]
