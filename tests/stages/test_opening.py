"""The micro-batch of a run: as stated, or found once and kept."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import RegrowError
from pipeline.run import Run
from pipeline.stages.opening import find_fit, keep_found, layout_of, on_all
from pipeline.training.export import Origin
from pipeline.training.fitting import Fit
from pipeline.world import ALONE, World


@pytest.fixture
def find(tiny_config, tiny_model, tmp_path):
    """``find(*overrides)``: the fit of the tiny run with these values, and what was said."""

    def ask(*overrides: str) -> tuple[Fit, list[str]]:
        said: list[str] = []
        config = load_config(tiny_config, list(overrides))
        (tmp_path / "run" / "train").mkdir(parents=True, exist_ok=True)
        run = Run(tmp_path / "run")
        fit = find_fit(config, run, Origin(tiny_model, "bfloat16"), ALONE, said.append)
        keep_found(config, run, ALONE, fit)
        return fit, said

    return ask


def test_a_stated_micro_batch_is_taken_without_a_word(find, tmp_path):
    assert find("train.micro_batch=4", "train.gradient_checkpointing=true") == (Fit(4, "full"), [])
    assert not (tmp_path / "run" / "train" / "fit.json").exists()


def test_on_a_cpu_auto_is_two_rows_and_what_was_found_once_is_kept(find, tmp_path):
    found, said = find("train.micro_batch=auto", "train.global_batch=8")
    assert found == Fit(2, "none") and said == ["micro-batch 2 x accumulation 4 x 1, recomputing none"]
    kept = tmp_path / "run" / "train" / "fit.json"
    kept.write_text(
        json.dumps({**json.loads(kept.read_text()), "micro_batch": 4, "gradient_checkpointing": "selective"})
    )
    found, said = find("train.micro_batch=auto", "train.global_batch=8")
    assert found == Fit(4, "selective") and said == ["micro-batch 4 x accumulation 2 x 1, recomputing selective"]


def test_a_fit_for_something_else_is_found_anew(find):
    assert find("train.micro_batch=auto", "train.global_batch=8")[0] == Fit(2, "none")
    assert find("train.micro_batch=auto", "train.global_batch=8", "train.gradient_checkpointing=full")[0] == Fit(
        2, "full"
    )
    assert find("train.micro_batch=auto", "train.global_batch=5")[0] == Fit(1, "none")


@pytest.mark.parametrize(
    ("device", "asked", "stage", "compiled"),
    [
        ("cpu", "auto", 1, False),
        ("cuda", "auto", 1, True),
        ("cuda", "auto", 3, False),
        ("cpu", "true", 3, True),
        ("cuda", "false", 0, False),
    ],
)
def test_blocks_are_compiled_where_it_is_faster_or_asked_for(tiny_config, device, asked, stage, compiled):
    config = load_config(tiny_config, [f"train.compile={asked}", f"train.zero_stage={stage}"])
    layout = layout_of(config, World(device=torch.device(device)), Fit(4, "selective"))
    assert layout.compiled is compiled
    assert (layout.micro_batch, layout.gradient_checkpointing, layout.zero_stage) == (4, "selective", stage)
    assert (layout.threads is None) == (device == "cuda"), "threads decide nothing on a GPU"


class Machines(World):
    """The first of three processes, of which the last one's machine has a problem."""

    def gather(self, value):
        return [value, None, ("node7", "no space for the copies")]


def test_what_one_machine_lacks_is_said_by_the_first_process_with_its_name():
    with pytest.raises(RegrowError, match=r"^on node7: no space for the copies$"):
        on_all(Machines(), lambda: None)

    def lacking():
        raise RegrowError("no space here")

    with pytest.raises(RegrowError, match=r"^no space here$"):
        on_all(ALONE, lacking)
    on_all(ALONE, lambda: None)
