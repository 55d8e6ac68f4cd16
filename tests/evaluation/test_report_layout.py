"""Where the words around a picture's axes stand: within the picture, apart from one another, and the same in each."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.layout import Words, settle
from robust_policies.evaluation.report.static import draw

LOOK = Look("#000000", "circle", "solid")


def drawn(*panels, columns=2):
    """Return a figure of these panels and the words around its axes."""
    figure = draw(Chart("key", "title", "", panels, columns=columns, legend=False))
    (words,) = (artist for artist in figure.artists if isinstance(artist, Words))
    return figure, words.words


def panel(x, y, **options):
    return Panel("a title", "time", "force", [Series("name", LOOK, np.array(x), np.array(y))], **options)


def test_words_stand_where_matplotlib_puts_them():
    figure, words = drawn(panel([0.0, 1.0, 2.0], [0.0, 5.0, 10.0]), columns=1)
    axes = figure.axes[0]
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_visible(True)
    figure.canvas.draw()
    assert sorted(word.text for word in words) == sorted(text.get_text() for text in texts)
    for text in texts:
        (word,) = (w for w in words if w.text == text.get_text() and (w.angle or not text.get_rotation()))
        box = text.get_window_extent()
        upright = word.angle == 0.0
        # The line on which the letters stand lies within the box of the letters.
        assert box.x0 * 72 / figure.dpi == pytest.approx(word.x, abs=1.5) or not upright
        assert box.y0 - 1.5 <= word.y * figure.dpi / 72 <= box.y1


def test_numbers_that_would_touch_are_left_out():
    places = list(np.arange(0.0, 1.0, 0.01))
    figure = Figure(figsize=(4, 2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 1)
    axes.set_xticks(places)
    settle(figure, [axes], 1, 0.0)
    (words,) = (artist.words for artist in figure.artists if isinstance(artist, Words))
    line = sorted((w for w in words if w.y == words[0].y), key=lambda w: w.x)
    assert 3 <= len(line) < 30
    assert all(b.x - a.x > 3.0 * len(a.text) for a, b in pairwise(line))
    assert line[0].text == "0.00"


def test_ticks_are_fixed_whatever_is_drawn_afterwards():
    figure, words = drawn(panel([0.0, 1.0], [0.0, 1.0]), columns=1)
    axes = figure.axes[0]
    before = list(axes.get_xticks()), axes.get_position().bounds
    axes.plot([0, 50], [0, 50])
    figure.canvas.draw()
    assert (list(axes.get_xticks()), axes.get_position().bounds) == before
    assert words


@pytest.mark.parametrize("value", [3.0, 0.02])
def test_a_logarithmic_axis_of_one_value_is_narrow_and_has_numbers(value):
    figure, words = drawn(panel([value], [1.0], log_x=True), columns=1)
    low, high = figure.axes[0].get_xlim()
    assert low < value < high < 1.1 * low
    line = [word for word in words if word.y == words[0].y]
    assert any(low <= float(word.text) <= high for word in line)


def test_all_words_lie_inside_the_picture():
    names = ["a name of forty letters, which is cut soon", "b"]
    wide = Panel("", "x", "", [Series("s", LOOK, np.array([1e6, 3e6]), np.array([0.0, 1.0]))], y_names=names)
    figure, words = drawn(wide, panel([0.0, 1.0], [1e7, 1.00001e7]))
    width, height = figure.get_size_inches() * 72
    assert any("+" in word.text or "1e7" in word.text for word in words)
    for word in words:
        assert 0 <= word.x <= width, word
        assert 0 <= word.y <= height, word
