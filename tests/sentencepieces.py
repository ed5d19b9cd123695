"""A tokenizer.model of sentencepiece, made from real text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece


def write_pieces(folder: Path, texts: Sequence[str], size: int, **settings: Any) -> None:
    """Train a BPE of ``size`` pieces on the texts and write it to ``folder``/tokenizer.model, and nothing else there;
    ``settings`` as sentencepiece's trainer takes them."""
    words = folder / "words.txt"
    words.write_text("\n".join(text.replace("\n", " ") for text in texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        model_type="bpe",
        minloglevel=2,
        **settings,
    )
    words.unlink()
    (folder / "tokenizer.vocab").unlink()
