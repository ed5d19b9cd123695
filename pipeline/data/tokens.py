"""From text to token ids, and the policy on the tokens that stand between documents.

Every document becomes [BOS] text SEPARATOR. The BOS stands there when the tokenizer puts one before a text by itself
(Llama's does, SmolLM2's does not). The separator is the EOS unless the config names another token: an instruction
model's EOS may be the end of a chat turn, which should not stand between articles. What decides the ids has a hash,
so that ids made at one time are never mixed with those of another tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run import RegrowError, first_line, hash_json

#: What decides the ids of a text in a tokenizer.json. The rest (truncation, padding, the template that adds BOS and
#: EOS, the way back from ids to text) has no part in them.
DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model")
#: A text on which tokenizers without a tokenizer.json differ: capitals, accents, spaces, digits, other scripts.
PROBE = "  The Café in ŁÓDŹ,\tfounded 1423:\n\n don't  pay £9.50 — 東京, Ελλάδα e\u0301 🙂 "


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a Hugging Face folder; RegrowError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # The compiled part raises this class itself.
        raise RegrowError(f"model {path}: no tokenizer could be loaded ({first_line(error)})") from error


@dataclass(frozen=True)
class Encoder:
    """Encodes documents. ``bos`` is None where the tokenizer puts none; ``separator`` ends every document.

    ``engine`` is a copy of the compiled tokenizer behind ``tokenizer``, which nobody else sets to truncate or pad; it
    gives the same ids at less cost. None where ``tokenizer`` makes them in Python code of its own.
    Picklable; with an engine it may leave out ``tokenizer``, and needs neither transformers nor torch then.
    """

    tokenizer: Any
    bos: int | None
    separator: int
    engine: Any = None

    def __call__(self, text: str) -> list[int]:
        """Token ids of one document: [bos] text separator."""
        if self.engine is None:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            # Unlike encode, this call does not keep where in the text every token stands.
            ids = self.engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if self.bos is not None:
            ids.insert(0, self.bos)
        ids.append(self.separator)
        return ids

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document, as one call for each gives them; one call for all costs less."""
        if self.engine is None:
            return [self(text) for text in texts]
        leading = [] if self.bos is None else [self.bos]
        found = self.engine.encode_batch_fast(texts, add_special_tokens=False)
        return [[*leading, *document.ids, self.separator] for document in found]

    def __getstate__(self) -> dict[str, Any]:
        # The engine's own pickle forgets this setting.
        return {**self.__dict__, "split": self.engine is not None and self.engine.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        split = state.pop("split")
        self.__dict__.update(state)
        if self.engine is not None:
            self.engine.encode_special_tokens = split


def make_encoder(tokenizer: Any, separator: str = "eos") -> Encoder:
    """An Encoder for a tokenizer; RegrowError when the separator is not one of its tokens.

    From here on this process and those that it starts tokenize in one thread each: compiled tokenizers otherwise start
    a thread for each core, and a process forked after that can wait for ever for threads which it does not have.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    engine = _engine(tokenizer)
    leading = tokenizer("", add_special_tokens=True)["input_ids"]
    bos = tokenizer.bos_token_id
    own_bos = bos if bos is not None and leading[:1] == [bos] else None
    if separator == "eos":
        if tokenizer.eos_token_id is None:
            raise RegrowError("data.separator is eos, but this tokenizer has no EOS token; name another of its tokens")
        number = tokenizer.eos_token_id
    elif separator in tokenizer.get_vocab():
        number = tokenizer.convert_tokens_to_ids(separator)
    else:
        raise RegrowError(f"data.separator {separator!r} is not a token of this model's tokenizer")
    return Encoder(tokenizer, own_bos, number, engine)


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of what decides the ids of a text: the same in every process and from every folder that holds it."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        deciding = {name: state[name] for name in DECIDING}
        return hash_json({**deciding, "split_special_tokens": tokenizer.split_special_tokens})
    added = {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
    probe = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    return hash_json({"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "added": added,
                      "files": files, "probe": probe})  # fmt: skip


def encoder_hash(encoder: Encoder) -> str:
    """sha256 of what decides the ids of a document: the tokenizer, BOS and separator."""
    return hash_json({"tokenizer": tokenizer_hash(encoder.tokenizer), "bos": encoder.bos,
                      "separator": encoder.separator})  # fmt: skip


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id, tokens that were added to the vocabulary included."""
    return 1 + max(tokenizer.get_vocab().values())


def _engine(tokenizer: Any) -> Any:
    """A copy of a fast tokenizer's compiled part, set as the plain call sets it; None where that call is another."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast as Fast

    own = type(tokenizer)
    plain = isinstance(tokenizer, Fast) and all(
        getattr(own, name) is getattr(Fast, name) for name in ("__call__", "_encode_plus")
    )
    if not plain:
        return None
    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = tokenizer.split_special_tokens
    return engine
