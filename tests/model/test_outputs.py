"""Configs that ask a forward for more than logits, or for logits in a plain tuple, change no figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.perplexity import perplexity
from pipeline.importance.block_major import sweep_by_block
from pipeline.importance.scoring import score_blocks
from pipeline.model.attention import require_document_attention
from pipeline.model.load import load_model
from pipeline.model.loss import NO_ROUTER
from pipeline.model.outputs import logits_alone
from pipeline.model.streaming import StreamedModel
from pipeline.model.surgery import prune_folder
from pipeline.training.reach import probe
from tests.families import VOCABULARY, build

WISHES = {
    "output_router_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "return_dict": False,
    "use_cache": False,
}
IDS = torch.randint(3, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))


def figures(folder: Path) -> dict:
    """What is measured of a model: scores in both orders, gradients, perplexity, attention, what it writes."""
    model = load_model(folder, dtype="float32")
    entries = score_blocks(model, [IDS], ["ppl", "angular_last", "taylor"])
    streamed = sweep_by_block(
        StreamedModel(folder, dtype="float32"), IDS, folder=folder / "states", micro_batch=2, say=lambda line: None
    )
    return {
        "scores": {name: entry["scores"] for name, entry in entries.items()},
        "streamed": streamed.tolist(),
        "perplexity": perplexity(model, IDS, micro_batch=2, device="cpu"),
        "within": require_document_attention(model),
        "text": model.generate(IDS[:1], max_new_tokens=3, do_sample=False, pad_token_id=2).tolist(),
    }


@pytest.mark.parametrize("family", ["mixtral", "gpt2"])
def test_a_config_that_asks_for_more_is_measured_and_pruned_as_one_that_does_not(family, tmp_path):
    model = build(family)
    for name in ("plain", "asking"):
        model.save_pretrained(tmp_path / name)
    file = tmp_path / "asking" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | WISHES))
    assert figures(tmp_path / "asking") == figures(tmp_path / "plain")
    prune_folder(tmp_path / "asking", tmp_path / "pruned", [1], {}, dtype="float32", say=lambda line: None)
    saved = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert saved["output_router_logits"] is True, "training would no longer know that experts are to be balanced"
    assert not saved.get("output_attentions") and saved.get("return_dict", True)


@pytest.mark.parametrize(
    ("family", "removed", "left"), [("qwen3_moe", [0, 2, 3, 5], 0), ("qwen2_moe", [1, 5], 0), ("qwen3_moe", [0, 2], 2)]
)
def test_router_logits_are_asked_for_no_longer_where_no_router_is_left(family, removed, left, tmp_path):
    """The family's own forward would fail where it finds none, in training and wherever else the folder is loaded."""
    build(family, output_router_logits=True).save_pretrained(tmp_path / "dense")
    said: list[str] = []
    prune_folder(tmp_path / "dense", tmp_path / "pruned", removed, {}, dtype="float32", say=said.append)
    model = load_model(tmp_path / "pruned", dtype="float32")
    assert len([name for name, _ in model.named_modules() if name.endswith("mlp.gate")]) == left
    assert model.config.output_router_logits is bool(left)
    assert (NO_ROUTER in said) is (left == 0), said
    output = probe(model)
    assert torch.isfinite(output.logits).all() and (output.aux_loss is not None) is bool(left)


def test_a_model_of_the_caller_s_is_scored_whatever_it_returns_and_left_as_it_was():
    model = build("mixtral")
    plain = score_blocks(model, [IDS], ["ppl", "angular_last", "taylor"])
    model.config.return_dict, model.config.output_router_logits = False, True
    assert score_blocks(model, [IDS], ["ppl", "angular_last", "taylor"]) == plain
    assert (model.config.return_dict, model.config.output_router_logits) == (False, True)
    with pytest.raises(KeyError), logits_alone(model):
        assert (model.config.return_dict, model.config.output_router_logits) == (True, False)
        raise KeyError
    assert (model.config.return_dict, model.config.output_router_logits) == (False, True)
