"""Linear maps folded into a kept block: the folded model computes residual + M y, and stays a plain model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks, remove_blocks
from pipeline.model.equivalence import cached_logits, full_logits, probe_ids
from pipeline.model.load import load_model
from pipeline.model.replacement import output_projection, removed_runs, replace_blocks
from tests.families import VOCABULARY, build

IDS = probe_ids(VOCABULARY)
MATRIX = torch.randn(32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 6
FOLDED = {
    "llama": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "opt": "fc2",
    "qwen2": "mlp.down_proj",
    "neox": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h",
}


def states(model: Any) -> list[torch.Tensor]:
    """What each block returns, and the logits."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for block in find_blocks(model)
    ]
    logits = full_logits(model, IDS)
    for handle in handles:
        handle.remove()
    return [*seen, logits]


@pytest.mark.parametrize("family", FOLDED)
def test_a_folded_model_computes_the_residual_and_the_map_of_the_mlp(family, tmp_path):
    dense = build(family)
    names = {module: name for name, module in find_blocks(dense)[1].named_modules()}
    assert names[output_projection(dense, 1)] == FOLDED[family]
    folded = replace_blocks(deepcopy(dense), [2, 3, 5], {2: MATRIX})

    # By hand: blocks away, and M on the output of block 1's MLP where it is made, before it is added.
    by_hand = remove_blocks(dense, [2, 3, 5])
    plain = states(by_hand)
    projection = find_blocks(by_hand)[1].get_submodule(FOLDED[family])
    projection.register_forward_hook(lambda module, args, output: (output.double() @ MATRIX.T).float())
    expected = states(by_hand)
    assert not torch.allclose(plain[1], expected[1], rtol=1e-2), "M changes nothing here: the test shows nothing"
    assert plain[0].equal(expected[0])
    for index, (one, other) in enumerate(zip(states(folded), expected, strict=True)):
        worst = float((one - other).abs().max() / other.abs().max())
        assert worst < 1e-5, f"{family}, block {index}: {worst:.1e} from residual + M y"

    folded.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path, dtype=torch.float32)
    assert type(reloaded) is type(folded) and len(find_blocks(reloaded)) == reloaded.config.num_hidden_layers == 3
    assert full_logits(reloaded, IDS).equal(full_logits(folded, IDS)), "the saved model computes something else"
    assert cached_logits(reloaded, IDS).equal(cached_logits(folded, IDS))
    assert reloaded.config.regrow["linear"] == [{"blocks": [2, 3], "folded_into": 1}]


def test_the_residual_plus_the_map_is_what_the_block_then_returns():
    """The equation itself, of one block: its output less y is r, and the folded block returns r + M y."""
    for family in ("llama", "gpt2", "opt", "qwen2"):
        model, seen = build(family), {}
        projection = output_projection(model, 2)
        handle = projection.register_forward_hook(lambda module, args, output: seen.update(y=output))  # noqa: B023
        before = states(model)[2].double()
        handle.remove()
        y = seen["y"].double().view_as(before)
        replace_blocks(model, [3], {3: MATRIX})
        expected = before - y + y @ MATRIX.T
        worst = float((states(model)[2] - expected).abs().max() / expected.abs().max())
        assert worst < 1e-5, f"{family}: {worst:.1e}"
        replace_blocks(model, [3], {3: torch.linalg.inv(MATRIX)})
        back = float((states(model)[2] - before).abs().max() / before.abs().max())
        assert back < 1e-3, f"{family}: a map and its inverse leave {back:.1e}"


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gemma2", {}, r"down_proj returns is not added to the residual as it is.*post_feedforward_layernorm"),
        ("gemma3", {}, r"not added to the residual as it is.*post_feedforward_layernorm"),
        ("olmo2", {}, r"not added to the residual as it is.*post_feedforward_layernorm"),
        ("opt_narrow", {}, r"fc2 returns is not added to the residual as it is.*final_layer_norm"),
        ("granite", {}, r"a norm or a factor behind it"),
        ("mixtral", {}, r"mixture of experts \(mlp\.experts\) without one output projection"),
        ("qwen2_moe", {}, r"mixture of experts \(mlp\.experts\)"),
    ],
)
def test_blocks_of_another_form_are_refused_with_the_reason(family, changes, words):
    model = build(family, **changes)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    index = 1
    with pytest.raises(RegrowError, match=rf"block {index}: no linear map can be folded into it, .*{words}"):
        replace_blocks(model, [index + 1], {index + 1: MATRIX})
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.config.num_hidden_layers == len(find_blocks(model)) == 6, "a refused replacement changed the model"
    assert not any(module._forward_hooks for module in model.modules()), "hooks were left behind"


def test_a_dense_block_of_a_model_with_experts_can_take_a_map():
    model = build("deepseek_v3")  # its first three blocks are dense
    names = {module: name for name, module in find_blocks(model)[2].named_modules()}
    assert names[output_projection(model, 2)] == "mlp.down_proj"
    with pytest.raises(RegrowError, match="mixture of experts"):
        output_projection(model, 3)


def test_tied_attention_only_and_quantised_projections_are_refused():
    tied = build("llama")
    tied.model.layers[4].mlp.down_proj.weight = tied.model.layers[1].mlp.down_proj.weight
    with pytest.raises(RegrowError, match=r"down_proj are tied to those of model\.layers\.4\.mlp\.down_proj"):
        output_projection(tied, 1)

    class Nothing(nn.Module):
        def forward(self, hidden: torch.Tensor, **others: Any) -> torch.Tensor:
            return hidden * 0.1

    without = build("llama")
    without.model.layers[1].mlp = Nothing()
    with pytest.raises(RegrowError, match=r"the last projection that it runs, self_attn\.o_proj, is its attention's"):
        output_projection(without, 1)
    without.model.layers[1] = Nothing()
    without.model.layers[1].scale = nn.Sequential(nn.LayerNorm(32))
    with pytest.raises(RegrowError, match=r"no linear layer as wide as the hidden state: Nothing\(scale: Sequential"):
        output_projection(without, 1)

    class Coarse(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden @ self.weight.float().T

    coarse = build("llama")
    coarse.model.layers[1].mlp.down_proj = Coarse(64, 32, bias=False).requires_grad_(False)
    coarse.model.layers[1].mlp.down_proj.weight.data = torch.ones(32, 64, dtype=torch.int8)
    with pytest.raises(RegrowError, match=r"mlp\.down_proj holds torch\.int8 values"):
        output_projection(coarse, 1)


def test_maps_that_do_not_fit_and_runs_that_are_not_there_are_refused():
    model = build("llama")
    before = full_logits(model, IDS)
    for removed, matrices, words in (
        ([2], {2: torch.ones(32, 31)}, r"block 1: expected real numbers of shape \(32, 32\), got float32 of shape"),
        ([2], {2: torch.ones(32, 32, dtype=torch.int64)}, r"got int64 of shape \(32, 32\)"),
        ([2], {2: MATRIX * float("nan")}, r"not every entry is a finite number"),
        ([2, 3], {3: MATRIX}, r"no run of removed blocks begins at \[3\]; runs: \[2\]"),
        ([0, 1], {0: MATRIX}, r"no block is kept before block 0"),
    ):
        with pytest.raises(RegrowError, match=words):
            replace_blocks(model, removed, matrices)
    with pytest.raises(RegrowError, match="blocks 0 to 5"):
        output_projection(model, 6)
    assert full_logits(model, IDS).equal(before)


def test_runs_and_records_of_several_replacements(tmp_path):
    assert removed_runs([7, 3, 4]) == [range(3, 5), range(7, 8)] and removed_runs([]) == []
    model = build("llama").bfloat16()
    replace_blocks(model, [1, 3], {1: MATRIX, 3: MATRIX})  # 0 2 4 5 are left
    replace_blocks(model, [1], {1: MATRIX})  # the first dense model's block 2
    assert model.config.regrow == {
        "dense_blocks": 6,
        "kept_blocks": [0, 4, 5],
        "removed_blocks": [1, 2, 3],
        "linear": [
            {"blocks": [1], "folded_into": 0},
            {"blocks": [3], "folded_into": 2},
            {"blocks": [2], "folded_into": 0},
        ],
    }
    remove_blocks(model, [2])
    assert len(model.config.regrow["linear"]) == 3 and model.dtype == torch.bfloat16
