"""Chains: one training that goes on with other numbers of processes and under other ZeRO stages, drawn from a seed.

Each link but the last is ended somewhere, by SIGKILL or by a signal that asks it to stop. Before the next one trains,
as many processes as it has take the newest checkpoint up and write it again: the two must hold the same, bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from shutil import copytree, ignore_patterns, rmtree
from typing import Any

from commands import carry_out

from campaign.cases import STEPS, Kill
from campaign.checks import columns, damage, newest
from campaign.setting import NAME, ROOT, Setting
from campaign.states import differing_state
from campaign.watching import LIMIT, Start, left_running
from pipeline.config import dump_config, load_config
from pipeline.files import read_json, write_atomic
from pipeline.training.metrics import read_lines

PROCESSES, ZERO_STAGES, LINKS = (1, 2, 4), (0, 1, 2, 3), (3, 4)
#: Receiver and signal of a link's end.
WAYS = (("all", "SIGKILL"), ("command", "SIGKILL"), ("rank 0", "SIGTERM"), ("command", "SIGTERM"))
#: Share of the links that are killed while they take the checkpoint up, and started again.
EARLY = 0.4
#: How far a step's loss may be from that of the undisturbed training, in nats.
LOSS = 1e-3


@dataclass(frozen=True)
class Link:
    """So many processes under a ZeRO stage, and the kills that they meet in turn; behind the ``last`` one's they go to
    the end."""

    processes: int
    zero_stage: int
    kills: tuple[Kill, ...]
    last: bool

    @property
    def words(self) -> list[str]:
        return [f"train.processes={self.processes}", f"train.zero_stage={self.zero_stage}", "data.workers=0"]


def draw_chain(seed: int, number: int) -> list[Link]:
    """The links of the chain of this number, each with another number of processes than the one before."""
    random = Random(f"{seed} chain {number}")
    count = random.choice(LINKS)
    # Each behind a checkpoint of its own: every third step has one.
    ends = [*sorted(random.sample([4, 7, 10], count - 1)), None]
    links: list[Link] = []
    for end in ends:
        processes = random.choice([other for other in PROCESSES if not links or other != links[-1].processes])
        kills = []
        if links and random.random() < EARLY:
            kills.append(Kill("opening", 0, random.random(), "all", "SIGKILL"))
        if end is not None:
            kills.append(Kill("step", end, random.random(), *random.choice(WAYS)))
        links.append(Link(processes, random.choice(ZERO_STAGES), tuple(kills), last=end is None))
    return links


def chain_outcome(seed: int, number: int, setting: Setting, folder: Path) -> dict[str, Any]:
    """Carry out a chain in ``folder``, which stays where something was wrong."""
    reference, pace = setting.reference(1)
    links, changes, wrong = draw_chain(seed, number), [], []
    run = setting.begin(folder)
    for place, link in enumerate(links):
        if place > 0:
            step = newest(run / "train")
            differing = taken_up(setting, run, link, folder / "again", step)
            wrong += [f"step {step} under ZeRO {link.zero_stage} in {link.processes}: {what}" for what in differing]
            changes.append(step)
        for kill in (*link.kills, None) if link.last else link.kills:
            start = Start(setting.train(folder, *link.words), run)
            done = kill is not None and start.follow(kill, pace)
            start.end()
            wrong += [f"left running: {process}" for process in left_running(run)]
            if not done and (kill is not None or start.status != 0):
                wrong.append(f"{link} ended with {start.status}, kill {kill}: {start.last_words()}")
            wrong += [*damage(run / "train"), *other_samples(run, reference, to_the_end=kill is None)]
    differences = loss_differences(run, reference)
    if len(differences) != STEPS:
        wrong.append(f"metrics.jsonl has {len(differences)} steps of {STEPS}")
    if max(differences, default=0) > LOSS:
        wrong.append(f"a loss is {max(differences):.1e} nats from the undisturbed one")
    if not wrong:
        rmtree(folder)
    largest = max(differences, default=None)
    return {"links": [asdict(link) for link in links], "changes": changes, "loss_difference": largest, "wrong": wrong}


def taken_up(setting: Setting, run: Path, link: Link, folder: Path, step: int) -> Iterator[str]:
    """What the processes of a link hold otherwise than the checkpoint of ``step``, once they have taken it up."""
    if step == 0:
        return
    rmtree(folder, ignore_errors=True)
    again = Path(copytree(run, folder / NAME, ignore=ignore_patterns("exports")))
    words = [f"run.folder={folder}", *link.words]
    write_atomic(again / "config.yaml", dump_config(load_config(setting.folder / "config.yaml", words)))
    script = Path(__file__).with_name("taking_up.py")
    command = [sys.executable, str(script), str(again / "config.yaml"), str(link.processes)]
    ended = carry_out(command, ROOT, LIMIT)
    if ended.status != 0:
        yield f"it could not be taken up, exit status {ended.status}: {' / '.join(ended.lines[-3:])}"
        return
    name = f"train/checkpoints/step-{step:08d}"
    layout = read_json(again / name / "state.json")["layout"]
    if (layout["processes"], layout["zero_stage"]) != (link.processes, link.zero_stage):
        yield "it was not written again"
    yield from differing_state(run / name, again / name)
    rmtree(folder)


def other_samples(run: Path, reference: Path, to_the_end: bool) -> Iterator[str]:
    """Whether the rows that were trained on are others than those of the undisturbed training, as far as they go."""
    ours, theirs = (read_lines(each / "train" / "samples.jsonl") for each in (run, reference))
    if ours != (theirs if to_the_end else theirs[: len(ours)]):
        yield "samples.jsonl has other rows, or another order"


def loss_differences(run: Path, reference: Path) -> list[float]:
    """By how much the loss of each step is another."""
    pairs = zip(columns(run / "train"), columns(reference / "train"), strict=False)
    return [abs(ours[2] - theirs[2]) for ours, theirs in pairs if ours[0] == theirs[0]]
