"""Which class of transformers a model folder is loaded with, and which are refused before anything is loaded.

A causal language model is what AutoModelForCausalLM makes of the config. Of some multimodal wrappers (a language model
with a vision tower beside it) it makes nothing, or the text part without the tower. Named ones are loaded whole, under
image-text-to-text, and pruned in their text part, which text alone runs through; the tower stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegrowError, first_line
from pipeline.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Model types that are loaded under image-text-to-text. What another wrapper's blocks are given with an image may
#: depend on their place (Qwen3-VL adds image features behind its first blocks), which text does not show.
WRAPPERS = ("llama4", "mistral3", "qwen3_5", "qwen3_5_moe")
#: What to do about a file of the model's that is damaged: no stage wrote it.
AGAIN = "fetch the model again"
#: What to do about a model whose weights are quantised.
DEQUANTISE = (
    "blocks are scored, removed and trained in bf16 or fp32: take the release in bf16, or save it dequantised first "
    "(transformers: model.dequantize(), then save_pretrained)"
)


def read_config(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The Hugging Face config in a folder.

    Raises RegrowError when there is none, when transformers cannot read it, when it says that the weights are
    quantised, and when it takes code of the folder's own that may not be run, or cannot be told.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = Path(folder) / "config.json"
    own = own_code(folder)
    if own and read_json(file, AGAIN).get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise RegrowError(
            f"{file}: this model is code of its own ({', '.join(own)}), which runs only where it is allowed to; read "
            "that code, then say trust_remote_code=True",
            about="code",
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a class makes of values that it did not foresee
        raise RegrowError(f"{file}: transformers cannot read this as a model's config: {first_line(error)}") from None
    # Of a wrapper it may stand at the text part alone.
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None):
            raise RegrowError(f"{file}: the weights are quantised (quantization_config); {DEQUANTISE}")
    return config


def check_generation(folder: str | Path) -> None:
    """RegrowError where the folder has a generation_config.json that transformers would not load with the model, or
    passes over because it is no JSON; it goes along with every model that is saved."""
    from transformers import GenerationConfig

    file = Path(folder) / "generation_config.json"
    if not file.is_file():
        return
    read_json(file, AGAIN)
    try:
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    except Exception as error:  # whatever its checks make of values that they did not foresee
        why = first_line(error).rstrip(".")
        raise RegrowError(
            f"{file}: transformers cannot read this as settings of generation: {why}; mend it, or move it aside"
        ) from None
    if ends is not None and not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends])):
        raise RegrowError(f"{file}: eos_token_id is {json.dumps(ends)[:80]}; it must be an id, or a list of ids")


def own_code(folder: str | Path) -> list[str]:
    """The files of code that a folder's config.json takes its classes from, in the folder or on the hub.

    Raises RegrowError where its ``auto_map`` does not name classes.
    """
    return _named_code(Path(folder) / "config.json")


def tokenizer_code(folder: str | Path) -> list[str]:
    """The files of code that a folder's tokenizer_config.json takes its tokenizer from, in the folder or on the hub.

    Raises RegrowError as ``own_code`` does.
    """
    file = Path(folder) / "tokenizer_config.json"
    return _named_code(file) if file.is_file() else []


def _named_code(file: Path) -> list[str]:
    plain = read_json(file, AGAIN)
    named = plain.get("auto_map", {}) if isinstance(plain, dict) else {}
    if isinstance(named, list) and file.name == "tokenizer_config.json":
        named = {"AutoTokenizer": named}  # how tokenizers were saved once
    # A class is named as file.Class or as owner/name--file.Class; of tokenizers there may be two, or none.
    entries = list(named.values()) if isinstance(named, dict) else [named]
    classes = [
        name for entry in entries for name in (entry if isinstance(entry, list) else [entry]) if name is not None
    ]
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in classes):
        raise RegrowError(
            f"{file}: auto_map is {json.dumps(named)[:80]}; it must name classes, such as "
            '{"AutoConfig": "file.Class"}; correct it, or take it out where the model needs no code of its own'
        )
    return sorted({name.rpartition("--")[2].rpartition(".")[0] + ".py" for name in classes})


def auto_class(hf_config: PreTrainedConfig) -> Any:
    """The class whose ``from_config`` and ``from_pretrained`` make this config's model.

    Raises RegrowError, in one line, when it is neither a causal language model nor one of ``WRAPPERS``.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    own = getattr(hf_config, "auto_map", None) or {}
    if hf_config.model_type in WRAPPERS:
        return AutoModelForImageTextToText
    if "AutoModelForCausalLM" in own:
        return AutoModelForCausalLM
    kind = type(hf_config)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    # A class of another config is made for the text part alone, and would leave out the rest of a wrapper.
    if causal is not None and (causal.config_class is kind or hf_config.get_text_config() is hf_config):
        return AutoModelForCausalLM
    raise RegrowError(
        f"model type {hf_config.model_type}: transformers has no causal language model of it, or only of a part; of "
        f"such multimodal models {', '.join(WRAPPERS)} can be pruned"
    )


def why_not_made(hf_config: PreTrainedConfig, error: Exception) -> str:
    """Why a model cannot be made from a config, in a line; where transformers looked a value up and did not find it
    (an activation, a kind of rope), the keys that have it."""
    if not isinstance(error, KeyError) or not error.args:
        return first_line(error)
    keys = [key for key, value in _flat(hf_config.to_dict()) if value == error.args[0]]
    return f"{' and '.join(keys) or 'a value in it'} is {error.args[0]!r}, which transformers does not know"


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
