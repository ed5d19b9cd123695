"""The collector runs between steps, at steps chosen by their number, and as ever behind the loop."""

from __future__ import annotations

import gc
import weakref

from pipeline.training.garbage import EVERY, collected_between_steps


class Knot:
    """An object that only the collector can free."""

    def __init__(self):
        self.itself = self


def test_a_knot_is_freed_at_a_chosen_step_and_not_before():
    with collected_between_steps() as behind:
        assert not gc.isenabled()
        knot = weakref.ref(Knot())
        for step in range(1, EVERY):
            behind(step)
            assert knot() is not None, f"collected behind step {step}"
        behind(EVERY)
        assert knot() is None, "nothing was collected"
    assert gc.isenabled() and gc.get_freeze_count() == 0, "the collector is not as it was"


def test_the_collector_is_as_it_was_behind_an_error():
    gc.disable()
    try:
        with collected_between_steps():
            raise ValueError
    except ValueError:
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0
