import re
import xml.etree.ElementTree as ElementTree

import pytest

from rn50.observe import drawing
from rn50.report.charts import chart


def drawn():
    figure, (top, bottom) = drawing.new_figure("a run: accuracy", 3.0, 2.0)
    drawing.line(top, [(1, 0.25), (2, 0.5), (3, float("nan"))], drawing.style_of(0), "model")
    drawing.marks(top, [2], "resumed", color="0.35", marker="v")
    drawing.percent_axis(top, "top-1 accuracy", 0.5)
    drawing.line(bottom, [(1, 3.0), (3, 1.0)], drawing.style_of(1), "loss <of> it")
    drawing.legend(top)
    drawing.epochs_axis(bottom, 3)
    return figure


def test_a_chart_is_sound_xml_with_a_name_for_those_who_do_not_see_it():
    made = chart("accuracy", drawn(), 'accuracy "by" epoch')
    root = ElementTree.fromstring(str(made.svg))
    assert root.attrib["aria-label"] == 'accuracy "by" epoch'
    assert made.title == "Accuracy"
    words = "".join(root.itertext())
    assert "top-1 accuracy" in words
    assert "resumed" not in words, "the legend is text of the page"
    (key,) = made.keys
    assert [label for _, label in key.lines] == ["model", "resumed"]
    for sample, _ in key.lines:
        ElementTree.fromstring(str(sample))


def test_a_chart_takes_the_colours_of_its_page():
    svg = str(chart("accuracy", drawn(), "accuracy").svg)
    outside = re.sub(r"var\([^)]*\)", "", svg)
    assert not re.search(r"(fill|stroke): ?#", outside)
    assert "var(--c-4477aa, #4477aa)" in svg
    assert "currentColor" in svg
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)


def test_a_pointer_finds_each_line_where_it_is_drawn():
    made = chart("accuracy", drawn(), "accuracy")
    top, bottom = made.numbers["axes"]
    assert (top["percent"], bottom["percent"]) == (True, False)
    assert [one["label"] for one in top["series"]] == ["model"]  # no mark is a line
    assert top["series"][0]["x"] == [1, 2]
    assert top["series"][0]["y"] == [0.25, 0.5]
    assert bottom["xlabel"] == "epoch"
    assert top["bottom"] < bottom["top"] < bottom["bottom"] <= made.numbers["height"]

    # The line of the lower panel ends in its right corner: where the numbers say, it is drawn.
    (series,) = bottom["series"]
    left, right = bottom["x"]
    x = bottom["left"] + (series["x"][-1] - left) / (right - left) * (
        bottom["right"] - bottom["left"]
    )
    low, high = bottom["y"]
    y = bottom["bottom"] - (series["y"][-1] - low) / (high - low) * (
        bottom["bottom"] - bottom["top"]
    )
    ends = re.findall(r"L ([\d.]+) ([\d.]+)", str(made.svg))
    assert any(
        float(a) == pytest.approx(x, abs=0.6) and float(b) == pytest.approx(y, abs=0.6)
        for a, b in ends
    )


def test_charts_of_one_page_share_no_identifier():
    one, other = (str(chart(name, drawn(), name).svg) for name in ("one", "other"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert all(ids)
    assert not ids[0] & ids[1]
