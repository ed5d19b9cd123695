"""The learning rate of each step as the config has it, and the steps that have another one in another config."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.training.schedule import learning_rate, warm_up


def rising_steps(config: Config) -> int:
    """Steps of the warm-up."""
    return warm_up(config.steps, config.train.warmup, config.train.warmup_steps)


def rate_at(config: Config, step: int) -> float:
    """The learning rate of a step, from 0 on."""
    recipe = config.train
    return learning_rate(
        step,
        steps=config.steps,
        peak=recipe.learning_rate,
        final=recipe.final_learning_rate,
        rising=rising_steps(config),
        schedule=recipe.schedule,
        decay=recipe.decay,
    )


def first_other_rate(then: Config, now: Config) -> int | None:
    """The first step of all those of ``then``, from 0 on, whose rate is another in ``now``; None where none is. To the
    last bit: the same bytes come of the same rates alone."""
    differing = (step for step in range(then.steps) if rate_at(then, step) != rate_at(now, step))
    return next(differing, None)
