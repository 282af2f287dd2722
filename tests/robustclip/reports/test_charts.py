from xml.etree import ElementTree

import pytest

from robustclip.reports.charts import BOTTOM, LEFT, RIGHT, TOP, Curve, chart, chart_file
from robustclip.reports.html import render

NAN = float("nan")


def along(*values: float | None) -> list[tuple[float, float | None]]:
    return list(enumerate(values))


def test_curves_are_drawn_inside_their_frame() -> None:
    figure = chart(
        "Loss",
        [Curve("a", along(3.0, -2.0, NAN, 1.0)), Curve("b <c>", along(None, 0.5, 0.25, 0.1))],
        across="step",
    )
    drawn = ElementTree.fromstring(figure)
    lines = [line.attrib["points"].split() for line in drawn.iter("polyline")]
    assert [len(line) for line in lines] == [3, 3]
    places = [tuple(map(float, point.split(","))) for line in lines for point in line]
    assert all(LEFT <= across <= RIGHT and TOP <= down <= BOTTOM for across, down in places)
    assert lines[0][0] == f"{LEFT:.1f},{TOP:.1f}", "the largest value is at the top"
    assert lines[0][1].endswith(f",{BOTTOM:.1f}"), "the smallest at the bottom"
    assert lines[0][2].startswith(f"{RIGHT:.1f},"), "a gap leaves what follows in its place"


def test_a_chart_is_told_in_words_and_curves_differ_without_colour() -> None:
    drawn = ElementTree.fromstring(
        chart("Loss", [Curve(name, along(1.0, 2.0)) for name in ("a", "b <c>")], across="step")
    )
    told = drawn.findtext("svg/desc")
    assert told == "a: 1 at 0, 2 at 1 (step). b <c>: 1 at 0, 2 at 1 (step)."
    looks = [line.attrib["class"].split() for line in drawn.iter("polyline")]
    assert looks[0][2] != looks[1][2]
    style = render("chart.css")
    assert all(f".{part}" in style for look in looks for part in look if part != "dash-0")


def test_names_that_hold_markup_stay_text() -> None:
    figure = chart("<script>", [Curve('"><img src=x>', along(1.0))], across="</svg>")
    assert "<script" not in figure
    assert "<img" not in figure
    ElementTree.fromstring(figure)


@pytest.mark.parametrize("values", [(), (None, None), (NAN,), (float("inf"),)])
def test_there_is_no_chart_of_nothing(values: tuple[float | None, ...]) -> None:
    assert chart("Loss", [Curve("a", along(*values))], across="epoch") == ""


@pytest.mark.parametrize("values", [(0.0,), (2.0, 2.0), (-1.0,)])
def test_a_single_point_and_a_constant_can_be_drawn(values: tuple[float, ...]) -> None:
    assert "polyline" in chart("Loss", [Curve("a", along(*values))], across="epoch")


def test_shares_fill_the_axis_from_0_to_100_percent() -> None:
    figure = chart("Accuracy", [Curve("a", along(0.25, 0.5))], across="epoch", percent=True)
    assert ">100%<" in figure
    assert ">0%<" in figure


def test_a_file_holds_the_same_curves_their_names_and_its_own_look() -> None:
    curves = [Curve("few & <b>", along(6.0, 4.0)), Curve("many", along(3.0))]
    drawn = ElementTree.fromstring(chart_file("Left", curves, across="draws"))
    space = "{http://www.w3.org/2000/svg}"
    assert drawn.tag == f"{space}svg"
    inline = ElementTree.fromstring(chart("Left", curves, across="draws"))
    assert [line.attrib for line in drawn.iter(f"{space}polyline")] == [
        line.attrib for line in inline.iter("polyline")
    ]
    assert {"few & <b>", "many", "draws"} <= {text.text for text in drawn.iter(f"{space}text")}
    assert ".curve" in (drawn.findtext(f"{space}style") or "")
    assert chart_file("Left", [Curve("none", along(None))], across="draws") == ""
