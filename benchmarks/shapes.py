"""The shapes that are measured without anybody's weights: Vicuna-7B's architecture, at other depths and widths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.data.stream.packing import Row
from pipeline.data.stream.position import LaneCursor

ARCHITECTURE = Path(__file__).parent.parent / "configs" / "vicuna-7b" / "architecture"


def vicuna(blocks: int = 32, width: int = 4096) -> Any:
    """Vicuna-7B's config with other ``blocks`` and, in its proportions, another hidden size ``width``."""
    config = AutoConfig.from_pretrained(ARCHITECTURE)
    config.num_hidden_layers = blocks
    config.intermediate_size = config.intermediate_size * width // config.hidden_size
    config.num_attention_heads = config.num_key_value_heads = max(1, config.num_attention_heads * width // 4096)
    config.head_dim = width // config.num_attention_heads
    config.hidden_size = width
    return config


def random_model(config: Any, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A model of that config, its random weights made on ``device``."""
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def random_rows(vocabulary: int, row_length: int, rank: int) -> Iterator[Row]:
    """Rows of random tokens, without end."""
    generator = torch.Generator().manual_seed(rank)
    while True:
        ids = torch.randint(vocabulary, (row_length,), generator=generator).numpy()
        yield Row(0, ids, rank, LaneCursor())
