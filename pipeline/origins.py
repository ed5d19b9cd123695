"""Models that a config names beside its own: where training begins, as ``train.init`` says it (the pruned model, new
weights in its shape, the dense model, another folder's model or another run's last export), and the first dense model,
as ``model.dense`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.data.tokens import Encoder, load_tokenizer, other_tokens
from pipeline.errors import RegrowError
from pipeline.model.load import model_files, resolve_model
from pipeline.model.lora import Lora
from pipeline.run import Run
from pipeline.training.export import Origin

#: What ``train.init`` says in a word; all else is a folder.
WORDS = ("pruned", "random", "dense")


def find_origin(config: Config, run: Run) -> Origin:
    """The model that training begins with. RegrowError where ``train.init`` names a folder that holds none."""
    init, pruned = config.train.init, run.stage("prune") / "model"
    if init == "dense":
        folder = resolve_model(config.model.path, config.model.revision)
    else:
        folder = pruned if init in WORDS else model_folder(init, "train.init")
    seed = config.train.seed if init == "random" else None
    return Origin(folder, config.model.dtype, config.model.trust_remote_code, seed, lora_of(config))


def lora_of(config: Config) -> Lora | None:
    """The adapters that the config has trained; None where all is."""
    asked = config.train.lora
    return Lora(asked.rank, asked.alpha, asked.dropout, asked.targets) if config.train.method == "lora" else None


def dense_folder(config: Config) -> Path:
    """The folder of the first dense model: ``model.dense``, or the model that this run begins with."""
    model = config.model
    if model.dense is None:
        return resolve_model(model.path, model.revision)
    return resolve_model(model.dense, model.dense_revision, "model.dense")


def dense_hashes(config: Config, run: Run) -> dict[str, str]:
    """sha256 of the files of ``model.dense``, by their names; empty where it is the model that this run begins with."""
    if config.model.dense is None:
        return {}
    return {f"dense/{path.name}": run.hash_of(path) for path in model_files(dense_folder(config))}


def check_dense(config: Config, encoder: Encoder | None, elsewhere: bool = False) -> list[str]:
    """Whether ``model.dense`` is a model for the text's tokens. Returns a line if it is not here.

    RegrowError where it is nowhere (``elsewhere``: unless it may be on another machine), or its tokens are not those of
    ``encoder``.
    """
    dense = config.model.dense
    if dense is None:
        return []
    return check_named(config, "model.dense", dense, lambda: dense_folder(config), encoder, elsewhere)


def checked_origin(config: Config, run: Run, encoder: Encoder) -> Origin:
    """``find_origin``'s, whose tokens are those of the text. RegrowError where they are not."""
    origin = find_origin(config, run)
    if config.train.init not in WORDS:
        require_same_tokens(encoder, origin.folder, "train.init", config.model.trust_remote_code)
    return origin


def origin_hashes(config: Config, run: Run) -> dict[str, str]:
    """sha256 of the files of a model that this run's stages have not made, by their names."""
    if config.train.init in ("pruned", "random"):
        return {}
    folder = find_origin(config, run).folder
    return {f"init/{path.name}": run.hash_of(path) for path in model_files(folder)}


def check_origin(config: Config, encoder: Encoder | None, elsewhere: bool = False) -> list[str]:
    """Whether the model that ``train.init`` names is one for the text's tokens. Returns a line if it is not here.

    RegrowError where its folder holds no model (``elsewhere``: unless it may be on another machine), or its tokens are
    not those of ``encoder``.
    """
    init = config.train.init
    if init in WORDS:
        return []
    return check_named(config, "train.init", init, lambda: model_folder(init, "train.init"), encoder, elsewhere)


def check_named(
    config: Config,
    key: str,
    named: str,
    find: Callable[[], Path],
    encoder: Encoder | None,
    elsewhere: bool,
) -> list[str]:
    """Whether the model that ``key`` names, whose folder ``find`` gives, is one for the text's tokens. Returns a line
    if it is not here.

    RegrowError as ``find`` raises it (``elsewhere``: unless the model may be on another machine), and where its tokens
    are not those of ``encoder``.
    """
    if elsewhere and not Path(named).expanduser().exists():
        return [f"{key}: {named} is not on this machine"]
    folder = find()
    if encoder is not None:
        require_same_tokens(encoder, folder, key, config.model.trust_remote_code)
    return []


def model_folder(named: str, key: str, words: Sequence[str] = WORDS) -> Path:
    """The folder of a model that ``key`` names: itself, or the last export of the run whose folder it is.

    RegrowError where it is neither.
    """
    folder = Path(named).expanduser()
    record = Run(folder).record("train")
    if record is not None:
        return folder / record["result"]["export"]
    if (folder / "train").is_dir():
        raise RegrowError(f"{key} {named}: a run whose training has not ended, so that it has no last export")
    if not (folder / "config.json").is_file():
        raise RegrowError(
            f"{key} {named}: neither {', '.join(words)}, nor the folder of a model (config.json and weights), nor that "
            "of a run whose stage train is done"
        )
    return resolve_model(str(folder))


def require_same_tokens(encoder: Encoder, folder: Path, key: str, trust_remote_code: bool) -> None:
    """RegrowError where an id of the text is another token for the model in ``folder``, which ``key`` names."""
    other = other_tokens(encoder.tokenizer, load_tokenizer(folder, trust_remote_code))
    if other:
        shown = "; ".join(f"{number} is {token!r}, there {meant!r}" for number, token, meant in other[:3])
        raise RegrowError(
            f"{key} {folder}: {len(other):,} of the {len(encoder.tokenizer.get_vocab()):,} ids of model.path's "
            f"tokenizer mean other tokens there ({shown}); take a model of the same tokenizer"
        )
