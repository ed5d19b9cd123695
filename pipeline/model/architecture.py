"""Which class of transformers a model folder is loaded with, and which are refused before anything is loaded.

A causal language model is what AutoModelForCausalLM makes of the config. Some multimodal wrappers (a language model
with a vision tower beside it) stand under image-text-to-text alone: of these, the named ones are pruned in their text
part, which text alone runs through as it runs through a causal language model; the tower stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from pipeline.run import RegrowError, first_line, read_json

#: Model types under image-text-to-text alone that are loaded. What another wrapper's text part is given beside text
#: may depend on a block's place (Qwen3-VL adds image features behind its first blocks), which text does not show.
WRAPPERS = ("mistral3",)


def read_config(folder: str | Path, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config in a folder.

    Raises RegrowError when there is none, when transformers cannot read it, and when it takes code of the folder's own
    that may not be run.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = Path(folder) / "config.json"
    plain = read_json(file)
    own = plain.get("auto_map") if isinstance(plain, dict) else None
    if own and plain.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        modules = sorted({str(name).rpartition(".")[0].rpartition("--")[2] + ".py" for name in own.values()})
        raise RegrowError(
            f"{file}: this model is code of its own ({', '.join(modules)}), which runs only where the config allows "
            "it; read that code, then set model.trust_remote_code=true"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError, ZeroDivisionError, StrictDataclassError) as error:
        raise RegrowError(f"{file}: transformers cannot read this as a model's config: {first_line(error)}") from None


def auto_class(hf_config: Any) -> Any:
    """The class whose ``from_config`` and ``from_pretrained`` make this config's model.

    Raises RegrowError, in one line, when it is neither a causal language model nor one of ``WRAPPERS``.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    own = getattr(hf_config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in own or type(hf_config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if hf_config.model_type in WRAPPERS:
        return AutoModelForImageTextToText
    raise RegrowError(
        f"model type {hf_config.model_type}: not a causal language model in transformers, and of the multimodal "
        f"wrappers only {', '.join(WRAPPERS)} can be pruned beside those that transformers loads as one"
    )
