"""A model and a tokenizer that are code of their own: the tiny Llama and its BPE under names that transformers does not
know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

#: What config.json names. ``{scale}`` stands where a block's attention leaves its output.
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.register_forward_hook(lambda module, args, output: (output[0] * {scale}, *output[1:]))
"""

MAP = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}


def write_own_model(tiny_model: Path, folder: Path, scale: str = "1.5", more: str = "") -> Path:
    """Copy the tiny model to ``folder`` and have it need code: ``scale`` is an expression that may use ``module``, and
    ``more`` a line at the end of the constructor."""
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": MAP}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_code.py").write_text(CODE.format(scale=scale) + f"        {more}\n")
    return folder


#: A tokenizer that makes special tokens of their strings whatever it is told, with a file beside it that it imports.
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

from .own_setting import SPLIT


class OwnTokenizer(PreTrainedTokenizerFast):
    def __call__(self, *texts, **more):
        return super().__call__(*texts, **{**more, "split_special_tokens": SPLIT})
"""


def write_own_tokenizer(folder: Path) -> None:
    """Have the tokenizer in ``folder`` need code, which is written beside it."""
    file = folder / "tokenizer_config.json"
    names = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    (folder / "own_tokens.py").write_text(TOKENIZER)
    (folder / "own_setting.py").write_text("SPLIT = False\n")
