"""Generation against step-by-step argmax without a cache, its counts, and what it must leave untouched."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

from pipeline.evaluation.generation import generate_samples, measure_generation
from pipeline.run import RegrowError

PROMPTS = ("The ferry crosses", "In spring the meadows beside the water", "Nobody")


def argmax_ids(model, ids: list[int], count: int) -> list[int]:
    """``count`` ids after ``ids``, each from a full forward over all before it, without a cache."""
    model.eval()
    made = list(ids)
    with torch.no_grad():
        for _ in range(count):
            made.append(int(model(input_ids=torch.tensor([made]), use_cache=False).logits[0, -1].argmax()))
    return made[len(ids) :]


def end_at(model, token: int) -> None:
    model.generation_config.eos_token_id = token


def test_samples_equal_argmax_without_cache(model, tokenizer):
    samples = generate_samples(model, tokenizer, PROMPTS, 16, "cpu")
    assert [sample["prompt"] for sample in samples] == list(PROMPTS)
    assert model.training, "the training flag was not restored"
    for sample in samples:
        ids = tokenizer(sample["prompt"])["input_ids"]
        whole = tokenizer.decode(ids + argmax_ids(model, ids, 16), skip_special_tokens=True)
        assert sample["prompt"] + sample["text"] == whole, "not what argmax writes step by step"
    assert len({sample["text"] for sample in samples}) == 3, "texts that are all alike cannot show a mix-up"


def test_own_settings_of_the_model_do_not_matter_and_come_back(model, tokenizer, caplog, monkeypatch):
    plain = generate_samples(model, tokenizer, PROMPTS, 12, "cpu")
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.top_k, own.min_p = True, 0.6, 0.9, 20, 0.1
    own.repetition_penalty, own.no_repeat_ngram_size, own.max_length, own.min_length = 1.7, 2, 20, 5
    kept = own.to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate_samples(model, tokenizer, PROMPTS, 12, "cpu") == plain, "chat settings changed greedy text"
    assert not caplog.records, f"generate warned: {[record.getMessage() for record in caplog.records]}"
    assert model.generation_config is own and own.to_dict() == kept, "the model's own settings were lost"


def test_samples_stop_at_an_end_token(model, tokenizer):
    ids = tokenizer(PROMPTS[0])["input_ids"]
    made = argmax_ids(model, ids, 8)
    first = next(place for place in range(2, 8) if made[place] not in made[:place])
    end_at(model, made[first])
    text = generate_samples(model, tokenizer, PROMPTS[:1], 16, "cpu")[0]["text"]
    whole = tokenizer.decode(ids + made[: first + 1], skip_special_tokens=True)
    assert PROMPTS[0] + text == whole, "the sample did not stop at the end token"


def test_measures_exactly_the_tokens_asked_for_even_past_an_end_token(model, tokenizer):
    ids = tokenizer(PROMPTS[0])["input_ids"]
    end_at(model, argmax_ids(model, ids, 1)[0])
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    assert generate_samples(model, tokenizer, PROMPTS[:1], 9, "cpu")[0]["text"] != ""
    assert len(forwards) == 1, "the end token that this test relies on did not come first"
    forwards.clear()
    model.train()
    found = measure_generation(model, tokenizer, prompt=PROMPTS[0], new_tokens=9, batch=3, repeats=4, device="cpu")
    assert len(forwards) == 9 * (1 + 4), "one warm-up and four timed runs of nine tokens each"
    assert (found["prompt_tokens"], found["new_tokens"]) == (len(ids), 9)
    assert (found["batch"], found["repeats"]) == (3, 4)
    assert found["latency_seconds"] > 0 and found["latency_std"] >= 0
    assert found["tokens_per_second"] == pytest.approx(27 / found["latency_seconds"])
    assert found["peak_memory_bytes"] is None, "a CPU has no peak to report"
    assert model.training, "the training flag was not restored"


def test_one_repeat_has_no_deviation(model, tokenizer):
    found = measure_generation(model, tokenizer, prompt=PROMPTS[2], new_tokens=2, batch=1, repeats=1, device="cpu")
    assert found["latency_std"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="peak memory is counted on a GPU only: test.sh -m gpu there")
def test_peak_memory_on_a_gpu_holds_the_weights(model, tokenizer):
    model.to("cuda")
    found = measure_generation(model, tokenizer, prompt=PROMPTS[0], new_tokens=4, batch=2, repeats=2, device="cuda")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert weights < found["peak_memory_bytes"] < weights + 1e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "has no tokens"),
        ({"new_tokens": 64}, "only 64 positions"),
        ({"new_tokens": 0}, "0 new tokens"),
        ({"batch": 0}, "batch 0"),
        ({"repeats": 0}, "repeats 0"),
    ],
)
def test_refuses_what_cannot_be_generated(model, tokenizer, change, message):
    arguments = {"prompt": PROMPTS[0], "new_tokens": 4, "batch": 1, "repeats": 1} | change
    with pytest.raises(RegrowError, match=message):
        measure_generation(model, tokenizer, device="cpu", **arguments)
