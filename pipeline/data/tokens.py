"""From text to token ids, and the policy on the tokens that stand between documents.

Every document becomes [BOS] text SEPARATOR. The BOS stands there when the tokenizer puts one before a text by itself
(Llama's does, SmolLM2's does not). The separator is the EOS unless the config names another token: an instruction
model's EOS may be the end of a chat turn, which should not stand between articles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run import RegrowError, first_line


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a Hugging Face folder; RegrowError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise RegrowError(f"model {path}: no tokenizer could be loaded ({first_line(error)})") from error


@dataclass(frozen=True)
class Encoder:
    """Encodes documents. ``bos`` is None where the tokenizer puts none; ``separator`` ends every document."""

    tokenizer: Any
    bos: int | None
    separator: int

    def __call__(self, text: str) -> list[int]:
        """Token ids of one document: [bos] text separator."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*([] if self.bos is None else [self.bos]), *ids, self.separator]


def make_encoder(tokenizer: Any, separator: str = "eos") -> Encoder:
    """An Encoder for a tokenizer; RegrowError when the separator is not one of its tokens."""
    leading = tokenizer("", add_special_tokens=True)["input_ids"]
    bos = tokenizer.bos_token_id
    own_bos = bos if bos is not None and leading[:1] == [bos] else None
    if separator == "eos":
        if tokenizer.eos_token_id is None:
            raise RegrowError("data.separator is eos, but this tokenizer has no EOS token; name another of its tokens")
        return Encoder(tokenizer, own_bos, tokenizer.eos_token_id)
    if separator not in tokenizer.get_vocab():
        raise RegrowError(f"data.separator {separator!r} is not a token of this model's tokenizer")
    return Encoder(tokenizer, own_bos, tokenizer.convert_tokens_to_ids(separator))
