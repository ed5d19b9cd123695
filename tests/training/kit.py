"""What the cases share: this process's place, a small model, an engine, rows, and the project's own loop.

Every row holds several documents; only the cases named within have the model told of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.launch import find_place, take_place
from pipeline.world import World

place = find_place()
take_place(place)

import numpy as np  # noqa: E402 (threads are settled before)
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from pipeline.data.stream.packing import Row  # noqa: E402
from pipeline.data.stream.position import Cursor, LaneCursor  # noqa: E402
from pipeline.training.engine import Engine  # noqa: E402
from pipeline.training.loop import Position, train_steps  # noqa: E402
from pipeline.training.optimisation import Optimisation  # noqa: E402
from pipeline.training.teacher import Teaching  # noqa: E402

BATCH, LENGTH, STEPS, PEAK, LANES = 8, 32, 3, 1e-3, 8
RECIPE = Optimisation(PEAK, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, no_decay=("bias", "norm"), clip=1.0)


def rate(step: int) -> float:
    """Another rate at every step, so that a rate that is not handed on shows."""
    return PEAK * (step + 1) / STEPS


def new_model(dtype: torch.dtype) -> Any:
    """The same small Llama every time; wide enough that ZeRO-3 splits its MLPs and embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """Where something is measured: in these processes, at a ZeRO stage, in a dtype; files go to ``folder``."""

    world: World
    folder: Path
    zero_stage: int
    dtype: torch.dtype


def new_engine(
    case: Case,
    micro_batch: int,
    batch: int = BATCH,
    model: Any = None,
    gradient_checkpointing: str = "none",
    compile_blocks: bool = False,
    teaching: Callable[[], Teaching] | None = None,
    **changes: Any,
) -> Engine:
    """An engine around the small Llama, or ``model``, that learns from what ``teaching`` makes; ``changes`` to the
    recipe."""
    engine = Engine(
        model or new_model(case.dtype),
        case.world,
        replace(RECIPE, **changes),
        micro_batch=micro_batch,
        accumulation=batch // (micro_batch * case.world.size),
        zero_stage=case.zero_stage,
        gradient_checkpointing=gradient_checkpointing,
        compile_blocks=compile_blocks,
    )
    if teaching is not None:
        engine.learn_from(teaching())
    return engine


def text(rows: int) -> torch.Tensor:
    """(rows, LENGTH) int64, seeded."""
    return torch.randint(0, 256, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def documents(index: int) -> np.ndarray:
    """Where documents begin in row ``index``: 1, 2, 3 or 5 documents, seeded; the first of 5 is one token long."""
    cuts = np.random.default_rng(index).choice(np.arange(2, LENGTH), size=index % 4, replace=False)
    return np.array([0, *([1] if index % 4 == 3 else []), *sorted(cuts), LENGTH], dtype=np.int32)


def share(data: torch.Tensor, world: World, first: int = 0) -> Iterator[Row]:
    """This rank's rows, as the loader would hand them over."""
    for index in range(first + world.rank, len(data), world.size):
        cursor = LaneCursor((Cursor(document=index + 1),))
        yield Row(index, data[index].numpy(), index % LANES, cursor, documents(index))


def train(
    engine: Engine, data: torch.Tensor, steps: int, position: Position | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Run the project's own loop; one record for each step."""
    position = position or Position()
    rows = share(data, engine.world, position.step * len(data) // STEPS if position.step else 0)
    return [asdict(step) for step in train_steps(engine, rows, position, steps=steps, rate=rate, **options)]


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    """A copy of the engine's weights as they are now, on rank 0; nothing elsewhere."""
    return {name: value.clone() for name, value in (engine.weights() or {}).items()}


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest difference of any weight."""
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)
