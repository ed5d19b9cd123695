"""The heat maps put each window where it belongs, and the best one is that of brute force."""

import math

import numpy as np
import pytest

from pipeline.errors import RegrowError
from pipeline.reporting import draw_heat_map, draw_linear_windows, draw_ppl_windows, drawing
from pipeline.reporting.heat_maps import best_start, window_table

L = 7
ENTRY = {"windows": [[((3 * s + 5 * n) % 11) / 10 + n for n in range(1, L - s + 1)] for s in range(L)]}


def cells_of(figure):
    (image,) = (image for image in figure.axes[0].get_images() if image.get_gid() == "cells")
    return image


def line_of(figure, gid):
    return next((line for line in figure.axes[0].get_lines() if line.get_gid() == gid), None)


def test_rows_are_lengths_and_columns_starts():
    table = window_table(ENTRY)
    for start in range(L):
        for n in range(1, L + 1):
            if start + n <= L:
                assert table[n - 1, start] == ENTRY["windows"][start][n - 1], (n, start)
            else:
                assert math.isnan(table[n - 1, start]), "no window reaches behind the last block"


def test_normalising_is_by_row():
    table = window_table(ENTRY, normalized=True)
    for n in range(1, L):
        row = [ENTRY["windows"][s][n - 1] for s in range(L - n + 1)]
        expected = [(value - min(row)) / (max(row) - min(row)) for value in row]
        assert table[n - 1, : L - n + 1] == pytest.approx(expected)
    assert table[L - 1, 0] == 0, "a row of one window"


def test_under_the_protect_rule_the_free_windows_span_the_row():
    table = window_table(ENTRY, normalized=True, protected=[0, L - 1])
    assert table[1, 1:5].min() == 0 and table[1, 1:5].max() == 1, "starts 1 to 4 are free for n = 2"
    assert np.nanmin(table) >= 0 and np.nanmax(table) <= 1
    whole = window_table(ENTRY, normalized=True)
    assert (table[5, :2] == whole[5, :2]).all(), "no window of 6 is free: the whole row counts"


@pytest.mark.parametrize("protected", [[], [0, L - 1], [3]])
@pytest.mark.parametrize("n", [1, 2, 3, L - 2])
def test_best_start_is_that_of_brute_force(n, protected):
    tried = {
        start: ENTRY["windows"][start][n - 1]
        for start in range(L)
        if start + n <= L and not any(start <= block < start + n for block in protected)
    }
    expected = min(tried, key=tried.get) if tried else None
    assert best_start(ENTRY, n, protected) == expected


def test_no_start_where_nothing_is_free():
    assert best_start(ENTRY, 0) is None and best_start(ENTRY, L + 1) is None
    assert best_start(ENTRY, L, [0]) is None
    assert best_start({"windows": [[None, 1.0], [math.inf]]}, 1) is None, "values that are not finite are no best"


def test_the_map_shows_the_table_and_the_mark():
    figure = draw_heat_map(ENTRY, normalized=False, title="t", mark=(2, 3), protected=[0, L - 1])
    image = cells_of(figure)
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), window_table(ENTRY), equal_nan=True)
    assert image.get_extent() == [-0.5, L - 0.5, L + 0.5, 0.5], "cell (start, n) is centred on its numbers"
    assert [list(values) for values in line_of(figure, "mark").get_data()] == [[2], [3]]
    x, y = line_of(figure, "free-windows-mark").get_data()
    assert (min(x), max(x), min(y), max(y)) == (0.5, 5.5, 0.5, 5.5), "starts 1 to 5, n 1 to 5"
    assert line_of(draw_heat_map(ENTRY), "mark") is None
    assert line_of(draw_heat_map(ENTRY), "free-windows-mark") is None


def test_a_map_of_80_blocks_is_one_small_image():
    entry = {"windows": [[math.sin(s * n) for n in range(1, 81 - s)] for s in range(80)]}
    svg = drawing.to_svg(draw_heat_map(entry, narrow=True), "m", "map")
    assert svg.count("<image") == 2, "the cells, and their key"
    assert len(svg) < 40_000, f"{len(svg)} bytes"
    assert "xlink" not in svg and svg.count('href="data:image/png;base64,') == 2


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(RegrowError, match="no distances of windows"):
        draw_heat_map({"scores": [1.0]})
    with pytest.raises(RegrowError, match="no distances of windows"):
        draw_heat_map({"windows": {"1": {}}})
    with pytest.raises(RegrowError, match="no window of 4 blocks starts at 4"):
        draw_heat_map(ENTRY, mark=(4, 4))
    with pytest.raises(RegrowError, match=r"windows of 9 blocks were not measured.*score\.linear_n"):
        draw_linear_windows({"windows": {"1": {}}}, 9)


def test_ppl_windows_show_the_perplexity_by_start_beside_the_dense_one():
    entry = {"dense": 16.0, "windows": {"3": {"scores": [70.0, None, 60.0], "best_start": 2}}}
    figure = draw_ppl_windows(entry, 3, mark=2)
    drawn = list(line_of(figure, "ppl-windows").get_ydata())
    assert drawn[::2] == [70.0, 60.0] and math.isnan(drawn[1])
    assert line_of(figure, "dense-reference").get_ydata()[0] == 16.0
    assert line_of(figure, "mark").get_xdata()[0] == 2
    with pytest.raises(RegrowError, match=r"windows of 9 blocks were not measured.*score\.ppl_n"):
        draw_ppl_windows(entry, 9)


def test_linear_windows_show_both_errors():
    entry = {"windows": {"3": {"scores": [0.3, None, 0.2], "without_map": [0.5, 0.6, 0.7], "best_start": 2}}}
    figure = draw_linear_windows(entry, 3, mark=2)
    mapped = list(line_of(figure, "linear-scores").get_ydata())
    assert mapped[::2] == [0.3, 0.2] and math.isnan(mapped[1])
    assert list(line_of(figure, "linear-without_map").get_ydata()) == [0.5, 0.6, 0.7]
    assert line_of(figure, "mark").get_xdata()[0] == 2
