"""Which tasks the models are asked, in the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.keys import Folder, Section, Whole, key


class TasksSection(Section):
    names: tuple[str, ...] = key(
        (),
        "Tasks by lm-eval's names; shortened-llm stands for that work's seven, sums for arithmetic that is made here.",
        stages="evaluate",
    )
    limit: Whole | None = key(None, "Items of each task, from its first; null takes all.", stages="evaluate", ge=1)
    shots: Whole | None = key(
        None,
        "Examples before each item; null takes as many as the task's definition says. Sums show four of their own.",
        stages="evaluate",
        ge=0,
    )
    batch: Whole = key(16, "Answers in one forward; another number rounds otherwise.", stages="evaluate", ge=1)
    data: Folder | None = key(
        None,
        "Folder with TASK.jsonl (.jsonl.gz, .json, .parquet), and TASK.train.jsonl for shots; null takes the hub's.",
        stages="evaluate",
    )


class DuringSection(Section):
    every: Whole | None = key(
        None,
        "Steps of training from one time that tasks are asked to the next; null asks none.",
        stages="train",
        free=True,
        ge=1,
    )
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = key(
        None,
        "Tasks that are asked then, and of exports, by the names of evaluate.tasks.names; null takes sums.",
        stages="train",
        free=True,
    )
    limit: Whole | None = key(
        100, "Items of each then, from its first; null takes all.", stages="train", free=True, ge=1
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that are asked between steps."""
        return self.tasks or ("sums",)
