"""Cases of a student beside a teacher: the loop's steps, and those of plain torch with the whole logits of both."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.files import hash_file, hash_json
from pipeline.training.answers import AnswerStore
from pipeline.training.asking import Asking, ask
from pipeline.training.recalled import Recalled
from pipeline.training.teacher import Teacher, Teaching
from pipeline.world import World
from tests.training.kit import BATCH, LANES, LENGTH, STEPS, Case, documents, share, text
from tests.training.parity import parity
from tests.training.saving import resume

SHARE, TEMPERATURE, HIDDEN = 0.4, 1.7, 0.3
#: The teacher's blocks that the student's three are.
KEPT = (0, 2, 3)


def new_teacher(dtype: torch.dtype) -> Any:
    """The same Llama of four blocks every time, whose head has more rows than the student's."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def teaching(case: Case, **how: Any) -> Teaching:
    """What is learnt from it."""
    return Teaching(Teacher(new_teacher(case.dtype), case.world, **how), SHARE, TEMPERATURE, HIDDEN, KEPT)


def plainly(model: Any, rows: torch.Tensor, teacher: Any) -> torch.Tensor:
    """Losses of some rows' targets, (targets,), by whole logits."""
    own = model(rows, output_hidden_states=True)
    with torch.no_grad():
        known = teacher(rows, output_hidden_states=True)
    logits, taught = (one.logits[:, :-1].flatten(0, 1).float() for one in (own, known))
    loss = F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="none")
    said = (logits / TEMPERATURE).log_softmax(dim=-1)
    meant = (taught[:, :256] / TEMPERATURE).softmax(dim=-1)
    divergence = F.kl_div(said, meant, reduction="none").sum(dim=-1)
    apart = []
    for place, block in enumerate(KEPT):
        first, second = own.hidden_states[place + 1], known.hidden_states[block + 1]
        unit = [one[:, :-1].flatten(0, 1).float() for one in (first, second)]
        unit = [one / one.square().mean(dim=1, keepdim=True).sqrt() for one in unit]
        apart.append((unit[0] - unit[1]).square().mean(dim=1))
    return (1 - SHARE) * loss + SHARE * TEMPERATURE**2 * divergence + HIDDEN * torch.stack(apart).mean(dim=0)


def compared(case: Case, made: Any = None, **options: Any) -> dict[str, Any]:
    """Parity with the plain loop; with the objective in the place of the token loss."""
    teacher = new_teacher(case.dtype).float()

    def whole(model: Any, rows: torch.Tensor, first: int) -> torch.Tensor:
        return plainly(model, rows, teacher).mean()

    def alone(model: Any, rows: torch.Tensor, first: int) -> torch.Tensor:
        pieces = [
            row[None, begin:end]
            for index, row in enumerate(rows, start=first)
            for begin, end in pairwise(documents(index).tolist())
            if end - begin > 1
        ]
        return torch.cat([plainly(model, piece, teacher) for piece in pieces]).mean()

    found = parity(
        case, alone if options else whole, made={"teaching": lambda: teaching(case), **(made or {})}, **options
    )
    for step in found.get("steps", ()):
        parts = (1 - SHARE) * step["loss"] + SHARE * TEMPERATURE**2 * step["divergence"]
        step["loss"] = parts + HIDDEN * step["disagreement"]
    return found


def taught(case: Case) -> dict[str, Any]:
    """Parity, the teacher whole on each process."""
    return compared(case)


def taught_split(case: Case) -> dict[str, Any]:
    """Parity, the teacher's weights split over the processes."""
    return compared(case, {"teaching": lambda: teaching(case, sharded=True)})


def taught_within(case: Case) -> dict[str, Any]:
    """Parity, every document of a row alone for both models."""
    return compared(case, within_documents=True)


def taught_compiled(case: Case) -> dict[str, Any]:
    """Parity of compiled blocks that recompute selectively."""
    torch._dynamo.reset()
    return compared(case, {"compile_blocks": True, "gradient_checkpointing": "selective"})


def resume_taught(case: Case) -> dict[str, Any]:
    """Killed and resumed beside a teacher."""
    return resume(case, teaching=lambda: teaching(case))


def recalled(case: Case) -> dict[str, Any]:
    """Parity with answers that both processes have asked for ahead, under ZeRO 3 of a teacher that is split over them;
    the divergence of the first step, dense; and a hash of the answers."""
    folder, data = case.folder / f"answers-{case.zero_stage}", text(BATCH * STEPS)
    store = AnswerStore(folder, lanes=LANES, row_length=LENGTH, samples=40, vocabulary=256)
    teacher = Teacher(new_teacher(case.dtype), case.world, sharded=case.zero_stage == 3)
    asking = Asking(TEMPERATURE, 3, within_documents=False)
    ask(teacher, share(data, case.world), store, asking, torch.device("cpu"))
    case.world.barrier()
    teacher.close()
    model = new_teacher(case.dtype)
    rows = list(share(data, World()))
    dense = []

    def whole(student: Any, some: torch.Tensor, first: int) -> torch.Tensor:
        logits = student(some).logits[:, :-1].flatten(0, 1).float()
        said = (logits / TEMPERATURE).log_softmax(dim=-1)
        told = store.told(rows[first : first + len(some)])
        meant = torch.zeros(len(told.ids), 256).scatter_add_(1, told.ids.long(), told.counts / 40)
        kept = [tensor.view(len(some), LENGTH, -1)[:, :-1].flatten(0, 1) for tensor in (meant, told.entropies.float())]
        divergence = -(kept[0] * said).sum(dim=1) - kept[1].squeeze(1)
        with torch.no_grad():
            known = model(some).logits[:, :-1, :256].flatten(0, 1).float() / TEMPERATURE
            dense.append(float(F.kl_div(said, known.softmax(dim=-1), reduction="batchmean")))
        loss = F.cross_entropy(logits, some[:, 1:].flatten(), reduction="none")
        return ((1 - SHARE) * loss + SHARE * TEMPERATURE**2 * divergence).mean()

    found = parity(case, whole, made={"teaching": lambda: Recalled(store, SHARE, TEMPERATURE)})
    for step in found.get("steps", ()):
        step["loss"] = (1 - SHARE) * step["loss"] + SHARE * TEMPERATURE**2 * step["divergence"]
    return {**found, "dense": dense[0], "answers": hash_json(contents_of(store))} if found else {}


def contents_of(store: AnswerStore) -> dict[str, str]:
    """sha256 of every file of a store."""
    files = sorted(store.folder.rglob("*.safetensors"))
    return {str(path.relative_to(store.folder)): hash_file(path) for path in files}
