"""What judging models takes, for a plan: perplexities, tasks, generation and its speed, exports, and looks in training.

How many items a task has, and how many tokens an answer, was counted once, without examples before the item; of a task
that is not in the table nothing is planned, which is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.commands.plan_time import Forwards, Part, Shape
from pipeline.config import Config
from pipeline.evaluation.tasks import sums
from pipeline.evaluation.tasks.definitions import Asked
from pipeline.stages.during import asked_during
from pipeline.stages.exam import asked_of_exports
from pipeline.stages.judging import asked_tasks


class TaskSize(NamedTuple):
    """A task's items, the answers that each is asked for, tokens of an item with one answer (the mean, by SmolLM2's
    tokenizer), and tokens that the model writes for each."""

    items: int
    answers: int
    tokens: int
    written: int = 0


#: Those that presets name, counted in the sets that lm-eval 0.4.13 evaluates.
TASKS = {
    "boolq": TaskSize(3270, 2, 143),
    "piqa": TaskSize(1838, 2, 37),
    "hellaswag": TaskSize(10042, 4, 79),
    "winogrande": TaskSize(1267, 2, 22),
    "arc_easy": TaskSize(2376, 4, 32),
    "arc_challenge": TaskSize(1172, 4, 37),
    "openbookqa": TaskSize(500, 4, 15),
    sums.NAME: TaskSize(sums.ITEMS * len(sums.KINDS), 1, 44, sums.TOKENS),
}


def evaluation_parts(config: Config, dense: Shape, pruned: Shape, processes: int) -> tuple[list[Part], list[str]]:
    """The parts of stage evaluate, and lines on what is in none of them."""
    models, asked, batch = (dense, pruned, pruned), asked_tasks(config), config.evaluate.tasks.batch
    texts, missing = _texts(config)
    words = ", ".join(f"{name} {rows:,} x {length:,}" for name, (rows, length) in texts.items())
    read = tuple(_read(config, shape, *text) for text in texts.values() for shape in models)
    parts = [Part("evaluate", f"perplexity of 3 models: {words}", forwards=read, processes=processes)] if texts else []
    if answered := tuple(one for shape in models for one in _answered(asked, batch, shape)):
        parts.append(Part("evaluate", f"3 models: {_items_words(asked)}", forwards=answered, processes=processes))
    unknown = [task for task in asked.tasks if task not in TASKS]
    missing += [f"evaluate.tasks: {task}, whose items are not known here" for task in unknown]
    parts += [_samples(config, models), *_speeds(config, models)]
    return parts, [f"{line}: not in the time of stage evaluate" for line in missing]


def export_parts(config: Config, pruned: Shape, exports: int, processes: int) -> list[Part]:
    """What ``regrow evaluate --export all`` takes beside the run for so many exports."""
    if config.train.export_every is None:
        return []
    texts = [*_texts(config)[0].values(), (config.train.evaluate_rows, config.data.row_length)]
    asked = asked_of_exports(config)
    forwards = [_read(config, pruned, *text) for text in texts]
    forwards += _answered(asked, config.evaluate.tasks.batch, pruned)
    what = f"regrow evaluate --export all: {exports} exports, each asked for {len(texts)} perplexities"
    words = f"{what}; {_items_words(asked)}" if asked.tasks else what
    return [Part("evaluate", words, forwards=tuple(forwards * exports), processes=processes, beside=True)]


def training_parts(config: Config, pruned: Shape, processes: int) -> list[Part]:
    """What training asks between its steps: held-out rows, and the tasks of evaluate.during."""
    train, during, length = config.train, config.evaluate.during, config.data.row_length
    parts = []
    if config.data.held_out is not None:
        times, tokens = _times(config.steps, train.evaluate_every), train.evaluate_rows * length
        what = f"held-out loss {times} times: {train.evaluate_rows} x {length:,}"
        parts.append(Part("train", what, times * tokens * pruned.forward(length), processes=processes))
    if during.every:
        times, asked = _times(config.steps, during.every), asked_during(config)
        forwards = _answered(asked, config.evaluate.tasks.batch, pruned)
        what = f"tasks {times} times: {_items_words(asked)}"
        parts.append(Part("train", what, forwards=tuple(forwards * times), processes=processes))
    return parts


def _times(steps: int, every: int) -> int:
    """Multiples of ``every`` from step 0 on, and the last step."""
    return 1 + -(-steps // every)


def _texts(config: Config) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Rows and their length of each text that says so, and a line on each that is taken whole."""
    asked, length = config.evaluate.perplexity, config.data.row_length
    texts = {"held_out": asked.held_out, **asked.texts}
    stated = {name: (text.rows, text.length or length) for name, text in texts.items()}
    whole = [f"evaluate.perplexity.{name}.rows null" for name, (rows, _) in stated.items() if rows is None]
    return {name: (rows, length) for name, (rows, length) in stated.items() if rows is not None}, whole


def _read(config: Config, shape: Shape, rows: int, length: int) -> Forwards:
    """The forwards of a perplexity."""
    at_once = min(rows, config.evaluate.micro_batch)
    return Forwards(shape, -(-rows // at_once), at_once * length, length)


def _items(asked: Asked) -> dict[str, int]:
    """Items of each task that is known."""
    return {task: min(asked.limit or TASKS[task].items, TASKS[task].items) for task in asked.tasks if task in TASKS}


def _items_words(asked: Asked) -> str:
    return ", ".join(f"{count:,} items of {task}" for task, count in _items(asked).items())


def _answered(asked: Asked, batch: int, shape: Shape) -> list[Forwards]:
    """The forwards of every task's items: those that read, and those that write a token for each item of a batch."""
    forwards = []
    for task, items in _items(asked).items():
        size = TASKS[task]
        shown = 1 if task == sums.NAME else 1 + (asked.shots or 0)
        forwards.append(Forwards(shape, -(-items * size.answers // batch), batch * size.tokens * shown))
        forwards.append(Forwards(shape, -(-items // batch) * size.written, batch))
    return forwards


def _samples(config: Config, models: Sequence[Shape]) -> Part:
    """The first process has each model continue every prompt, while the others wait."""
    asked = config.evaluate.generation
    steps = len(asked.prompts) * asked.new_tokens
    what = f"samples of 3 models: {len(asked.prompts)} x {asked.new_tokens} tokens"
    return Part("evaluate", what, forwards=tuple(Forwards(shape, steps) for shape in models))


def _speeds(config: Config, models: Sequence[Shape]) -> list[Part]:
    """Speed of generation, and the cost of running in all its sizes; the first process's alone.

    Models that do not fit side by side are loaded in rounds and warm up in each: these few runs are left out.
    """
    asked, cost = config.evaluate.generation, config.evaluate.cost
    runs, sizes = 1 + asked.repeats, len(cost.batches) * len(cost.new_tokens)
    speed = tuple(Forwards(shape, runs * asked.new_tokens, asked.batch) for shape in models)
    parts = [Part("evaluate", f"speed of 3 models: {runs} x {asked.new_tokens} tokens", forwards=speed)]
    runs = cost.warm_up + cost.repeats
    forwards = tuple(
        Forwards(shape, runs * new, batch, cost.prompt_tokens + new)
        for shape in models
        for new in cost.new_tokens
        for batch in cost.batches
    )
    if sizes:
        parts.append(Part("evaluate", f"cost of running 3 models: {sizes} sizes, {runs} runs each", forwards=forwards))
    return parts
