"""The learning rates of every schedule, against values computed by hand."""

from __future__ import annotations

import pytest

from pipeline.training.schedule import learning_rate, warm_up


def rates(steps: int, **arguments: object) -> list[float]:
    given = {"peak": 1.0, "final": 0.1, "schedule": "cosine", "decay": 0.2, **arguments}
    rising = warm_up(steps, given.pop("warmup", 0.0), given.pop("warmup_steps", None))
    return [learning_rate(step, steps=steps, rising=rising, **given) for step in range(steps)]


def test_cosine_with_warm_up():
    # Two updates rise to the peak. Four fall: 0.1 + 0.9 x (1 + cos(pi x k / 4)) / 2 for k = 1 to 4.
    expected = [0.5, 1.0, 0.8681980515, 0.55, 0.2318019485, 0.1]
    assert rates(6, warmup=0.3) == pytest.approx(expected, abs=1e-9), "ceil(0.3 x 6) = 2 updates rise, 4 fall"


def test_cosine_without_warm_up_falls_from_the_first_update():
    assert rates(2) == pytest.approx([0.55, 0.1]), "cos(pi / 2) at the first of two updates, cos(pi) at the last"


def test_wsd_stays_and_falls_linearly():
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]
    assert rates(10, warmup=0.2, schedule="wsd", decay=0.4) == pytest.approx(expected), (
        "2 updates rise, 4 stay, and the last 4 fall by 0.225 each"
    )


def test_wsd_whose_decay_would_reach_into_the_warm_up_falls_behind_it():
    assert rates(4, warmup=0.5, schedule="wsd", decay=1.0) == pytest.approx([0.5, 1.0, 0.55, 0.1])


def test_constant():
    assert rates(5, warmup=0.4, schedule="constant") == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])


def test_linear_falls_in_a_straight_line_behind_a_warm_up_that_is_stated_in_steps():
    expected = [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(6, warmup=0.9, warmup_steps=2, schedule="linear", final=0.0) == pytest.approx(expected)
    assert rates(2, warmup=0.5, warmup_steps=0, schedule="linear") == pytest.approx([0.55, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5, 0.99])
def test_no_rate_leaves_its_bounds(schedule, steps, warmup):
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert all(0 < rate <= 1 + 1e-12 for rate in found), f"a rate is outside of (0, peak]: {found}"
    rising = found.index(max(found))
    assert found[: rising + 1] == sorted(found[: rising + 1]), "the rate falls before its peak"
    assert found[rising:] == sorted(found[rising:], reverse=True), "the rate rises behind its peak"
    if schedule != "constant" and steps > 2 and warmup < 0.9:
        assert found[-1] == pytest.approx(0.1), "the last update does not have the final rate"


def test_the_missions_preset_at_its_marks():
    """Vicuna 2.7B: 143,052 steps, 1e-4 to 1e-5, 1% warm-up = 1,431 steps."""
    preset = {
        "steps": 143_052,
        "peak": 1e-4,
        "final": 1e-5,
        "rising": warm_up(143_052, 0.01, None),
        "schedule": "cosine",
    }
    assert learning_rate(0, **preset) == pytest.approx(1e-4 / 1431)
    assert learning_rate(1430, **preset) == pytest.approx(1e-4)
    assert learning_rate(1430 + 141_621 // 2, **preset) == pytest.approx(5.5e-5, rel=1e-4), "half-way down"
    assert learning_rate(143_051, **preset) == pytest.approx(1e-5)
