"""The tokens around a document, and the ids and hash of what makes them, for fast and for slow tokenizers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.data.tokens import Encoding, encoder_hash, load_tokenizer, make_encoder, tokenizer_hash, vocabulary_size
from pipeline.errors import RegrowError

TEXT = "The city of Łódź, founded in 1423."
#: Half of it may be anything at all; the rest stands for what tokenizers treat in a way of their own.
TEXTS = st.lists(
    st.text() | st.sampled_from(["</s>", "<s>", " the", "\n\n", "\u00e9", "e\u0301", "🙂", "\x00", "É"])
).map("".join)


@pytest.fixture(scope="module")
def llama_like(texts, tmp_path_factory):
    """A tokenizer built as Llama's: no pre-tokenizer, bytes for unknown characters, a BOS before every text."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_of = [f"<0x{number:02X}>" for number in range(256)]
    words = [word for text in texts[:200] for word in text.split()]
    bpe.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=["<unk>", "<s>", "</s>", *bytes_of],
            show_progress=False,
            limit_alphabet=60,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return save(bpe, tmp_path_factory.mktemp("llama"), unk_token="<unk>")


@pytest.fixture(scope="module")
def bert_like(texts, tmp_path_factory):
    """A tokenizer built as BERT's: lower case without accents, word pieces, truncation and padding in its file."""
    pieces = Tokenizer(models.WordPiece(unk_token="<unk>"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(
        texts[:200],
        trainers.WordPieceTrainer(
            vocab_size=900,
            special_tokens=["<unk>", "<s>", "</s>"],
            show_progress=False,
        ),
    )
    pieces.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    pieces.enable_truncation(12)
    pieces.enable_padding(length=20, pad_id=0, pad_token="<unk>")
    return save(pieces, tmp_path_factory.mktemp("bert"), unk_token="<unk>", pad_token="<unk>")


def train_pieces(texts, path: Path) -> None:
    """A sentencepiece model of 500 pieces, bytes among them, trained on the first texts."""
    from sentencepiece import SentencePieceTrainer

    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=(text[:1000] for text in texts[:200]),
            model_writer=file,
            vocab_size=500,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
            num_threads=1,
        )


@pytest.fixture(scope="module")
def slow(texts, tmp_path_factory):
    """A sentencepiece tokenizer that transformers runs in Python."""
    folder = tmp_path_factory.mktemp("slow")
    train_pieces(texts, folder / "spiece.model")
    config = {"tokenizer_class": "BertGenerationTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_with_tokenizer_model_alone_has_a_tokenizer(texts, tmp_path):
    """As older Llamas were published: no tokenizer.json, and no word on special tokens."""
    train_pieces(texts, tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    encoder = Encoding(tmp_path).load()
    ids = encoder(TEXT)
    assert ids[-1] == encoder.separator == encoder.tokenizer.convert_tokens_to_ids("</s>")
    assert encoder.tokenizer.decode(ids[:-1], skip_special_tokens=True).strip() == TEXT.strip()


def save(tokenizer: Tokenizer, folder: Path, **special: str) -> Path:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **special)
    fast.save_pretrained(folder)
    return folder


def plain_call(tokenizer, text, split=True):
    """The ids that transformers gives, with special tokens' strings as text, or (not ``split``) as these tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=split)["input_ids"]


def test_a_document_is_its_text_and_the_separator(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    encoder = make_encoder(tokenizer)
    ids = encoder(TEXT)
    assert (encoder.bos, encoder.separator) == (None, tokenizer.eos_token_id)
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:-1]
    assert tokenizer.decode(ids[:-1]) == TEXT, "the text does not come back"
    assert make_encoder(tokenizer, "<s>")(TEXT) == [*ids[:-1], tokenizer.bos_token_id], "a separator of one's own"


def test_a_tokenizer_with_the_habit_keeps_its_bos(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    plain = make_encoder(tokenizer)(TEXT)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoder = make_encoder(tokenizer)
    assert encoder.bos == tokenizer.bos_token_id
    assert encoder(TEXT) == [tokenizer.bos_token_id, *plain], "BOS is missing, or stands twice"


def test_what_the_tokenizer_lacks_is_refused(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(RegrowError, match=r"data.separator '<sep>' is not a token"):
        make_encoder(tokenizer, "<sep>")
    tokenizer.eos_token = None
    with pytest.raises(RegrowError, match="no EOS token"):
        make_encoder(tokenizer)
    with pytest.raises(RegrowError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("special_tokens", ["plain", "parse"])
@pytest.mark.parametrize("name", ["tiny_model", "llama_like", "bert_like", "slow"])
def test_ids_are_those_of_the_plain_call(name, special_tokens, texts, request):
    folder = request.getfixturevalue(name)
    encoder, tokenizer = make_encoder(load_tokenizer(folder), "eos", special_tokens), load_tokenizer(folder)
    split = special_tokens == "plain"
    assert (encoder.engine is None) == (name == "slow"), "the compiled tokenizer serves the fast ones alone"
    around = 1 if encoder.bos is not None else 0
    assert (around, encoder.separator) == (int(name in {"llama_like", "bert_like"}), tokenizer.eos_token_id)

    @example("")
    @example(" ".join(texts[:40]))
    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def agree(text):
        ids, expected = encoder(text), plain_call(tokenizer, text, split)
        if not text.strip() or not expected:
            assert ids == [], f"{name}: tokens around nothing, {text!r}"
            return
        assert ids[around:-1] == expected, f"{name}: other ids than the plain call for {text[:80]!r}"
        assert ids[:around] == [tokenizer.bos_token_id][:around] and ids[-1] == encoder.separator

    agree()
    for text, ids in zip(texts[:100], encoder.batch(texts[:100]), strict=True):
        assert encoder(text) == ids and ids[around:-1] == plain_call(tokenizer, text, split), (
            f"{name}: other ids for real text {text[:80]!r}"
        )


def test_truncation_and_padding_stay_out(bert_like, texts):
    written = json.loads((bert_like / "tokenizer.json").read_text())
    assert written["truncation"]["max_length"] == 12, "the file asks for truncation, else this shows nothing"
    tokenizer = load_tokenizer(bert_like)
    encoder = make_encoder(tokenizer)
    length = len(encoder(texts[0]))
    assert length > 40, f"{length} tokens of a text of {len(texts[0])} characters: it was cut"
    assert len(encoder("a")) == 3, "a short text was padded"
    tokenizer(texts[0], truncation=True, max_length=5, padding="max_length")
    assert len(encoder(texts[0])) == length, "another user of the tokenizer changed what the encoder gives"


@pytest.mark.parametrize("name", ["tiny_model", "llama_like", "bert_like", "slow"])
def test_special_tokens_in_a_text_are_text_unless_the_config_says_otherwise(name, request):
    """Whatever the tokenizer's own setting is."""
    tokenizer = load_tokenizer(request.getfixturevalue(name))
    text = "a</s>b <s> c</s>"
    for own in (False, True):
        tokenizer.split_special_tokens = own
        plain, parse = make_encoder(tokenizer), make_encoder(tokenizer, "eos", "parse")
        inside = [encoder(text)[1 if encoder.bos is not None else 0 : -1] for encoder in (plain, parse)]
        counts = [(ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id)) for ids in inside]
        assert counts == [(0, 0), (1, 2)], f"{name}: BOS and EOS inside of a text with one and two of their strings"
        assert encoder_hash(plain) != encoder_hash(parse), "the key decides ids, and the hash does not show it"
        sent = pickle.loads(pickle.dumps(plain))
        assert sent(text) == plain(text), "the setting was lost on the way to another process"


def test_the_demo_has_the_ids_and_the_tokenizer_the_hash_of_before(demo, texts):
    """As commit 887a583 gave them, for which special tokens' strings were the tokens: this text has none."""
    tokenizer = load_tokenizer(demo / "model")
    for special_tokens in ("plain", "parse"):
        documents = make_encoder(tokenizer, "eos", special_tokens).batch(texts)
        digest = hashlib.sha256(np.concatenate(documents).astype(np.int32).tobytes()).hexdigest()
        assert digest == "d5e6593bed6df3e6fe9b444ca0dec8d22ea1397e562241f09c5f30b8e72edf9f", special_tokens
    assert tokenizer_hash(tokenizer) == "61cbd79c35620bc711fab0154d0cb7e1848356ac69c300b2baac1bc12c603b5f"


HASHES = """
import sys
from pathlib import Path
from pipeline.data.tokens import encoder_hash, load_tokenizer, make_encoder, tokenizer_hash
for folder in sys.argv[1:]:
    tokenizer = load_tokenizer(Path(folder))
    print(tokenizer_hash(tokenizer), encoder_hash(make_encoder(tokenizer)))
"""


def test_the_hash_is_the_same_in_other_processes_and_folders(tiny_model, bert_like, slow, tmp_path):
    folders, copies, expected = [tiny_model, bert_like, slow], [], []
    for number, folder in enumerate(folders):
        tokenizer = load_tokenizer(folder)
        tokenizer.save_pretrained(tmp_path / str(number))
        copies.append(tmp_path / str(number))
        plain_call(tokenizer, TEXT)
        expected.append(f"{tokenizer_hash(tokenizer)} {encoder_hash(make_encoder(tokenizer))}")
    assert len({part for line in expected for part in line.split()}) == 6, f"hashes do not tell apart: {expected}"
    done = subprocess.run(
        [sys.executable, "-c", HASHES, *map(str, copies)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert done.stdout.splitlines() == expected, f"other hashes for copies: {done.stdout} {done.stderr[-500:]}"


def test_the_hash_covers_what_decides_the_ids(tiny_model, slow, tmp_path):
    for folder in (tiny_model, slow):
        tokenizer = load_tokenizer(folder)
        before = tokenizer_hash(tokenizer)
        encoder = make_encoder(tokenizer)
        changed = {
            encoder_hash(encoder),
            encoder_hash(replace(encoder, bos=5)),
            encoder_hash(replace(encoder, separator=5)),
            encoder_hash(replace(encoder, special_tokens="parse")),
        }
        assert len(changed) == 4, "BOS, separator and special tokens are in an encoder's hash"
        tokenizer.add_tokens([AddedToken("Łódź", normalized=False)])
        assert tokenizer_hash(tokenizer) != before, f"{folder}: a token was added and the hash is the same"
        assert vocabulary_size(tokenizer) == 1 + make_encoder(tokenizer)("Łódź")[-2], "the added token has the last id"
    tokenizer = load_tokenizer(tiny_model)
    before = tokenizer_hash(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    assert tokenizer_hash(tokenizer) == before, "the way back to text and the template decide no id"
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokenizer_hash(tokenizer) != before, "a normalizer decides ids"


def encode_and_count(encoder, texts, results):
    ids = [encoder(text) for text in texts]
    # Many at once, as another user of the tokenizer in this process may ask for them.
    together = encoder.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    results.put(([own[:-1] for own in ids] == together, len(os.listdir("/proc/self/task"))))


def test_a_forked_process_tokenizes_in_one_thread_whatever_the_environment_asks(tiny_model, texts, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.backend_tokenizer.encode_batch(texts[:50])  # now there are threads that a child will not have
    encoder = make_encoder(tokenizer)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=encode_and_count, args=(encoder, texts[:50], results))
    child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    assert not hung, "the forked process waits for threads that only its parent has"
    assert results.get() == (True, 1), "not the ids of one thread"
