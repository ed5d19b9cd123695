"""Healing of small models: a planted case that is exact, every family, and what is refused or left alone."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from pipeline.errors import RegrowError
from pipeline.model.blocks import find_blocks, remove_blocks
from pipeline.model.replacement import replace_blocks
from pipeline.training.healed import Progress
from pipeline.training.healing import Border, Text, find_borders, heal
from tests.families import BLOCKS, FAMILIES, OTHERS, VOCABULARY, build

LENGTH = 16
#: No layer whose output is added to the residual as it is, or none alone.
EXPERTS, BEHIND = "mixture of experts", "a norm or a factor behind it"
REFUSED = {
    **dict.fromkeys(["mixtral", "minimax"], EXPERTS),
    **dict.fromkeys(["gemma2", "gemma3", "gemma4", "olmo2", "granite", "opt_narrow"], BEHIND),
}


def text(rows: int = 24, judged: int = 4, seed: int = 1) -> Text:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows + judged, LENGTH), generator=generator)
    return Text(list(ids[:rows].split(5)), list(ids[rows:].split(3)))


def cut(dense: Any, removed: list[int]) -> tuple[Any, list[int]]:
    return remove_blocks(deepcopy(dense), removed), [index for index in range(BLOCKS) if index not in removed]


def quiet(line: str) -> None:
    pass


@torch.no_grad()
def state_behind(model: Any, index: int, ids: torch.Tensor) -> torch.Tensor:
    """What a whole forward has behind a block."""
    found: list[torch.Tensor] = []
    handle = find_blocks(model)[index].register_forward_hook(
        lambda _, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    model(ids, use_cache=False)
    handle.remove()
    return found[0].flatten(0, 1).float()


@torch.no_grad()
def loss(model: Any, ids: torch.Tensor) -> float:
    return model(ids, labels=ids, use_cache=False).loss.item()


@torch.no_grad()
def plant(dense: Any, *borders: int) -> None:
    """Make each block behind a border linear in what enters the border's last layer, which itself gives nothing."""
    blocks = find_blocks(dense)
    for border in borders:
        before, behind = blocks[border], blocks[border + 1]
        before.mlp.down_proj.weight.zero_()
        behind.self_attn.o_proj.weight.zero_()
        behind.post_attention_layernorm.load_state_dict(before.post_attention_layernorm.state_dict())
        for name in ("gate_proj", "up_proj"):
            getattr(behind.mlp, name).load_state_dict(getattr(before.mlp, name).state_dict())


@pytest.mark.parametrize(
    ("kept", "borders"),
    [
        ([0, 1, 2, 3, 4, 5], []),
        ([0, 1, 4, 5], [Border(1, 1, 4)]),
        ([0, 2, 3], [Border(0, 0, 2), Border(2, 3, 6)]),
        ([2, 3, 5], [Border(0, 2, 3), Border(1, 3, 5)]),
        ([2, 4, 5], [Border(0, 2, 4)]),
    ],
)
def test_borders_stand_before_removed_runs_and_behind_a_removed_start(kept, borders):
    assert find_borders(kept, 6) == borders


@pytest.mark.parametrize("removed", [[2], [2, 4]])
def test_a_removed_block_that_is_linear_in_the_layers_inputs_comes_back_whole(removed):
    dense = build("llama")
    plant(dense, *(index - 1 for index in removed))
    model, kept = cut(dense, removed)
    ids = text(seed=9).judged[0]
    wanted, without = loss(dense, ids), loss(model, ids)
    found = heal(deepcopy(dense), model, kept, text(), ridge=1e-9, say=quiet)
    assert abs(without - wanted) > 0.05, "the removed blocks do nothing here"
    assert loss(model, ids) == pytest.approx(wanted, abs=1e-4)
    assert [one.block for one in found] == [index - 1 for index in removed]
    assert all(one.kept and one.after < 1e-3 < one.before for one in found)
    for one in found:
        fitted = find_blocks(model)[kept.index(one.block)].mlp.down_proj.weight
        planted = find_blocks(dense)[one.block + 1].mlp.down_proj.weight
        assert torch.allclose(fitted, planted, atol=1e-3), "the layer is not the removed block's"


#: No block of Jamba can be removed, which test_surgery shows.
CUT = [family for family in (*FAMILIES, *OTHERS) if family != "jamba"]


@pytest.mark.parametrize("family", CUT)
def test_every_family_is_healed_or_refused_with_the_reason(family):
    """The error that is told is that of a whole forward of both models."""
    dense = build(family)
    model, kept = cut(dense, [0, 3])
    if family in REFUSED:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(RegrowError, match=f"train.heal: none of the 2 borders.*{REFUSED[family]}"):
            heal(deepcopy(dense), model, kept, text(), ridge=0.01, say=quiet)
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())
        return
    judged = torch.cat(text().judged)
    said: list[str] = []
    found = heal(deepcopy(dense), model, kept, text(), ridge=1, say=said.append)
    refused = [line for line in said if line.startswith("not healed: ")]
    assert len(found) + len(refused) == 2, said
    for one in found:
        reached, wanted = (kept.index(one.block), model), ([*kept[1:], BLOCKS][kept.index(one.block)] - 1, dense)
        given, state = (state_behind(which, index, judged) for index, which in (reached, wanted))
        error = ((state - given).norm(dim=1) / state.norm(dim=1)).mean().item()
        told = one.after if one.kept else one.before
        assert error == pytest.approx(told, rel=1e-3), f"{family}, block {one.block}: {told} was told"
        assert one.kept == (one.after < one.before)
    assert any(one.kept and one.after < 0.99 * one.before for one in found), found


def test_maps_that_were_folded_in_are_healed_on_top():
    dense = build("llama")
    matrix = torch.eye(32) + 0.01 * torch.randn((32, 32), generator=torch.Generator().manual_seed(3))
    model = replace_blocks(deepcopy(dense), [2, 3], {2: matrix})
    (one,) = heal(dense, model, [0, 1, 4, 5], text(), ridge=0.01, say=quiet)
    assert one.kept and (one.block, one.removed, one.layer) == (1, [2, 3], "mlp.down_proj")


def test_bf16_weights_are_rounded_once_and_tied_ones_stay_tied():
    dense = build("llama", tie_word_embeddings=True).bfloat16()
    exact, rounded = (cut(dense.float() if wide else dense.bfloat16(), [2])[0] for wide in (True, False))
    kept = [0, 1, 3, 4, 5]
    for model in (exact, rounded):
        heal(deepcopy(dense), model, kept, text(), ridge=0.01, say=quiet)
    wide, narrow = (find_blocks(model)[1].mlp.down_proj.weight for model in (exact, rounded))
    assert narrow.dtype == torch.bfloat16 and narrow.equal(wide.bfloat16())
    assert rounded.lm_head.weight is rounded.model.embed_tokens.weight


def test_what_comes_no_nearer_on_kept_text_is_left_as_it_was():
    dense = build("llama")
    model, kept = cut(dense, [2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said: list[str] = []
    # Sixteen tokens for 64 inputs.
    (one,) = heal(dense, model, kept, text(rows=1), ridge=1e-9, say=said.append)
    assert not one.kept and one.after > one.before and "is left as it was" in said[-1]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_killed_at_a_border_it_goes_on_there_to_the_same_bytes(tmp_path):
    dense = build("llama")
    kept, removed = [0, 2, 4], [1, 3, 5]
    whole, killed, again = (cut(dense, removed)[0] for _ in range(3))
    found = heal(deepcopy(dense), whole, kept, text(), ridge=0.01, say=quiet)
    assert [one.block for one in found] == [0, 2, 4]

    def kill(line: str) -> None:
        if line.startswith("healed block 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(deepcopy(dense), killed, kept, text(), ridge=0.01, progress=Progress(tmp_path), say=kill)
    stood = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(stood) == [f"healing-000{n}.{kind}" for n in (0, 1) for kind in ("json", "safetensors")]
    resumed = heal(deepcopy(dense), again, kept, text(), ridge=0.01, progress=Progress(tmp_path), say=quiet)
    assert resumed == found
    assert all(value.equal(whole.state_dict()[name]) for name, value in again.state_dict().items())
    now = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert now.items() >= stood.items(), "what was fitted before the kill was fitted again"


def test_without_text_nothing_is_begun():
    dense = build("llama")
    model, kept = cut(dense, [2])
    with pytest.raises(RegrowError, match="no sequence to fit on, or none to judge by"):
        heal(dense, model, kept, Text(text().fit, []), ridge=0.01, say=quiet)
