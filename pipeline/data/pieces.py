"""Tokenizers of folders that have sentencepiece's tokenizer.model and nothing else of a tokenizer.

transformers makes a plain one of such a file, which for a Llama leaves out the space that sentencepiece puts before a
text: every document's first word is another than the model has learned. Its Llama class does as sentencepiece does. Of
the two the first is taken whose tokens are sentencepiece's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RegrowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.model"
#: Files that say how a tokenizer is to be made: where one is there, transformers does.
TOLD = ("tokenizer.json", "tokenizer_config.json")
#: Texts whose tokens must be sentencepiece's own: a first word, numbers, what its vocabulary may lack.
TRIED = ("The old city", "In 1995, 3 of 7", "naïve rivers")


def sentencepiece_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder with tokenizer.model alone; None for any other folder, and for a file of that name that
    is not sentencepiece's. RegrowError where what transformers makes of it gives other tokens than sentencepiece."""
    file = folder / FILE
    if not file.is_file() or any((folder / name).exists() for name in TOLD):
        return None
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer, LlamaTokenizer

    try:
        pieces = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):
        return None
    for kind in (AutoTokenizer, LlamaTokenizer):
        tokenizer = kind.from_pretrained(folder)
        if all(tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text) for text in TRIED):
            return tokenizer
    raise RegrowError(
        f"{file}: transformers makes other tokens of it than sentencepiece does; add the tokenizer_config.json that "
        "belongs to it, which names its class, or a tokenizer.json"
    )
