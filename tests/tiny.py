"""A whole pipeline in seconds: a small tokenizer of real text, a small Llama with it, and configs of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.families import build

#: The shape of a Llama of 8 small blocks for the tokenizer of 1,000 tokens.
SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


def train_tokenizer(texts: Sequence[str], size: int) -> Any:
    """A byte-level BPE of ``size`` tokens, <s> and </s> among them, as a fast tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def write_tiny_model(folder: Path, texts: Sequence[str]) -> None:
    """That Llama in bf16 and its tokenizer, as a Hugging Face folder."""
    import torch

    train_tokenizer(texts, SHAPE["vocab_size"]).save_pretrained(folder)
    build("llama", spread=0.05, pad_token_id=None, **SHAPE).to(torch.bfloat16).save_pretrained(folder)


def tiny_yaml(tiny_model: Path, demo: Path, runs: Path) -> str:
    """The tiny config's text."""
    return f"""
run: {{name: tiny, folder: {runs}}}
model: {{path: {tiny_model}}}
data:
  sources: [{{path: {demo}/text/train}}]
  held_out: {{path: {demo}/text/validation}}
  row_length: 64
  lanes: 12
  workers: 0
score: {{sequences: 4, length: 32, processes: 2}}
prune: {{remove: 2, protect_first: 2, protect_last: 1, compare: {{enabled: false}}}}
train:
  tokens: 4096            # 8 steps of 8 rows
  global_batch: 8
  learning_rate: 1e-3
  final_learning_rate: 1e-4
  processes: 2
  checkpoint_every: 3
  evaluate_every: 4
  evaluate_rows: 4
evaluate:
  perplexity: {{held_out: {{rows: 8}}}}
  generation: {{prompts: [The city], new_tokens: 4, repeats: 1}}
  processes: 2
"""


#: More work, so that a run lasts long enough to be met at a place that was chosen. 24 steps. Training waits for its
#: checkpoints: where it is killed a step later, they are complete.
LONGER = """extends: tiny.yaml
score: {sequences: 24}
train: {tokens: 12288, checkpoint_every: 10, evaluate_every: 8, save: blocking}
"""


#: Eight steps of rows that hold several documents, each alone; every row's hash and all checkpoints are kept.
LOGGED = """extends: longer.yaml
data: {attention: within, row_length: 256}
train: {tokens: 16384, checkpoint_every: 3, evaluate_every: 4, keep_checkpoints: 9, log_samples: true}
"""


#: Half of the blocks in two links, each of eight steps.
CHAINED = """extends: tiny.yaml
score: {sequences: 12}
prune: {remove: 4}
chain: {parts: 2}
train: {tokens: 8192, checkpoint_every: 3, log_samples: true}
"""
