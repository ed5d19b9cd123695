"""Attention within documents: a row of documents computes what each document computes alone, or is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM, masking_utils
from transformers.utils import is_flash_attn_2_available

from pipeline.errors import RegrowError
from pipeline.model.attention import attention_of, document_arguments, documents_known, require_document_attention
from pipeline.model.loss import document_targets, next_token_losses
from tests.families import VOCABULARY, build

LENGTH = 24
#: A row that is one document, documents of one token at a row's start, inside it and at its end. All begin where the
#: row does: a document that a row begins in the middle of is, in that row, a document of its own.
DOCUMENTS = [np.array(cu, dtype=np.int32) for cu in ([0, 24], [0, 1, 2, 12, 24], [0, 11, 23, 24])]
SUPPORTED = [
    (family, attention)
    for family in ("llama", "gpt2", "mistral", "qwen2", "gemma2", "gemma3")
    for attention in ("sdpa", "eager")
    if (family, attention) != ("gemma2", "sdpa")
]


def model_of(family: str, attention: str) -> Any:
    model = build(family)
    model.set_attn_implementation(attention)
    assert attention_of(model) == attention
    return model


def rows() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (len(DOCUMENTS), LENGTH), generator=torch.Generator().manual_seed(1))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def within(model: Any, attention: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, token losses, and gradients of the losses' sum, of all rows in one forward."""
    ids = rows().to(model.device)
    arguments = document_arguments(ids, DOCUMENTS, attention)
    logits = model(**arguments, use_cache=False).logits.view(*ids.shape, -1)
    losses = next_token_losses(logits, ids, document_targets(DOCUMENTS, LENGTH).to(model.device))
    losses.sum().backward()
    return logits.detach(), losses.detach(), gradients(model)


def alone(model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The same from one forward for each document, with nothing but its ids."""
    ids, logits = rows().to(model.device), torch.empty(len(DOCUMENTS), LENGTH, VOCABULARY, device=model.device)
    losses = torch.zeros(len(DOCUMENTS), LENGTH - 1, device=model.device)
    for row, cu_seqlens in enumerate(DOCUMENTS):
        for begin, end in pairwise(cu_seqlens.tolist()):
            found = model(ids[row : row + 1, begin:end], use_cache=False).logits
            logits[row, begin:end] = found.detach()[0]
            if end - begin > 1:
                token_losses = next_token_losses(found, ids[row : row + 1, begin:end])
                losses[row, begin : end - 1] = token_losses.detach()[0]
                token_losses.sum().backward()
    return logits, losses, gradients(model)


def assert_alike(found: Any, wanted: Any, tolerance: float) -> None:
    for what, one, other in zip(("logits", "losses"), found[:2], wanted[:2], strict=True):
        worst = float((one - other).abs().max() / other.abs().max())
        assert worst <= tolerance, f"{what} in a row are not those of the documents alone: {worst}"
    for name, other in wanted[2].items():
        worst = float((found[2][name] - other).abs().max() / other.abs().max())
        assert worst <= tolerance, f"gradient of {name} is not that of the documents alone: {worst}"


@pytest.mark.parametrize(("family", "attention"), SUPPORTED)
def test_a_row_of_documents_computes_what_each_computes_alone(family, attention):
    model = model_of(family, attention)
    found, wanted = within(model, attention), alone(model)
    assert_alike(found, wanted, 1e-5)
    with torch.no_grad():
        across = model(rows(), use_cache=False).logits
    assert torch.equal(across[0].argmax(-1), wanted[0][0].argmax(-1)), "a row that is one document changed"
    for row in (1, 2):
        begin = int(DOCUMENTS[row][-3])
        seen = (across[row, begin:] - wanted[0][row, begin:]).abs().max()
        assert seen > 1e-2 * wanted[0].abs().max(), "seeing other documents changes nothing: the test shows nothing"


@pytest.mark.parametrize(("family", "attention"), SUPPORTED)
def test_the_probe_passes_what_keeps_documents_apart_and_leaves_it_as_it_was(family, attention):
    model, noise = model_of(family, attention), torch.get_rng_state()
    assert require_document_attention(model) <= 1e-5
    assert not model.get_input_embeddings()._forward_hooks, "the probe left its hook behind"
    assert all(parameter.grad is None for parameter in model.parameters()), "the probe left gradients behind"
    assert torch.equal(noise, torch.get_rng_state()), "the probe drew random numbers of the run's"
    assert require_document_attention(model.bfloat16()) <= 5e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "name"), [("opt", "OPTForCausalLM"), ("lfm2", "Lfm2ForCausalLM")])
def test_a_family_that_ignores_documents_is_refused(family, name, attention, dtype):
    """OPT makes its masks without position ids; LFM2 mixes neighbouring tokens by convolutions too."""
    model = model_of(family, attention).to(dtype)
    with pytest.raises(RegrowError, match=f"{name} with attention {attention} lets a document see the one before it"):
        require_document_attention(model)


class RowPositions(nn.Embedding):
    """Learned positions that count from the row's start, whatever they are told."""

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.arange(position_ids.shape[1]).expand_as(position_ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_positions_do_not_restart_is_refused(dtype):
    model = model_of("gpt2", "sdpa")
    positions = RowPositions(64, 32)
    positions.load_state_dict(model.transformer.wpe.state_dict())
    model.transformer.wpe = positions
    with pytest.raises(RegrowError, match="gives a document other logits in a row than alone"):
        require_document_attention(model.to(dtype))


class WithoutPositions(LlamaForCausalLM):
    """A forward as older models' own code has it."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return super().forward(input_ids, use_cache=use_cache)


def test_a_forward_without_position_ids_is_refused():
    model = WithoutPositions(build("llama").config).eval()
    with pytest.raises(RegrowError, match=r"WithoutPositions .* does not take position ids \(.*position_ids"):
        require_document_attention(model)
    assert not model.get_input_embeddings()._forward_hooks, "the probe left its hook behind"


def varlen(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **others: Any,
) -> Any:
    """What a flash kernel for sequences of unequal length computes, (1, heads, tokens, size), by plain attention."""
    assert attention_mask is None and query.shape[0] == 1 and cu_seq_lens_q.dtype == torch.int32
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    # Always a row, so that compiled blocks meet one number.
    assert max_length_q == max_length_k == LENGTH >= int(cu_seq_lens_q.diff().max())
    pieces = [
        F.scaled_dot_product_attention(
            query[:, :, b:e], key[:, :, b:e], value[:, :, b:e], is_causal=True, scale=scaling, enable_gqa=True
        )
        for b, e in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("flash", ["flash_attention_2", "flash_attention_3"])
def test_the_borders_given_to_flash_kernels_keep_documents_apart(family, flash):
    """The arguments meant for flash attention, through a kernel of the same contract that runs anywhere."""
    AttentionInterface.register("plain_varlen", varlen)
    model = model_of(family, "plain_varlen")
    found = within(model, flash)
    model.set_attn_implementation("sdpa")
    assert_alike(found, alone(model), 1e-5)


@pytest.mark.parametrize(("family", "attention"), SUPPORTED)
def test_a_forward_that_is_told_of_its_documents_does_not_look_for_them(family, attention, monkeypatch):
    model, ids = model_of(family, attention), rows()
    found, whole = within(model, attention), model(ids, use_cache=False).logits

    def look(position_ids: torch.Tensor) -> None:
        raise AssertionError("transformers looked at the positions")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", look)
    with documents_known(DOCUMENTS, attention, ids.device):
        told = within(model, attention)
    with documents_known(None, attention, ids.device):
        assert torch.equal(model(ids, use_cache=False).logits, whole), "rows of one text are others"
    assert all(torch.equal(one, other) for one, other in zip(told[:2], found[:2], strict=True)), "documents are others"
    assert masking_utils.find_packed_sequence_indices is look, "it does not look afterwards either"


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()),
    reason="needs flash-attn on a GPU: test.sh -m gpu there, in the image of docker/Dockerfile",
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen2"])
def test_flash_attention_agrees_with_sdpa(family):
    model = build(family).to("cuda", torch.bfloat16)
    results = {}
    for attention in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(attention)
        assert require_document_attention(model) <= 5e-2
        results[attention] = within(model, attention)
    assert_alike(results["flash_attention_2"], results["sdpa"], 5e-2)
