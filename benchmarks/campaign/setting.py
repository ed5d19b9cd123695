"""What all cases have in common: a small random model, made-up text, a run up to its pruned model, and what trainings
that nothing disturbs come to."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from random import Random
from shutil import copytree, rmtree

from campaign.cases import CHECKPOINT, EVALUATE, EXPORT, STEPS
from campaign.watching import Start, files, pace
from pipeline.files import read_json, write_json

ROOT = Path(__file__).parent.parent.parent
#: Documents to train on and to judge by; words that texts are made of; tokens of the tokenizer.
DOCUMENTS, HELD_OUT, WORDS, TOKENS = 600, 40, 400, 600
#: The name of the run in each folder.
NAME = "run"
CONFIG = f"""
run: {{name: {NAME}, folder: FOLDER/base}}
model: {{path: FOLDER/model}}
data:
  sources: [{{path: FOLDER/text/train}}]
  held_out: {{path: FOLDER/text/held_out}}
  row_length: 64
  lanes: 12
  workers: 0
score: {{sequences: 2, length: 32, processes: 1}}
prune: {{remove: 1, protect_first: 1, protect_last: 1, compare: {{enabled: false}}, processes: 1}}
train:
  tokens: {STEPS * 8 * 64}
  global_batch: 8
  micro_batch: 2
  learning_rate: 1e-3
  final_learning_rate: 1e-4
  processes: 2
  evaluate_rows: 12
  checkpoint_every: {CHECKPOINT}
  evaluate_every: {EVALUATE}
  export_every: {EXPORT}
  log_samples: true
"""


class Setting:
    """The setting in a folder, made where it is not there; code that has changed since gets one of its own."""

    def __init__(self, folder: Path):
        self.code = code()
        self.folder = folder.absolute() / f"setting-{self.code}"
        if not (self.folder / "base" / NAME / "prune" / "stage.json").exists():
            rmtree(self.folder, ignore_errors=True)
            self._make()

    def begin(self, folder: Path) -> Path:
        """A run in ``folder`` that is done up to its pruned model; the run's folder."""
        rmtree(folder, ignore_errors=True)
        return Path(copytree(self.folder / "base" / NAME, folder / NAME))

    def train(self, folder: Path, *words: str) -> list[str]:
        """The command that trains the run in ``folder``."""
        return self._command("train", f"run.folder={folder}", *words)

    def reference(self, zero_stage: int) -> tuple[Path, dict[str, float]]:
        """A training under this stage that nothing disturbs: its run's folder, and the seconds of each phase."""
        folder = self.folder / f"zero-{zero_stage}"
        if not (folder / "pace.json").exists():
            self.begin(folder)
            start = Start(self.train(folder, f"train.zero_stage={zero_stage}", "data.workers=1"), folder / NAME)
            start.follow()
            require_good(start)
            write_json(folder / "pace.json", {**pace(start.seen), **file_counts(folder / NAME)})
        return folder / NAME, read_json(folder / "pace.json")

    def _command(self, stage: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipeline", stage, str(self.folder / "config.yaml"), *words]

    def _make(self) -> None:
        texts = made_up_texts()
        for name, part in {"train": texts[HELD_OUT:], "held_out": texts[:HELD_OUT]}.items():
            (self.folder / "text" / name).mkdir(parents=True)
            lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
            (self.folder / "text" / name / "texts.jsonl").write_text(lines)
        write_model(self.folder / "model", texts)
        (self.folder / "config.yaml").write_text(CONFIG.replace("FOLDER", str(self.folder)))
        start = Start(self._command("run", "--until", "prune"), self.folder / "base" / NAME)
        start.follow()
        require_good(start)


def require_good(start: Start) -> None:
    """Wait for a command's end, and end this process where it is not a good one."""
    start.end()
    if start.status != 0:
        sys.exit(f"a run that nothing disturbs ended with {start.status}:\n{start.text()}")


def file_counts(run: Path) -> dict[str, int]:
    """How many files a save and an export of a training have."""
    folders = {"save": run / "train" / "checkpoints", "export": run / "train" / "exports"}
    return {f"{name} files": files(max(folder.glob("step-*"))) or 0 for name, folder in folders.items()}


def code() -> str:
    """Eight hex digits that stand for the package as it is."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def made_up_texts() -> list[str]:
    """Documents of 20 to 60 words that are as frequent as words are; always the same."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 8))) for _ in range(WORDS)]
    weights = [1 / (rank + 2) for rank in range(WORDS)]
    return [" ".join(random.choices(words, weights, k=random.randint(20, 60))) for _ in range(DOCUMENTS + HELD_OUT)]


def write_model(folder: Path, texts: list[str]) -> None:
    """A random model of 4 small blocks and a tokenizer made from the texts, as a Hugging Face folder."""
    import torch
    from shapes import random_model, vicuna
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    from pipeline.launch import name_accelerator

    name_accelerator()
    disable_progress_bar()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": alphabet, "show_progress": False}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=TOKENS, **special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    config = vicuna(blocks=4, width=128)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, None
    torch.manual_seed(0)
    random_model(config, torch.device("cpu"), torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
