"""Cases of the campaign, drawn from a seed: when a run is killed, which of its processes, by which signal.

A number and a seed give one case, whatever was drawn before: a campaign can be broken off and gone on with.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from random import Random

#: The trained steps, and every how many of them each thing is done; no two fall together before the last step.
STEPS, CHECKPOINT, EVALUATE, EXPORT = 11, 3, 4, 5
#: What a run does, in the order in which it does it at one step, with the steps at which a kill can meet it.
PHASES: dict[str, tuple[int, ...]] = {
    "start": (0,),
    "opening": (0,),
    "step": tuple(range(1, STEPS)),
    "evaluation": (4, 8, STEPS),
    "export": (5, 10, STEPS + 1),
    "save": (3, 6, 9, STEPS),
    "writing": (3, 6, 9, STEPS),
    "closing": (STEPS + 1,),
}
RECEIVERS = ("command", "agent", "rank 0", "rank 1", "reader", "all")
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
#: Shares of the cases: that are killed by SIGKILL, that are killed once more on the way to their end, that have
#: readers though none is killed.
KILLED, TWICE, READERS = 0.5, 0.3, 0.3
ZERO_STAGES = (1, 2, 3)


@dataclass(frozen=True)
class Kill:
    """A signal to ``receiver`` in a ``phase`` of ``step``, ``part`` (from 0 to 1) of the way through it.

    The step behind the last one is what is done when training has ended.
    """

    phase: str
    step: int
    part: float
    receiver: str
    signal: str

    @property
    def place(self) -> tuple[int, int]:
        """Where in a run it is: places compare as the run comes to them."""
        return self.step, list(PHASES).index(self.phase)


@dataclass(frozen=True)
class Case:
    """One run under a ZeRO stage, with so many reader processes for each rank, and its kills in turn."""

    number: int
    seed: int
    zero_stage: int
    workers: int
    kills: tuple[Kill, ...]


def draw_case(seed: int, number: int) -> Case:
    """The case of this number. Each phase has its turn under each stage, in orders that change; the rest is chance."""
    order = list(product(PHASES, ZERO_STAGES))
    Random(f"{seed} order {number // len(order)}").shuffle(order)
    first, zero_stage = order[number % len(order)]
    random = Random(f"{seed} case {number}")
    kills = [draw_kill(random, first)]
    # When all is done there is nothing more to kill.
    if random.random() < TWICE and first != "closing":
        # Behind the first one, or before training goes on: there a resumed run comes by for certain.
        later = [phase for phase, steps in PHASES.items() if max(steps) > kills[0].step or max(steps) == 0]
        kills.append(draw_kill(random, random.choice(later), behind=kills[0].step))
    readers = any(kill.receiver == "reader" for kill in kills) or random.random() < READERS
    return Case(number, seed, zero_stage, int(readers), tuple(kills))


def draw_kill(random: Random, phase: str, behind: int = -1) -> Kill:
    """A kill in a phase, at a step behind another where the phase has steps at all."""
    steps = [step for step in PHASES[phase] if step > behind] or [0]
    step = random.choice(steps)
    # Readers are there from the first step to the last.
    receiver = random.choice([name for name in RECEIVERS if name != "reader" or 0 < step <= STEPS])
    signal = "SIGKILL" if random.random() < KILLED else random.choice(SIGNALS)
    return Kill(phase, step, random.random(), receiver, signal)
