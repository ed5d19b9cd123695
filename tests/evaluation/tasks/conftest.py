"""A folder of data in the fields of ARC-Easy and BoolQ, and the tiny model that is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ITEMS = 20


def write_data(folder: Path) -> Path:
    """``ITEMS`` items of ARC-Easy, its choices a word or two, of BoolQ, whose choices are one token, and of LAMBADA."""
    folder.mkdir(parents=True)
    words = ("city", "river", "north side", "war", "music", "old king", "sea")
    easy = [
        {
            "question": f"Which of these stands {number} times in the {words[number % 7]}?",
            "choices": {"text": [words[(number + step) % 7] for step in range(4)], "label": list("ABCD")},
            "answerKey": "ABCD"[number % 4],
        }
        for number in range(ITEMS)
    ]
    boolq = [
        {"passage": f"The {words[number % 7]} is old. " * (1 + number % 3), "question": "is it", "label": number % 2}
        for number in range(ITEMS)
    ]
    lambada = [{"text": f"The {words[number % 7]} is near the {words[number % 5]}"} for number in range(ITEMS)]
    for name, items in (("arc_easy", easy), ("boolq", boolq), ("lambada_openai", lambada)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture(scope="session")
def data(once: Callable[..., Path]) -> Path:
    """The folder of data. Not to be changed."""
    return once("tasks", lambda folder: write_data(folder / "data")) / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What datasets makes of files stays with the tests, and no hub is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture
def asked_model(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model in fp32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)
