"""From text to token ids, and the policy on the tokens that stand between documents and inside of them.

Every document becomes [BOS] text SEPARATOR. The BOS stands there when the tokenizer puts one before a text by itself
(Llama's does, SmolLM2's does not). The separator is the EOS unless the config names another token: an instruction
model's EOS may be the end of a chat turn, which should not stand between articles. The string of a special token in a
text is text, unless the config says that it means the token. A text that gives no token, or is white space alone, is
nothing: no BOS and no separator stands for it. What decides the ids has a hash, so that ids made at one time are never
mixed with those of another tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.pieces import sentencepiece_tokenizer
from pipeline.data.special_tokens import hide_special, ids_as_text, special_strings, still_special
from pipeline.errors import RegrowError, first_line
from pipeline.files import hash_json, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

#: What decides the ids of a text in a tokenizer.json. The rest (truncation, padding, the template that adds BOS and
#: EOS, the way back from ids to text) has no part in them.
DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model")
#: The files in JSON that a tokenizer is loaded from, the whole one first.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: What to do about one that is damaged.
AGAIN = "fetch the model again"
#: A text on which tokenizers without a tokenizer.json differ: capitals, accents, spaces, digits, other scripts.
PROBE = "  The Café in ŁÓDŹ,\tfounded 1423:\n\n don't  pay £9.50 — 東京, Ελλάδα e\u0301 🙂 "


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder; RegrowError when there is none."""
    from transformers import AutoTokenizer

    try:
        pieces = sentencepiece_tokenizer(Path(path))
        if pieces is not None:
            return pieces
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except RegrowError:
        raise
    except Exception as error:  # The compiled part raises this class itself.
        _name_broken(Path(path))
        raise RegrowError(f"model {path}: no tokenizer could be loaded ({first_line(error)})") from error


def _name_broken(folder: Path) -> None:
    """RegrowError naming the file of a tokenizer that is broken, where one is by itself."""
    from tokenizers import Tokenizer

    for file in (folder / name for name in FILES if (folder / name).is_file()):
        if not isinstance(read_json(file, AGAIN), dict):
            raise RegrowError(f"{file}: no JSON object in it; {AGAIN}")
    whole = folder / FILES[0]
    if whole.is_file():
        try:
            Tokenizer.from_file(str(whole))
        except Exception as error:
            raise RegrowError(f"{whole}: no tokenizer can be made of it ({first_line(error)}); {AGAIN}") from None


@dataclass(frozen=True)
class Encoder:
    """Encodes documents. ``bos`` is None where the tokenizer puts none; ``separator`` ends every document.

    ``special_tokens``: ``plain`` takes the strings of special tokens in a text, which are ``special``, as ordinary
    text, ``parse`` as the tokens.

    ``engine`` is a copy of the compiled tokenizer behind ``tokenizer``, which nobody else sets to truncate or pad; it
    gives the same ids at less cost. None where ``tokenizer`` makes them in Python code of its own.
    Picklable; with an engine it may leave out ``tokenizer``, and needs neither transformers nor torch then.
    """

    tokenizer: PreTrainedTokenizerBase | None
    bos: int | None
    separator: int
    engine: Tokenizer | None = None
    special_tokens: str = "plain"
    special: tuple[str, ...] = ()

    def __call__(self, text: str) -> list[int]:
        """Token ids of one document: [bos] text separator; none where it says nothing."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document, as one call for each gives them; one call for all costs less."""
        leading = [] if self.bos is None else [self.bos]
        return [
            [*leading, *ids, self.separator] if ids and not text.isspace() else []
            for text, ids in zip(texts, self.inside(texts), strict=True)
        ]

    def inside(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Token ids of each text alone. RegrowError on one that the tokenizer has no ids for."""
        if self.engine is not None:
            try:
                # Unlike encode, this call does not keep where in the text every token stands.
                found = self.engine.encode_batch_fast(texts, add_special_tokens=False)
            except Exception as error:
                # The compiled part raises this class itself, and does not say for which text.
                if type(error) is not Exception:
                    raise
                found = [self._alone(text, self.engine.encode) for text in texts]
            yield from (one.ids for one in found)
            return
        for text in texts:
            yield self._alone(text, self._by_call)

    def _by_call(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.special_tokens == "plain" and any(string in text for string in self.special):
            return ids_as_text(self.tokenizer, text)
        call = {"add_special_tokens": add_special_tokens, "verbose": False, "split_special_tokens": False}
        return self.tokenizer(text, **call)["input_ids"]

    def _alone(self, text: str, encode: Callable[..., Any]) -> Any:
        """What ``encode`` makes of a text; RegrowError where the compiled part has no ids for it."""
        try:
            return encode(text, add_special_tokens=False)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise RegrowError(
                f"the tokenizer cannot encode {text[:60]!r} ({first_line(error)}); where it has no token for unknown "
                "words, give it one (tokenizer.json: model.unk_token), or take another tokenizer"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        # The engine's own pickle forgets this setting.
        return {**self.__dict__, "split": self.engine is not None and self.engine.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        split = state.pop("split")
        self.__dict__.update(state)
        if self.engine is not None:
            self.engine.encode_special_tokens = split


def make_encoder(tokenizer: PreTrainedTokenizerBase, separator: str = "eos", special_tokens: str = "plain") -> Encoder:
    """An Encoder for a tokenizer; RegrowError when the separator is not one of its tokens, or when it makes special
    tokens of their strings and ``special_tokens`` is ``plain``.

    From here on this process and those that it starts tokenize in one thread each: compiled tokenizers otherwise start
    a thread for each core, and a process forked after that can wait for ever for threads which it does not have.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
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
    engine = _engine(tokenizer, special_tokens)
    encoder = Encoder(tokenizer, own_bos, number, engine, special_tokens, special_strings(tokenizer))
    return encoder if special_tokens == "parse" else _plain(encoder)


@dataclass(frozen=True)
class Encoding:
    """How a run's texts become ids: the folder of the tokenizer's model, and what ``make_encoder`` is asked for.
    Picklable, and light: another process makes the same encoder of it."""

    tokenizer: Path
    separator: str = "eos"
    special_tokens: str = "plain"
    trust_remote_code: bool = False

    def load(self) -> Encoder:
        """The encoder. Raises RegrowError as ``load_tokenizer`` and ``make_encoder`` do."""
        tokenizer = load_tokenizer(self.tokenizer, self.trust_remote_code)
        return make_encoder(tokenizer, self.separator, self.special_tokens)


def _plain(encoder: Encoder) -> Encoder:
    """The encoder, made to take special tokens' strings as text also where its model finds them; RegrowError where it
    cannot be."""
    if not (parsed := _still_special(encoder)):
        return encoder
    if encoder.engine is not None:
        encoder = replace(encoder, engine=hide_special(encoder.engine, parsed))
        # That of unknown words may stand for its own string too.
        parsed = [string for string in _still_special(encoder) if string != encoder.tokenizer.unk_token]
    if parsed:
        raise RegrowError(
            f"data.special_tokens is plain, but this model's tokenizer makes special tokens of {', '.join(parsed[:3])} "
            "in any text; set data.special_tokens: parse"
        )
    return encoder


def _still_special(encoder: Encoder) -> list[str]:
    return still_special(lambda text: next(encoder.inside([text])), encoder.tokenizer)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides the ids of a text: the same in every process and from every folder that holds it."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        deciding = {name: state[name] for name in DECIDING}
        # Of when the tokenizer's own setting decided, which data.special_tokens does now: the hash stays.
        return hash_json({**deciding, "split_special_tokens": False})
    added = {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
    probe = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    return hash_json(
        {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "added": added,
            "files": files,
            "probe": probe,
        }
    )


def encoder_hash(encoder: Encoder) -> str:
    """sha256 of what decides the ids of a document: the tokenizer, BOS, separator, and what special tokens' strings
    become."""
    return hash_json(
        {
            "tokenizer": tokenizer_hash(encoder.tokenizer),
            "bos": encoder.bos,
            "separator": encoder.separator,
            "special_tokens": encoder.special_tokens,
        }
    )


def other_tokens(known: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[tuple[int, str, str | None]]:
    """The ids of ``known`` that are another token in ``other``, or none (None), with both tokens, sorted by id. What
    ``other`` has beyond them does not count: no text that ``known`` encodes has it."""
    meant = {number: token for token, number in other.get_vocab().items()}
    return sorted(
        (number, token, meant.get(number)) for token, number in known.get_vocab().items() if meant.get(number) != token
    )


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id, tokens that were added to the vocabulary included."""
    return 1 + max(tokenizer.get_vocab().values())


def _engine(tokenizer: PreTrainedTokenizerBase, special_tokens: str) -> Tokenizer | None:
    """A copy of a fast tokenizer's compiled part, set as the usual call sets it; None where that call is another."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast as Fast

    own = type(tokenizer)
    usual = isinstance(tokenizer, Fast) and all(
        getattr(own, name) is getattr(Fast, name) for name in ("__call__", "_encode_plus")
    )
    if not usual:
        return None
    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = special_tokens == "plain"
    return engine


def about_encoder(encoder: Encoder) -> dict[str, Any]:
    """What a tokenised shard says of the ids in it: all that decides them, and the size of the vocabulary."""
    return {
        "tokenizer": tokenizer_hash(encoder.tokenizer),
        "encoder": encoder_hash(encoder),
        "bos": encoder.bos,
        "separator": encoder.separator,
        "special_tokens": encoder.special_tokens,
        "vocabulary": vocabulary_size(encoder.tokenizer),
    }
