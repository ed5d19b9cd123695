"""Run by test_block_major.py: sweeps by block that are killed at every instant, measured, and held to a limit, as JSON.

torch is imported once and the processes are forked from here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import torch

from pipeline.importance.block_major import sweep_by_block
from pipeline.importance.distances import StateDistances
from pipeline.importance.footprint import SweepShape
from pipeline.importance.sweep import removal_losses
from pipeline.model.load import load_model
from pipeline.model.streaming import StreamedModel
from tests.families import BLOCKS, VOCABULARY, build

#: Blocks of the model that is killed many times.
FEW = 3


def some_ids(rows, length):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def quiet(line):
    pass


def in_child(work, limit=None):
    """(exit status, what ``work`` returned) of a forked process."""
    with tempfile.NamedTemporaryFile("r") as answer:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)  # makes torch's pool anew, before threads of this process ask for it at once
                if limit is not None:
                    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
                Path(answer.name).write_text(json.dumps(work()))
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr)
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        text = answer.read()
    return status, json.loads(text) if text else None


#: Called with the name of each file operation that the sweep is about to do.
WATCHER = None
OPERATIONS = {"open", "os.rename", "os.truncate", "os.remove"}


def audit(event, arguments):
    changes = event in OPERATIONS and (event != "open" or "w" in (arguments[1] or ""))
    if WATCHER is not None and changes and "/states" in str(arguments[0]):
        WATCHER(event)


def swept(streamed, ids, folder, losses=True, distances=True):
    blocks = len(streamed.blocks)
    streamed.loads = [0] * blocks
    watch = StateDistances(blocks) if distances else None
    found = sweep_by_block(streamed, ids, folder=folder, micro_batch=2, losses=losses, distances=watch, say=quiet)
    return {"losses": losses and found.tolist(), "distances": watch and watch.to_json(), "loads": streamed.loads}


def kills(model, place):
    """Killed before each file operation in turn, and started again."""
    global WATCHER
    ids = some_ids(4, 8)
    expected = swept(model, ids, place / "unbroken")
    del expected["loads"]
    tried = []
    while True:
        instant, folder = len(tried) + 1, place / f"{len(tried)}" / "states"

        def until_killed(instant=instant, folder=folder):
            global WATCHER
            seen = iter(range(instant - 1, -1, -1))
            WATCHER = lambda event: next(seen) or os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            return swept(model, ids, folder)

        status, _ = in_child(until_killed)
        if status == 0:
            return tried
        newest = [_newest(folder, number, len(model.blocks)) for number in range(2)]
        again, found = in_child(lambda folder=folder: swept(model, ids, folder))
        tried.append(
            {
                "instant": instant,
                "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                "first": min(newest),
                "loads": found and found.pop("loads"),
                "same": again == 0 and found == expected,
            }
        )


def _newest(folder, number, blocks):
    if (folder / f"{number:06d}.json").exists():
        return blocks
    return max((int(path.stem[-4:]) for path in folder.glob(f"{number:06d}-*.states")), default=0)


def peaks(model, place):
    """The most bytes of states that stood in the folder, against ``SweepShape``."""
    global WATCHER
    found = []
    for losses, distances in ((True, True), (True, False), (False, True)):
        folder, sizes = place / f"{losses}{distances}" / "states", [0]

        def look(event, folder=folder, sizes=sizes):
            every = [*folder.glob("*.states"), *folder.glob("0*.new")]
            sizes.append(sum(path.stat().st_size for path in every))

        WATCHER = look
        swept(model, some_ids(4, 8), folder, losses, distances)
        WATCHER = None
        asked = {"losses": losses, "distances": distances}
        shape = SweepShape(
            blocks=len(model.blocks), sequences=4, length=8, width=32, value_bytes=4, micro_batch=2, **asked
        )
        found.append({**asked, "peak": max(sizes), "foretold": shape.states()})
    return found


def small(blocks, place):
    build("llama", num_hidden_layers=blocks).save_pretrained(place / f"small-{blocks}")
    return StreamedModel(place / f"small-{blocks}", dtype="float32")


def wide_llama(blocks, folder):
    """A Llama with blocks of 16 MB in fp32, 8 MB in its files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=832,
        num_hidden_layers=blocks,
        num_attention_heads=12,
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(
                torch.linspace(-0.02, 0.02, 9973)
                .repeat(parameter.numel() // 9973 + 1)[number:][: parameter.numel()]
                .view(parameter.shape)
                if parameter.ndim > 1
                else torch.ones(())
            )
    model.save_pretrained(folder, max_shard_size="64MB")


def resident_peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def wide(blocks, way, model, place):
    ids = some_ids(2, 8)
    if way == "whole":
        removal_losses(load_model(model, dtype="float32"), ids[:1])
    else:
        streamed = StreamedModel(model, dtype="float32")
        with tempfile.TemporaryDirectory(dir=place) as states:
            sweep_by_block(
                streamed, ids, folder=Path(states), micro_batch=1, distances=StateDistances(blocks), say=quiet
            )
    return resident_peak()


def main():
    sys.addaudithook(audit)
    torch.set_num_threads(1)
    found = {"memory": {}, "limited": {}}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        found["kills"] = kills(small(FEW, place), place)
        found["peaks"] = peaks(small(BLOCKS, place), place)
        for blocks in (6, 24):
            in_child(lambda blocks=blocks: wide_llama(blocks, place / f"{blocks}"))
            found["memory"][str(blocks)] = {
                way: in_child(lambda blocks=blocks, way=way: wide(blocks, way, place / f"{blocks}", place))[1]
                for way in ("by block", "whole")
            }
        found["block"] = StreamedModel(place / "6", dtype="float32").block_bytes[0]
        # Room for 12 blocks beside what this process has already.
        limit = resource_now() + 12 * found["block"]
        for way in ("whole", "by block"):
            found["limited"][way] = in_child(lambda way=way: wide(24, way, place / "24", place), limit)[0]
    print(json.dumps(found))


def resource_now():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))


if __name__ == "__main__":
    main()
