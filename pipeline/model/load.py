"""Loading and saving models as plain Hugging Face folders, and naming what was loaded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from logging import LogRecord, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import RegrowError, first_line
from pipeline.files import require_space
from pipeline.launch import name_accelerator
from pipeline.model.architecture import auto_class, own_code, read_config, tokenizer_code
from pipeline.model.dispatch import Dispatch, aligned, read_not_mapped, values_of
from pipeline.model.files import require_finite, weight_files
from pipeline.model.fit import require_fit
from pipeline.model.headers import is_old_mask, named_dtype, stored_dtype
from pipeline.model.hollow import without_weights
from pipeline.model.outputs import return_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Files beside the weights that make a folder usable: tokenizer, chat template, generation settings, and what a
#: multimodal model does with images.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "*processor_config.json",
    "tekken.json",
    "*.tiktoken",
)

WEIGHTS_AND_CONFIGS = {".safetensors", ".bin", ".json", ".model", ".txt", ".tiktoken", ".py"}


def resolve_model(path: str, revision: str | None = None, key: str = "model.path") -> Path:
    """A local folder with the model that ``key`` names: ``path`` itself, or its snapshot fetched from the hub.

    Older models (Vicuna-7B v1.3) have torch's .bin weights alone: those are taken where there are no safetensors;
    transformers reads them with ``weights_only``. Raises RegrowError when ``path`` is neither, or the folder holds no
    config.json or no weights.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
            raise RegrowError(
                f"{key} {path!r}: no such folder, and not the name of a model on the hub (owner/name). "
                "For the demo's model run: python -m pipeline.demo"
            )
        from huggingface_hub import list_repo_files, snapshot_download

        weights = ["*.safetensors", "pytorch_model*.bin"]
        with contextlib.suppress(Exception):
            # Not both, where a model has both. Without a network the cache answers below, or the error is told there.
            if any(name.endswith(".safetensors") for name in list_repo_files(path, revision=revision)):
                weights = ["*.safetensors"]
        try:
            wanted = ["*.json", *weights, "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py"]
            folder = Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
        except Exception as error:
            raise RegrowError(
                f"{key} {path!r}: no such folder here, and the hub did not deliver it ({type(error).__name__}: "
                f"{first_line(error)}); check the name, the network and, for a gated model, HF_TOKEN"
            ) from error
    if not (folder / "config.json").is_file():
        raise RegrowError(f"{key} {path!r}: no config.json in {folder}; this is not a Hugging Face model folder")
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise RegrowError(f"{key} {path!r}: no weights in {folder} (*.safetensors or pytorch_model*.bin)")
    return folder


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what it computes: weights, configs, tokenizer, code."""
    return sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS_AND_CONFIGS)


def attention_kernel(asked: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """The attention implementation for ``asked``: auto takes the best that is installed.

    None leaves it to transformers: sdpa, or eager for the few models that cannot do with it (Gemma 2). Flash attention
    has no fp32.

    Raises RegrowError when a kernel is asked for by name that is not installed here.
    """
    from transformers import utils

    available = {
        "flash_attention_3": utils.is_flash_attn_3_available(),
        "flash_attention_2": utils.is_flash_attn_2_available(),
    }
    if asked == "auto":
        fits = device.type == "cuda" and dtype != torch.float32
        return next((name for name, there in available.items() if there and fits), None)
    if asked in available and not (available[asked] and device.type == "cuda"):
        raise RegrowError(f"attention {asked}: not installed here, or no GPU; use auto or sdpa", about="attention")
    return asked


def load_model(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    dispatch: Dispatch | None = None,
) -> PreTrainedModel:
    """A causal language model from a local folder, or by its name on the hub (owner/name), in evaluation mode.

    >>> load_model("path/of/a/model").dtype
    torch.bfloat16
    >>> load_model("path/of/a/model", dtype="float32").dtype
    torch.float32

    ``revision`` is a branch, tag or commit on the hub. ``dtype`` is that of the weights; None keeps the one that most
    values of the files are in. ``attention``: ``auto``, or a name of transformers. With ``dispatch`` the model is
    spread as that says, and computes on ``device`` and the GPUs that are named there; without it stands on ``device``
    whole.

    A multimodal wrapper that is no causal language model in transformers is loaded whole (``architecture``). Where the
    config says that the head is tied to the embeddings and the file holds another, the loaded config says what is so;
    where it asks for hidden states, attentions or plain tuples, it no longer does (``return_logits``).

    Raises RegrowError when there is no such model, dtype or device, when the folder cannot be loaded, or when weights
    are missing, of another shape, left over or not finite: a model that transformers would complete with random
    weights is refused. So is code of a model's own whose buffers transformers would leave to chance.
    """
    from transformers.utils import logging

    path = Path(path) if Path(path).is_dir() else resolve_model(str(path), revision, "model")
    loader, device = auto_class(read_config(path, trust_remote_code)), _device(device)
    dtype = stored_dtype(weight_files(path)) if dtype is None else named_dtype(dtype)
    kernel = attention_kernel(attention, device, dtype)
    logging.disable_progress_bar()
    name_accelerator()
    try:
        with _without_report(), _spreading(dispatch, path, dtype, kernel, trust_remote_code) as spread:
            model, loading = loader.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=kernel,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # They are refused below, by name.
                **spread,
            )
    except RegrowError:
        raise
    except Exception as error:
        # Where weights do not fit, this names them.
        require_fit(without_weights(path, dtype, None, trust_remote_code), path, weight_files(path))
        raise RegrowError(f"model {path}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
    _require_fitted(path, loading)
    if trust_remote_code and own_code(path):
        without_weights(path, dtype, None, trust_remote_code)  # which refuses buffers of arbitrary numbers
    if device.type == "cpu":
        own_memory(model)
    _say_whether_tied(model)
    return_logits(model)
    model.eval()
    if dispatch is None:
        model.to(device)
    require_finite(values_of(model), path)
    return model


def _device(device: str | torch.device) -> torch.device:
    """The device by its name in torch; RegrowError where this machine's torch has none such."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise RegrowError(f"device {device}: not to be had here ({first_line(error)}); cpu always is") from None
    return found


@contextlib.contextmanager
def _spreading(
    dispatch: Dispatch | None, path: Path, dtype: torch.dtype, kernel: str | None, trust_remote_code: bool
) -> Iterator[dict[str, Any]]:
    """What transformers is told besides to spread a model, and how it reads files within the context."""
    if dispatch is None:
        yield {}
        return
    with read_not_mapped():
        yield dispatch.arguments(without_weights(path, dtype, kernel, trust_remote_code), path)


def _require_fitted(path: Path, loading: dict[str, Any]) -> None:
    """RegrowError where transformers found weights missing, left over, or of another shape than the config's."""
    found = {
        "missing_keys": sorted(loading.get("missing_keys") or ()),
        "unexpected_keys": sorted(name for name in loading.get("unexpected_keys") or () if not is_old_mask(name)),
    }
    wrong = {name: keys for name, keys in found.items() if keys}
    if loading.get("mismatched_keys"):
        wrong["mismatched_keys"] = [
            f"{name} has shape {list(found)}, and {list(wanted)} is wanted"
            for name, found, wanted in sorted(loading["mismatched_keys"], key=lambda one: one[0])
        ]
    if wrong:
        listed = "; ".join(f"{name.replace('_', ' ')}: {', '.join(keys[:3])}" for name, keys in wrong.items())
        raise RegrowError(f"model {path}: weights and config do not fit ({listed})")


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Within the context transformers prints no table of the weights that do not fit, which are refused by name, and
    accelerate no line on those that lie elsewhere."""

    def is_no_report(record: LogRecord) -> bool:
        return not any(words in record.getMessage() for words in ("LOAD REPORT", "on the meta device because"))

    loggers = [getLogger(name) for name in ("transformers.modeling_utils", "accelerate.big_modeling")]
    for logger in loggers:
        logger.addFilter(is_no_report)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_no_report)


def _say_whether_tied(model: Any) -> None:
    """Have the config say of the head what its weights are, so that whoever reads a saved config takes the right one.

    Of a wrapper both configs say it: transformers goes by the outer one, other readers by the text part's.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embeddings is None:
        return
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = head.weight is embeddings.weight


def own_memory(model: Any) -> None:
    """Copy weights out of the file that they are mapped from, where the file's layout moves them off a cache line.

    Kernels on a CPU round differently for unaligned memory, so that the same weights in two files with headers of
    different length would give logits that differ in the last bits.
    """
    for parameter in model.parameters():
        parameter.data = aligned(parameter.data)


def save_model(model: Any, folder: Path, companions_from: Path | None = None) -> None:
    """Save weights (safetensors) and config, with the tokenizer and generation files of ``companions_from``."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    name_accelerator()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if companions_from is not None:
        copy_companions(companions_from, folder)


def save_whole(model: Any, target: Path, companions_from: Path, what: str) -> None:
    """``save_model`` to a folder that is whole or not there; what stood in ``target`` stays until all is written.

    Raises RegrowError where there is no room for ``what`` it is.
    """
    require_space(target.parent, sum(parameter.nbytes for parameter in model.parameters()), what)
    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    save_model(model, scratch, companions_from)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation settings from one model folder to another; of a tokenizer that is
    code of its own, that code and what it imports from beside it."""
    from transformers.dynamic_module_utils import get_relative_import_files

    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    for path in (source / name for name in tokenizer_code(source)):
        if path.is_file():  # else it is on the hub
            for file in (path, *map(Path, get_relative_import_files(path))):
                (folder / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / file.relative_to(source))
