"""What judging computes: rows, items and generated tokens, of a config's own numbers."""

from __future__ import annotations

import pytest

from pipeline.commands.plan_evaluation import TASKS, evaluation_parts, export_parts, training_parts
from pipeline.commands.plan_time import Chip, Part, Shape
from pipeline.config import Config, load_config
from pipeline.evaluation.tasks import sums
from pipeline.evaluation.tasks.definitions import SHORTENED_LLM
from tests import ROOT
from tests.commands.test_plan_time import SMOLLM2

PRUNED = Shape(21, 21 * 3_540_096, SMOLLM2.outside, 576, 2)
#: Bound by products alone.
CHIP = Chip(1e12, 1e18)


def of(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "demo.yaml", ["evaluate.tasks.names=[]", *overrides])


def judged(*overrides: str) -> tuple[dict[str, Part], list[str]]:
    parts, missing = evaluation_parts(of(*overrides), SMOLLM2, PRUNED, 2)
    return {part.what.split(":")[0]: part for part in parts}, missing


def test_perplexities_read_their_rows_with_each_model():
    parts, missing = judged()
    read = 32 * 256 * (SMOLLM2.forward(256) + 2 * PRUNED.forward(256))
    assert parts["perplexity of 3 models"].seconds(CHIP) == pytest.approx(read / 1e12 / 2)
    parts, missing = judged(
        "evaluate.perplexity.wiki={text: x.txt, length: 128}", "evaluate.perplexity.held_out.rows=8"
    )
    assert "held_out 8 x 256" in parts["perplexity of 3 models"].what
    assert missing == ["evaluate.perplexity.wiki.rows null: not in the time of stage evaluate"]


def test_every_task_of_the_presets_is_counted_and_others_are_named():
    assert set(TASKS) == {*SHORTENED_LLM, sums.NAME} and TASKS[sums.NAME].items == len(sums.items())
    parts, missing = judged("evaluate.tasks.names=[shortened-llm,sums,gsm8k]", "evaluate.tasks.limit=300")
    assert "300 items of hellaswag" in parts["3 models"].what and "200 items of sums" in parts["3 models"].what
    assert missing == ["evaluate.tasks: gsm8k, whose items are not known here: not in the time of stage evaluate"]
    one, _ = judged("evaluate.tasks.names=[hellaswag]", "evaluate.tasks.limit=160")
    # 160 items of four answers of 79 tokens, 16 in a forward.
    read = 160 * 4 * 79 * (SMOLLM2.forward(0) + 2 * PRUNED.forward(0))
    assert one["3 models"].seconds(CHIP) == pytest.approx(read / 1e12 / 2)
    shown, _ = judged("evaluate.tasks.names=[hellaswag]", "evaluate.tasks.limit=160", "evaluate.tasks.shots=3")
    assert shown["3 models"].seconds(CHIP) == pytest.approx(4 * one["3 models"].seconds(CHIP))


def test_generation_waits_for_weights_token_by_token_on_one_process():
    parts, _ = judged()
    slow = Chip(1e18, 1e9)
    each = (SMOLLM2.weights + 2 * PRUNED.weights) / 1e9
    assert parts["samples of 3 models"].seconds(slow) == pytest.approx(3 * 24 * each)
    assert parts["speed of 3 models"].seconds(slow) == pytest.approx(3 * 24 * each), "two timed runs behind one"
    assert "cost of running 3 models" not in parts
    parts, _ = judged("evaluate.cost={batches: [1, 4], new_tokens: [8, 16], warm_up: 1, repeats: 3}")
    assert parts["cost of running 3 models"].seconds(slow) == pytest.approx(2 * 4 * (8 + 16) * each)


def test_exports_are_judged_beside_the_run_and_held_out_rows_within_training():
    assert export_parts(of(), PRUNED, 1, 2) == []
    four = of("train.export_every=4")
    (exports,) = export_parts(four, PRUNED, 4, 2)
    assert exports.beside and "4 exports, each asked for 2 perplexities" in exports.what
    assert exports.seconds(CHIP) == pytest.approx(4 * 2 * 32 * 256 * PRUNED.forward(256) / 1e12 / 2)
    (held_out,) = training_parts(of(), PRUNED, 2)
    # At steps 0, 8 and 16.
    assert held_out.flops == 3 * 32 * 256 * PRUNED.forward(256)
    asked = training_parts(of("evaluate.during={every: 6, tasks: [sums]}"), PRUNED, 2)
    assert asked[1].what == "tasks 4 times: 100 items of sums"
