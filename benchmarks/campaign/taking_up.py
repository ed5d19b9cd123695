"""Processes that take the newest checkpoint of a run up, in the layout of its config, and write it again untrained.

    python benchmarks/campaign/taking_up.py CONFIG PROCESSES

They are forked as the command forks them, and do what stage train does, but for its steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from pipeline.agent import Agent


def without_steps() -> None:
    """Have a session save where it would train, in this process and in its forks."""
    from pipeline.training.loop import Step
    from pipeline.training.session import Session

    def save(session: Session, count: int, rate: Callable[[int], float], *_: object, **__: object) -> Iterator[Step]:
        session.checkpoint()
        return iter(())

    Session.steps = save


def main(config: str, processes: int) -> int:
    """Carry it out; the exit status."""
    agent = Agent(["pipeline.stages.train", "deepspeed"])
    without_steps()
    agent.warm()
    try:
        return agent.launch(["train", config], processes)
    finally:
        agent.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
