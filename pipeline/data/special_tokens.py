"""Special tokens' strings in a text: which they are, how many a text has, and a tokenizer that takes them as text.

A tokenizer makes its special token of the string "</s>", also where a page merely writes about it. Compiled tokenizers
can be told not to (``encode_special_tokens``), but a model that looks whole words up in its vocabulary finds the string
there again: Unigram, and WordLevel and WordPiece behind a split at spaces. There it gets another name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

#: Around the name of a special token that no text is to match: a noncharacter, which Unicode keeps out of texts.
HIDDEN = "\ufdd0"


def special_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The strings of all special tokens, the longest first; added tokens that are not special are not among them."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens), key=lambda string: (-len(string), string)))


def count_strings(texts: Iterable[str], strings: Sequence[str]) -> tuple[int, Counter[str]]:
    """How many of ``texts`` have one of ``strings`` in them, and how often each stands there; the longest counts."""
    found: Counter[str] = Counter()
    holding = 0
    if strings:
        pattern = re.compile("|".join(map(re.escape, strings)))
        for text in texts:
            here = pattern.findall(text)
            found.update(here)
            holding += bool(here)
    return holding, found


def still_special(encode: Callable[[str], Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that ``encode`` makes of their strings, alone or inside a text.

    A token that a single character gives is not among them: it stands for that character there, as that of unknown
    ones does, those of bytes, and one whose string is a character.
    """

    def parsed(string: str) -> bool:
        number, texts = tokenizer.convert_tokens_to_ids(string), (string, f"a {string} b", f"a{string}b")
        found = any(number in encode(text) for text in texts)
        return found and not any(number in encode(character) for character in set(texts[1]))

    return [string for string in special_strings(tokenizer) if parsed(string)]


def ids_as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text from a tokenizer without a compiled part to copy, special tokens' strings as text.

    Python code then leaves out all added tokens; those that are not special are looked up here.
    """
    call = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    others = added.difference(special_strings(tokenizer))
    if tokenizer.is_fast or not others:
        return tokenizer(text, **call)["input_ids"]
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, sorted(others, key=len, reverse=True)))})", text):
        if piece in others:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            ids += tokenizer(piece, **call)["input_ids"]
    return ids


def hide_special(engine: Tokenizer, strings: Sequence[str]) -> Tokenizer:
    """A copy of a compiled tokenizer that has the special tokens ``strings`` under names that no text has.

    All ids, and the ids of every text without such a string, stay as they are.
    """
    from tokenizers import Tokenizer

    state = json.loads(engine.to_str())
    hidden = {string: f"{HIDDEN}{string}{HIDDEN}" for string in strings}
    for token in state["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        # Those that lead to a special token, or on from it.
        model["merges"] = [pair for pair in model["merges"] if not hidden.keys() & {*pair, "".join(pair)}]
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy
