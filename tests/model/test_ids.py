"""What people pass as ids: the same batches from every form whose meaning is plain; what to write instead of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from pipeline.errors import RegrowError
from pipeline.model.ids import id_batches
from pipeline.model.load import load_model
from tests.families import VOCABULARY, build

IDS = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
ROWS = IDS.tolist()
#: What stands in the messages for whoever has texts.
LINE = r'batches = \[tokenizer\(text, return_tensors="pt"\)\.input_ids for text in texts\]'


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (IDS, [4]),
        (IDS.int(), [4]),
        (IDS.numpy().astype(np.uint16), [4]),
        (IDS[0], [1]),
        (ROWS[0], [1]),
        (list(IDS), [1, 1, 1, 1]),
        (ROWS, [1, 1, 1, 1]),
        ([ROWS[:2], ROWS[2:]], [2, 2]),
        (IDS.view(2, 2, 16), [2, 2]),
        (iter(IDS.split(3)), [3, 1]),
        (BatchEncoding({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}), [4]),
        (BatchEncoding({"input_ids": ROWS, "attention_mask": [[1] * 16] * 4}), [4]),
        ([{"input_ids": row, "labels": row} for row in ROWS], [1, 1, 1, 1]),
        (DataLoader(TensorDataset(IDS), batch_size=3), [3, 1]),
        (DataLoader([{"input_ids": row} for row in IDS], batch_size=2), [2, 2]),
    ],
)
def test_every_plain_form_gives_the_same_sequences(model, given, sizes):
    found = id_batches(model, given, one_length=True)
    assert [len(batch) for batch in found] == sizes
    assert all((batch.dtype, batch.device.type) == (torch.int64, "cpu") for batch in found)
    assert torch.cat(found)[: len(IDS)].equal(IDS[: sum(sizes)])


def test_a_tokenizer_s_output_is_taken_as_it_comes(tiny_model, texts):
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), load_model(tiny_model)
    wanted = tokenizer(texts[0]).input_ids
    for given in (tokenizer(texts[0]), tokenizer(texts[0], return_tensors="pt"), tokenizer(texts[:1])):
        (found,) = id_batches(model, given)
        assert found.tolist() == [wanted]
    several = id_batches(model, [tokenizer(text, return_tensors="pt").input_ids for text in texts[:3]])
    assert [batch.shape[0] for batch in several] == [1, 1, 1], "the line of the messages"
    tokenizer.pad_token = tokenizer.eos_token
    padded = tokenizer(texts[:3], return_tensors="pt", padding=True)
    with pytest.raises(RegrowError, match=r"batch 0: its attention_mask has zeros.*padding.*" + LINE):
        id_batches(model, padded)
    with pytest.raises(RegrowError, match=r"batch 0: .* where sequences have several lengths, give each as a batch"):
        id_batches(model, tokenizer(texts[:3]))
    with pytest.raises(RegrowError, match=r"one length are wanted, got \d+, \d+, \d+ tokens; cut them: batches = "):
        id_batches(model, several, one_length=True)
    cut = [ids[:, :8] for ids in several if ids.shape[1] >= 8]
    assert len(id_batches(model, cut, one_length=True)) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a text", r"^batches: ids are wanted, got a text; " + LINE),
        (["a text", "another"], r"^batch 0: ids are wanted, got a text; " + LINE),
        ([{"text": "a text"}], r"^batch 0: no input_ids in it, but text; " + LINE),
        (None, r"^batches: ids .* are wanted, got NoneType; " + LINE),
        (5, r"^batches: ids .* are wanted, got int; "),
        (IDS.float(), r"^batch 0: ids .* got \(4, 16\) of torch\.float32; tokenizer\(text, return_tensors="),
        ([[0.5, 1.5]], r"^batch 0: ids .* got \(1, 2\) of torch\.float32"),
        (IDS > 3, r"^batch 0: ids .* got \(4, 16\) of torch\.bool"),
        ([IDS, [[1, 2], [3]]], r"^batch 1: .* no table of whole numbers"),
        ([list(IDS)], r"^batch 0: ids .* are wanted, got list"),
        (IDS[:0], r"^batch 0: has 0 sequences of 16 tokens"),
        (IDS[:, :1], r"^batch 0: has 4 sequences of 1 tokens; one of 2 at least"),
        ([[]], r"^batch 0: has 1 sequences of 0 tokens"),
        ([], r"^no batch: ids \(sequences, tokens\) are wanted$"),
        (iter(()), r"^no batch: .*a generator gives its batches once: keep them, batches = list"),
        (IDS + VOCABULARY, r"^batch 0: ids from \d+ to \d+, and the model has embeddings for 0 to 199"),
    ],
)
def test_what_is_no_ids_is_refused_with_what_to_write(model, given, words):
    with pytest.raises(RegrowError, match=words) as error:
        id_batches(model, given)
    assert "\n" not in str(error.value)


def test_what_is_no_model_is_refused(model):
    with pytest.raises(RegrowError, match=r'got str; load_model\("folder, or owner/name"\) gives one'):
        id_batches("path/of/a/model", IDS)
    with pytest.raises(RegrowError, match="got Tensor; load_model"):
        id_batches(IDS, model)
    with torch.device("meta"):
        hollow = build("llama")
    with pytest.raises(RegrowError, match="its weights are on the meta device"):
        id_batches(hollow, IDS)
