"""What model, tokenizer and text must be for a run to end well: looked at in seconds, before anything starts.

Headers are read and not weights (but small ones), one document of each source and not the corpus. What is not here, or
too large to be read, is given back as a line that says so.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from pipeline.config import Config, Source
from pipeline.data.corpus.local import local_files
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import format_of, read_records
from pipeline.data.formats.tokenised import about_tokenised, is_tokenised
from pipeline.data.shards import without_secrets
from pipeline.data.sources import may_be_remote, no_such_place
from pipeline.data.texts import NO_SUCH_KEY, NoText
from pipeline.evaluation.generation import encode_prompt
from pipeline.inputs import read_encoder
from pipeline.model.files import require_finite_files, require_whole
from pipeline.model.fit import require_fit
from pipeline.run import RegrowError, of_bytes

#: Bytes of weights that are read to see whether they are numbers: a second.
FEW = 1 << 30
#: Files of a source that are tried for one that can be read, where damaged ones are skipped.
TRIED = 8
#: Records of a file that are read to see whether the text's key is there.
FIRST = 1000
#: Plain words, which any tokenizer has tokens for.
WORDS = "The house stands near the river."


def check_weights(folder: Path, model: nn.Module) -> list[str]:
    """Look at the model's files of weights; ``model`` is on the meta device. Returns what was not looked at.

    Raises RegrowError naming the file, or the tensor, that is not as it must be.
    """
    files = require_whole(folder)
    require_fit(model, folder, files)
    size = sum(path.stat().st_size for path in files)
    if size <= FEW and files[0].suffix == ".safetensors":
        require_finite_files(files)
        return []
    return [f"weights of {folder}: {of_bytes(size)}; whether all are finite is seen when they are loaded"]


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weights of any kind."""
    return any(True for name in ("*.safetensors", "pytorch_model*.bin") for _ in folder.glob(name))


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a file of a tokenizer."""
    return any(True for name in ("tokenizer*", "*.model", "vocab.*") for _ in folder.glob(name))


def check_tokenizer(config: Config, folder: Path, model: nn.Module) -> None:
    """RegrowError where the model's tokenizer is missing, knows no words, lacks the separator, or has ids for which
    the model's embedding has no row."""
    if not has_tokenizer(folder):
        raise RegrowError(f"model {folder}: no tokenizer in it (tokenizer.json, or tokenizer.model); put it there")
    encoder = read_encoder(config, folder)
    tokenizer = encoder.tokenizer
    ids = set(tokenizer(WORDS, add_special_tokens=False, verbose=False)["input_ids"]) - {tokenizer.unk_token_id}
    if not ids:
        raise RegrowError(
            f"model {folder}: its tokenizer has no tokens for {WORDS!r}; its vocabulary is not whole: fetch it again"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    beyond = sorted(number for number in {*by_id, *ids, encoder.bos or 0, encoder.separator} if number >= rows)
    if beyond:
        last = beyond[-1]
        raise RegrowError(
            f"model {folder}: its embedding has {rows} rows, and its tokenizer {last + 1} ids: {len(beyond)} have no "
            f"row ({beyond[0]} {by_id.get(beyond[0], '')!r} to {last} {by_id.get(last, '')!r}). Take the tokenizer of "
            f"these weights, or give them rows: model.resize_token_embeddings({last + 1}), and save both"
        )


def check_prompts(config: Config, folder: Path, model: PreTrainedModel) -> None:
    """RegrowError where stage evaluate's prompts have no tokens, or do not fit the model's positions with what is to
    follow them; ``model`` is on the meta device, its tokenizer in ``folder``."""
    encoder, asked = read_encoder(config, folder), config.evaluate.generation
    for prompt in asked.prompts:
        encode_prompt(model, encoder, prompt, asked.new_tokens)


def check_texts(config: Config, elsewhere: bool = False) -> list[str]:
    """Read the first records of each local source, held-out text included. Returns what was not looked at.

    Raises RegrowError where a source is nowhere (``elsewhere``: unless it may be on another machine), DamagedShard
    where it holds no file that can be read.
    """
    held_out = [config.data.held_out] if config.data.held_out else []
    lines = (_check_source(source, config.data.on_damage, elsewhere) for source in (*config.data.sources, *held_out))
    return list(dict.fromkeys(line for line in lines if line is not None))


def _check_source(source: Source, on_damage: str, elsewhere: bool) -> str | None:
    here = None if "://" in source.path else local_files(source.path, source.files)
    if here is None:
        if not elsewhere and not may_be_remote(source.path):
            raise no_such_place(source.path)
        return f"text of {without_secrets(source.path)}: not on this machine; stage data reads it first"
    base, names = here
    kinds = {name: format_of(name) if source.format == "auto" else source.format for name in names}
    shards = [(base / name, kind) for name, kind in kinds.items() if kind is not None]
    damage: DamagedShard | None = None
    for path, kind in shards[:TRIED]:
        try:
            if _has_document(path, kind, source.text_key):
                return None
        except DamagedShard as error:
            if on_damage == "raise":
                raise
            damage = damage or error
    if damage is not None and len(shards) <= TRIED:
        raise damage
    if damage is None and shards:
        return f"text of {source.path}: none in the first records of its first files; stage data reads them whole"
    # That there is no shard at all is said by stage data at once, with what it looked for.
    return None


def _has_document(path: Path, kind: str, text_key: str) -> bool:
    """Whether there is one among the first records. RegrowError where none of them has the key."""
    if kind == "tokenised" or (kind == "tar" and is_tokenised(path)):
        return about_tokenised(path)["documents"] > 0
    texts = [text for _, text, _ in islice(read_records(path, kind, text_key), FIRST)]
    if texts and all(isinstance(text, NoText) and text.kind == NO_SUCH_KEY for text in texts):
        raise RegrowError(
            f"shard {path}: none of its first {len(texts):,} records has the key {text_key!r}; set text_key of its "
            f"source to one of the keys that are there ({', '.join(texts[0].keys) or 'none'})"
        )
    return any(isinstance(text, str) for text in texts)
