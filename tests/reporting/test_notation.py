"""Numbers are written one way everywhere, and a missing one is a word."""

import math

import pytest

from pipeline.reporting import notation


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (notation.significant, 68.6, "68.60"),
        (notation.significant, 14.0349, "14.03"),
        (notation.significant, 5120.4, "5120"),
        (notation.significant, 1234567.0, "1.235e6"),
        (notation.parameters, 134_515_008, "134.5 M"),
        (notation.parameters, 999_960_000, "1.000 B"),
        (notation.parameters, 6_738_415_616, "6.738 B"),
        (notation.tokens, 40_960, "41 k"),
        (notation.tokens, 512, "512"),
        (notation.tokens, 999_999, "1 M"),
        (notation.tokens, 150_000_000_000, "150 B"),
        (notation.flops, 2.5e13, "2.5e13"),
        (notation.duration, 0.065, "65 ms"),
        (notation.duration, 2.83, "2.83 s"),
        (notation.duration, 59.97, "1 min 00 s"),
        (notation.duration, 245.0, "4 min 05 s"),
        (notation.duration, 7199.0, "2 h 00 min"),
        (notation.memory, 512 * 2**20, "512.0 MiB"),
        (notation.memory, 13 * 2**30, "13.0 GiB"),
    ],
)
def test_numbers_in_words(write, value, text):
    assert write(value).replace(notation.SPACE, " ") == text, f"{write.__name__}({value}) reads {write(value)!r}"


@pytest.mark.parametrize(
    "write",
    [
        notation.significant,
        notation.parameters,
        notation.tokens,
        notation.flops,
        notation.duration,
        notation.memory,
    ],
)
def test_missing_and_endless_values_are_words(write):
    assert write(None) == notation.MISSING
    assert write(math.inf) == write(math.nan) == notation.NOT_FINITE


def test_comparisons_with_the_dense_model():
    assert notation.change(21, 30) == f"{notation.MINUS}30.0{notation.SPACE}%"
    assert notation.change(30, 30) == "same"
    assert notation.ratio(28.0, 14.0) == f"{notation.TIMES}{notation.SPACE}2.00"
    for missing in (None, math.nan, 0):
        assert notation.change(1.0, missing) == notation.ratio(1.0, missing) == "", f"nothing compares with {missing}"


def test_block_lists_join_runs_of_three():
    assert notation.block_list([12, 5, 11, 10, 20, 21]) == "5, 10\u201312, 20, 21"
    assert notation.block_list([]) == "none"


def test_sizes_of_files_are_decimal_and_small_ones_are_small():
    sizes = (626_080, 269_030_016, 999_900_000, 13_476_838_400, None)
    words = [notation.file_size(size).replace(notation.SPACE, " ") for size in sizes]
    assert words == ["626 kB", "269 MB", "1 GB", "13.5 GB", notation.MISSING]
    assert notation.between((20.66, 23.6)) == "20.7 to 23.6" and notation.between(None) == ""
