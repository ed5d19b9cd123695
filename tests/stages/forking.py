"""The program of test_longer: commands one after the other, each in a fork of a process that has imported all.

    python -m tests.stages.forking < COMMANDS

COMMANDS is a JSON list of [place to die at, argument, ...]. A command is one process, as under an outside launcher; the
place is null, ``unfinish`` (when the record of a stage has just gone) or a training step. Prints their exit statuses.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from pipeline.agent import import_all

MODULES = ("pipeline.stages.train", "pipeline.stages.preflight", "deepspeed", "transformers.models.llama")


def die_at(place: str | int | None) -> None:
    """Have this process end without a word there."""
    from pipeline.run import Run
    from pipeline.training import session

    unfinish, line = Run.unfinish, session.step_record
    if place == "unfinish":
        Run.unfinish = lambda run, stage: (unfinish(run, stage), os._exit(9))
    elif place is not None:
        session.step_record = lambda step, *more: os._exit(9) if step.step == place else line(step, *more)


def main() -> None:
    import_all(MODULES)
    statuses = []
    for place, *arguments in json.load(sys.stdin):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        child = os.fork()
        if not child:
            launched = {
                "RANK": 0,
                "WORLD_SIZE": 1,
                "LOCAL_RANK": 0,
                "LOCAL_WORLD_SIZE": 2,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            os.environ.update({name: str(value) for name, value in launched.items()})
            sys.argv = ["regrow", *arguments]
            # What a command says is not what this program prints.
            os.dup2(2, 1)
            from pipeline.cli import main as command

            die_at(place)
            os._exit(command() or 0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
