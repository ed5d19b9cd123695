"""Rates as the config has them, and where those of two configs part."""

from __future__ import annotations

import pytest

from pipeline.config import Config, load_config
from pipeline.stages.rates import first_other_rate, rate_at, rising_steps


@pytest.fixture
def at(tiny_config):
    """``at(steps, *keys)``: the tiny config with so many steps."""

    def made(steps: int, *keys: str) -> Config:
        config = load_config(tiny_config, [f"train.tokens={512 * steps}", *keys])
        assert config.steps == steps
        return config

    return made


def test_the_rate_is_the_configs(at):
    config = at(8, "train.schedule=constant", "train.warmup=0", "train.learning_rate=3e-4")
    assert rate_at(config, 0) == rate_at(config, 7) == pytest.approx(3e-4)


def test_a_warm_up_in_steps_goes_before_its_share(at):
    config = at(8, "train.warmup=0.5", "train.warmup_steps=2", "train.schedule=linear")
    found = [rate_at(config, step) for step in range(config.steps)]
    assert found.index(max(found)) == 1 and rising_steps(config) == 2
    assert found[-1] == pytest.approx(config.train.final_learning_rate)


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        ((8, "constant"), (16, "constant"), None),
        # 8 of 40 steps fall, of 80 the last 16; a constant rate has no end at all.
        ((40, "wsd"), (80, "wsd"), 32),
        ((30, "constant"), (40, "wsd"), None),
        ((33, "constant"), (40, "wsd"), 32),
        # Behind the one step of warm-up.
        ((40, "cosine"), (80, "cosine"), 1),
        ((40, "linear"), (41, "linear"), 1),
        ((40, "cosine"), (40, "cosine"), None),
    ],
)
def test_where_rates_part(at, before, after, first):
    then, now = (at(steps, f"train.schedule={schedule}", "train.warmup_steps=1") for steps, schedule in (before, after))
    assert first_other_rate(then, now) == first


def test_a_share_of_the_steps_is_another_warm_up_in_a_longer_run(at):
    then, now = at(100, "train.schedule=constant"), at(200, "train.schedule=constant")
    assert (rising_steps(then), rising_steps(now), first_other_rate(then, now)) == (1, 2, 0)
    assert first_other_rate(then, at(200, "train.schedule=constant", "train.warmup_steps=1")) is None


@pytest.mark.parametrize("peak", [1e-3, 3e-4, 1.1e-4, 7.3e-5])
@pytest.mark.parametrize("final", [0.0, 1e-5, 3e-5])
def test_a_rate_that_stays_is_the_peak_to_the_last_bit(at, peak, final):
    keys = (f"train.learning_rate={peak}", f"train.final_learning_rate={final}", "train.schedule=wsd")
    assert rate_at(at(40, *keys), 20) == peak
