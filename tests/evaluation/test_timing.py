"""A timed run: what the time to the first token holds, and what is left for the others."""

from __future__ import annotations

import time

import pytest
import torch

from pipeline.evaluation.timing import Timed, there_and_back, timed_on

CPU = torch.device("cpu")
IDS = torch.arange(12).view(2, 6)


def test_the_prompt_counts_for_the_first_token_and_each_step_for_the_others(fresh_model):
    model, widths = fresh_model(), []

    def slow(module, arguments, inputs, output):
        width = inputs["input_ids"].shape[1]
        widths.append(width)
        time.sleep(0.25 if width > 1 else 0.05)

    timed = Timed(model, IDS, 5, CPU)
    timed.run()  # What is done once, the first time, is not to be told apart.
    model.register_forward_hook(slow, with_kwargs=True)
    start = time.perf_counter()
    run = timed.run()
    around = time.perf_counter() - start
    assert widths == [6, 1, 1, 1, 1], "one forward for the prompt, and one for each further token"
    assert (run.prompt, run.made, run.memory) == (6, 5, None)
    assert 0.25 <= run.first < run.seconds <= around
    assert run.further >= 0.05, f"{run.further} s for a token"
    assert run.first + 4 * run.further == pytest.approx(run.seconds)


def test_a_run_goes_on_past_end_tokens_and_leaves_the_settings(fresh_model):
    model = fresh_model().train()
    with torch.no_grad():
        model.generation_config.eos_token_id = int(model.eval()(input_ids=IDS[:1]).logits[0, -1].argmax())
    own = model.generation_config
    assert Timed(model.train(), IDS, 9, CPU).run().made == 9
    assert model.training and model.generation_config is own


def test_the_order_of_the_turns_is_turned_round_each_time():
    assert list(there_and_back(["a", "b", "c"], 3)) == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert list(there_and_back(["a", "b"], 0)) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is counted on a GPU only: test.sh -m gpu there")
def test_memory_on_a_gpu_holds_the_weights_of_one_model_and_grows_with_the_batch(fresh_model):
    device = torch.device("cuda")
    other, model = fresh_model().to(device), fresh_model().to(device)
    weights = model.get_memory_footprint()
    small, large = (Timed(model, IDS[:1].repeat(batch, 1), 8, device).run().memory for batch in (1, 64))
    assert weights < small < large, f"{small} and {large} bytes, of them {weights} of weights"
    assert other.get_memory_footprint() == weights and small < 2 * weights, "the other model was counted"


def test_a_time_is_of_the_threads_of_one_process_or_of_a_gpu(monkeypatch):
    assert timed_on(CPU, "bfloat16") == {"device": "cpu", "threads": torch.get_num_threads(), "dtype": "bfloat16"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert timed_on(torch.device("cuda", 0), "float32") == {"device": "a GPU", "threads": None, "dtype": "float32"}
