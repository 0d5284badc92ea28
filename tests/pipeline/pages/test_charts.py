"""Charts put each value where the axes say, and are well-formed SVG whatever the names are."""

import re
from xml.etree import ElementTree

import pytest

from captionmill.pipeline.pages.charts import (
    Chart,
    Interval,
    Series,
    interval_chart,
    line_chart,
    scatter_chart,
    ticks,
)
from captionmill.pipeline.pages.page import environment


def draw(chart: Chart | Interval) -> ElementTree.Element:
    """The SVG that a page shows."""
    macros = environment().get_template("drawings.html").module
    drawn: str = getattr(macros, "chart" if isinstance(chart, Chart) else "interval")(chart)
    return ElementTree.fromstring(drawn)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.18, 0.5, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (2.65, 5.12, [2.0, 3.0, 4.0, 5.0, 6.0]),
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (3.0, 3.0, [2.5, 3.0, 3.5]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_a_line_goes_through_its_points_from_the_first_tick_to_the_last() -> None:
    chart = line_chart([Series("m", [(1, 0.0), (2, 1.0), (3, 0.5)], marked=(2, 1.0))], title="t", x_label="epoch")
    drawn = draw(chart)
    line = drawn.find("polyline")
    assert line is not None
    assert line.get("points") == "38.0,170.0 175.0,10.0 312.0,90.0"
    marked = [dot for dot in drawn.iter("circle") if "marked" in str(dot.get("class"))]
    assert [dot.findtext("title") for dot in marked] == ["m, epoch 2: 1.000, kept"]
    assert [text.text for text in drawn.iter("text")] == ["0", "0.5", "1", "1", "2", "3", "epoch"]


def test_two_models_have_two_colours_and_one_epoch_is_a_point() -> None:
    chart = line_chart([Series("a", [(1, 2.0)]), Series("b", [(1, 3.0)])], title="t", x_label="epoch")
    assert [line.get("class") for line in draw(chart).iter("polyline")] == ["line c0", "line c1"]
    assert b"nan" not in ElementTree.tostring(draw(chart))


def test_names_cannot_add_markup() -> None:
    chart = line_chart([Series("<b>&", [(1, 1.0)])], title='"><script>', x_label="<i>")
    drawn = draw(chart)
    assert drawn.get("aria-label") == '"><script>'
    assert drawn.findtext("circle/title") == "<b>&, <i> 1: 1.000"


def test_a_cloud_of_many_dots_is_thinned_out() -> None:
    dots = [(number / 5000, 1.0) for number in range(5000)]
    path = draw(scatter_chart(dots, [(0.5, 1.0)], title="t", x_label="x")).find("path[@class='cloud']")
    assert path is not None
    assert len(re.findall("M", str(path.get("d")))) == 1667


def test_intervals_of_a_row_share_their_scale() -> None:
    chart = draw(interval_chart(0.5, 0.25, 1.0, least=0.0, most=1.0, colour=7))
    dot = chart.find("circle")
    assert dot is not None
    assert (dot.get("class"), dot.get("cx")) == ("dot c1", "60.0")
    assert [path.get("d") for path in chart.iter("path")] == ["M2 6H118", "M32.5 6H115.0"]
