"""What model, tokenizer, text and budget must be for a run to end well: looked at in seconds, before anything starts.

Headers are read and not weights (but small ones), one document of each source and not the corpus. What is not here, or
too large to be read, is given back as a line that says so.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from pipeline.config import Config
from pipeline.data.corpus.local import local_files
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import format_for, read_records
from pipeline.data.formats.parquet import row_groups
from pipeline.data.formats.tokenised import about_tokenised, is_tokenised
from pipeline.data.shards import without_secrets
from pipeline.data.sources import TextSource, may_be_remote, no_record, no_shard, no_such_place
from pipeline.data.stream.held_out import require_one_row
from pipeline.data.texts import NO_SUCH_KEY, NoText, counted, key_of, named_key, refuse_no_text, why_no_text
from pipeline.data.tokens import Encoder
from pipeline.errors import RegrowError
from pipeline.evaluation.generation import encode_prompt
from pipeline.files import of_bytes
from pipeline.inputs import held_out_asked, read_encoder, text_source
from pipeline.model.architecture import check_generation
from pipeline.model.files import require_finite_files, require_whole
from pipeline.model.fit import require_fit
from pipeline.model.load import resolve_model
from pipeline.places import check_places

#: Bytes of weights that are read to see whether they are numbers: a second.
FEW = 1 << 30
#: Files of a source that are tried for one that can be read, where damaged ones are skipped.
TRIED = 8
#: Records of a file that are read to see whether the text's key is there.
FIRST = 1000
#: Bytes of held-out text that are read for a first row, should all of it be too short for one.
SMALL = 1 << 26
#: Plain words, which any tokenizer has tokens for.
WORDS = "The house stands near the river."
#: A budget that is stretched by more than this, to whole steps, is said.
STRETCHED = 1.1


def check_here(config: Config, model: PreTrainedModel, folder: Path) -> tuple[Encoder | None, list[str]]:
    """Check what of places, weights, tokenizer and held-out text is on this machine; returns the encoder of its
    documents, None where the tokenizer is not here, and what else was not, a line each.

    ``model`` is on the meta device, its config.json in ``folder``. Raises what the checks of each raise.
    """
    lines, encoder = check_places(config), None
    # A folder that model.path names is taken as it is; one in the hub's cache may be fetched in part.
    named = Path(config.model.path).is_dir()
    if named:
        folder = resolve_model(config.model.path)
    own = named or folder != config.model.architecture
    if own:
        check_generation(folder)
    if own and (named or has_tokenizer(folder)):
        encoder = check_tokenizer(config, folder, model)
    else:
        lines.append(f"tokenizer of {config.model.path}: not on this machine")
    if own and (named or has_weights(folder)):
        lines += check_weights(folder, model)
    else:
        lines.append(f"weights of {config.model.path}: not on this machine")
    if encoder is not None:
        check_held_out(config, encoder)
    return encoder, lines


def check_weights(folder: Path, model: nn.Module) -> list[str]:
    """Look at the model's files of weights; ``model`` is on the meta device. Returns what was not looked at.

    Raises RegrowError naming the file, or the tensors, that are not as they must be.
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


def check_tokenizer(config: Config, folder: Path, model: nn.Module) -> Encoder:
    """The encoder of documents, by the model's tokenizer. RegrowError where that is missing, knows no words, lacks the
    separator, or has ids for which the model's embedding has no row."""
    if not has_tokenizer(folder):
        raise RegrowError(f"model {folder}: no tokenizer in it (tokenizer.json, or tokenizer.model); put it there")
    encoder = read_encoder(config, folder)
    tokenizer = encoder.tokenizer
    ids = set(next(encoder.inside([WORDS]))) - {tokenizer.unk_token_id}
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
    return encoder


def check_prompts(config: Config, encoder: Encoder, model: PreTrainedModel) -> None:
    """RegrowError where stage evaluate's prompts have no tokens, or do not fit the model's positions with what is to
    follow them; ``model`` is on the meta device."""
    asked = config.evaluate.generation
    for prompt in asked.prompts:
        encode_prompt(model, encoder, prompt, asked.new_tokens)


def check_lengths(config: Config, model: PreTrainedModel) -> list[str]:
    """Lines on rows that are longer than the model's positions; ``model`` is on the meta device.

    RegrowError where the positions are a table (GPT-2's, OPT's): it has no row for what lies beyond.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    judged = {"held_out": config.evaluate.perplexity.held_out, **config.evaluate.perplexity.texts}
    asked = {
        "data.row_length": config.data.row_length,
        "score.length": config.score.length,
        "prune.compare.length": config.prune.compare.length if config.prune.compare.enabled else 0,
        **{f"evaluate.perplexity.{name}.length": text.length or 0 for name, text in judged.items()},
    }
    long = {key: length for key, length in asked.items() if positions and length > positions}
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    words = model.get_input_embeddings()
    # OPT's table has two rows more.
    if long and any(one is not words and positions <= one.num_embeddings <= positions + 2 for one in tables):
        stated = " and ".join(f"{key} ({length})" for key, length in long.items())
        raise RegrowError(
            f"{stated}: the model has a table of {positions} positions, and no row may be longer; set at most "
            f"{positions}"
        )
    return [f"{key} {length} is longer than the model's {positions} positions" for key, length in long.items()]


def check_texts(config: Config, elsewhere: bool = False) -> list[str]:
    """Read the first records of each local source, held-out text included. Returns what was not looked at.

    Raises RegrowError where a source is nowhere (``elsewhere``: unless it may be on another machine), holds no shard or
    no text, or has a record without text where that is not to be; DamagedShard where no file of it can be read.
    """
    lines = (_check_source(text_source(config, key), elsewhere) for key in config.data.texts)
    return list(dict.fromkeys(line for line in lines if line is not None))


def check_held_out(config: Config, encoder: Encoder) -> None:
    """RegrowError where the held-out text is shorter than a row that will be asked of it.

    A set that is elsewhere, large or damaged is left to stage data, which does the same.
    """
    if config.data.held_out is None:
        return
    source = text_source(config, "data.held_out")
    files = local_shards(source) or {}
    sizes = {path: path.stat().st_size for path in files}
    if not files or sum(sizes.values()) > SMALL:
        return
    try:
        kinds = {path: kind_of(source, path, kind) for path, kind in files.items()}
        shards = [
            source.shard(place=str(path.parent), path=path.name, kind="local", format=kind, bytes=sizes[path])
            for path, kind in kinds.items()
            if not _has_no_rows(path, kind)
        ]
        require_one_row(shards, encoder, held_out_asked(config), config.data.cache)
    except DamagedShard:
        if source.on_damage == "raise":
            raise


def local_shards(source: TextSource) -> dict[Path, str] | None:
    """The shards of a local source and the formats that their names say (``kind_of`` has the one that a tar has); None
    where there is no such place here."""
    here = None if "://" in source.path else local_files(source.path, source.files)
    if here is None:
        return None
    base, names = here
    return {base / name: kind for name in names if (kind := format_for(source, name)) is not None}


def kind_of(source: TextSource, path: Path, kind: str) -> str:
    """Format of a file whose name says ``kind``: a tar may hold ids."""
    return "tokenised" if source.format == "auto" and kind == "tar" and is_tokenised(path) else kind


def _has_no_rows(path: Path, kind: str) -> bool:
    """Whether this is a parquet file without a row, which a listing leaves out."""
    return kind == "parquet" and not sum(row_groups(path))


def _check_source(source: TextSource, elsewhere: bool) -> str | None:
    files = local_shards(source)
    if files is None:
        if not elsewhere and not may_be_remote(source.path):
            raise no_such_place(source)
        return f"text of {without_secrets(source.path)}: not on this machine; stage data reads it first"
    if not files:
        raise no_shard(source, names=local_files(source.path, source.files)[1])
    damage: DamagedShard | None = None
    without_text: Counter[str] = Counter()
    to_the_end = len(files) <= TRIED
    for path, kind in islice(files.items(), TRIED):
        try:
            texts = _first_texts(source, path, kind_of(source, path, kind))
        except DamagedShard as error:
            if source.on_damage == "raise":
                raise
            damage = damage or error
            continue
        if None in texts:
            return None
        without_text.update(texts)
        to_the_end &= len(texts) < FIRST
    if to_the_end and without_text:
        raise no_record(source, without_text)
    if to_the_end and damage is not None:
        raise damage
    return f"text of {source.path}: none in the first records of its first files; stage data reads them whole"


def _first_texts(source: TextSource, path: Path, kind: str) -> list[str | None]:
    """Of the first records of a file what stands in each one's place of text; None for text. RegrowError where none of
    them has the key, or one without text is to end the run."""
    if kind == "tokenised":
        return [None] if about_tokenised(path)["documents"] else []
    if _has_no_rows(path, kind):
        return []
    texts = [text for _, text, _ in islice(read_records(path, kind, source.text_key), FIRST)]
    if texts and all(isinstance(text, NoText) and text.kind == NO_SUCH_KEY for text in texts):
        raise RegrowError(
            f"shard {path}: none of its first {len(texts):,} records has the key {named_key(source.text_key)}; set "
            f"{key_of(source.text_key)} of its source to one of the keys that are there "
            f"({', '.join(texts[0].keys) or 'none'})"
        )
    whys = [why_no_text(text) for text in texts]
    kinds = Counter(why for why in whys if why is not None)
    if source.on_no_text == "raise" and kinds:
        first = next(number for number, why in enumerate(whys) if why is not None)
        among = f" among its first {FIRST:,}" if len(texts) == FIRST else ""
        raise refuse_no_text(str(path), first, f"{counted(kinds)}{among}, the first")
    return whys


def one_large_step(config: Config) -> list[str]:
    """A line where whole steps make much more of the token budget than it is."""
    train = config.train
    per_step, steps = config.tokens_per_step, config.steps
    stretched = steps * per_step / train.tokens
    if stretched <= STRETCHED:
        return []
    what = "one step is" if steps == 1 else f"{steps} steps are"
    return [
        f"{what} {stretched:.{0 if stretched >= 10 else 1}f} times the budget: train.tokens {train.tokens:,} becomes "
        f"{steps * per_step:,}, by {train.global_batch} rows of {config.data.row_length} tokens a step; lower "
        "train.global_batch or data.row_length"
    ]
