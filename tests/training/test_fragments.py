"""What a process holds: shares of a piece, and which parameters are told apart."""

from __future__ import annotations

import torch

from pipeline.training.fragments import KINDS, Fragment


def test_the_parts_of_a_piece_are_all_of_it_once():
    whole = Fragment("w", 10, 7, {kind: torch.arange(7.0) for kind in KINDS}, torch.tensor(3.0))
    for count in (1, 2, 3, 9):
        parts = [whole.part(number, count) for number in range(count)]
        assert torch.cat([part.values["exp_avg"] for part in parts]).tolist() == list(range(7))
        assert [part.offset for part in parts] == [10 + sum(one.length for one in parts[:at]) for at in range(count)]
        assert max(part.length for part in parts) - min(part.length for part in parts) <= 1


def test_a_part_is_a_view_of_what_is_trained_on():
    whole = Fragment("w", 0, 4, {kind: torch.zeros(4) for kind in KINDS}, torch.tensor(0.0))
    whole.part(1, 2).values["master"].fill_(5.0)
    assert whole.values["master"].tolist() == [0, 0, 5, 5]


def test_a_checkpoint_holds_each_value_once_and_zero_shares_them_out(measured):
    """By the files of real engines on two processes, at every stage: about half for each."""
    for stage in range(4):
        found = measured(2)[f"written-{stage}-bf16"]
        first, second = found["bytes"]
        parameters = 256 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 2 * 64) + 64
        assert first + second == 12 * parameters, f"ZeRO {stage}: {first + second} bytes of values"
        assert abs(first - second) < 0.02 * first, f"ZeRO {stage}: {first} and {second} bytes"
