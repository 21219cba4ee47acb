"""Pages of runs with any names: legends, colours, sorting, commands, small screens."""

import dataclasses
import re

import jinja2
import pytest
from markupsafe import escape

from observe.histories import epoch, folder_of, start, whole, window
from rn50 import config
from rn50.analyze.drawing import canvas, picture
from rn50.observe import drawing
from rn50.recipes import recipe
from rn50.report.charts import chart
from rn50.report.comparison import comparison_page
from rn50.report.page import run_page

ODD = ["cost $5 and $6", r"p$\frac{1$", "#a1b2c3", "金魚 🐟", "<b>&amp;", "W" * 64, "a" * 64]


def drawn(labels):
    figure, (top, bottom) = drawing.new_figure("a run: accuracy", 3.0, 2.0)
    for number, label in enumerate(labels):
        drawing.line(top, [(1, 0.25), (2, 0.5)], drawing.style_of(number), label)
        drawing.line(bottom, [(1, 2.0), (2, 1.0)], drawing.style_of(number), label)
    return figure, top


@pytest.mark.parametrize("labels", [["baseline-seed0", "AutoAugment-seed0"], ODD])
def test_a_legend_is_text_of_the_page_and_leaves_the_picture_its_size(labels):
    bare, _ = drawn(labels)
    plain = chart("plain", bare, "accuracy")
    figure, top = drawn(labels)
    drawing.legend_below(figure, top, title="run")
    made = chart("plain", figure, "accuracy")
    (key,) = made.keys
    assert key.heading == "run"
    assert [label for _, label in key.lines] == labels
    assert len({str(sample) for sample, _ in key.lines}) == len(labels)
    assert made.numbers["height"] == pytest.approx(plain.numbers["height"], abs=0.1)
    assert not any(str(escape(label)) in made.svg for label in labels)


def test_legends_of_several_panels_say_which_they_explain():
    figure, axes = drawing.new_figure("a run: loss", 3.0, 2.0)
    for panel, name in zip(axes, ("speed", "share"), strict=True):
        panel.set_ylabel(name)
        drawing.band(panel, [(1, 0.2), (2, 0.4)], 0.1, "a band\n(of two lines)")
        drawing.marks(panel, [1], "stall", color="0.3", marker="X")
        drawing.legend(panel)
    made = chart("loss", figure, "loss")
    assert [key.heading for key in made.keys] == ["speed", "share"]
    assert [label for _, label in made.keys[0].lines] == ["a band (of two lines)", "stall"]
    assert not re.search(r'(fill|stroke)="#', "".join(str(s) for s, _ in made.keys[0].lines))


def test_two_columns_of_a_legend_are_taken_only_where_they_fit():
    for labels, columns in ((["a", "b"], 2), (ODD, 1)):
        figure, top = drawn(labels)
        drawing.legend_below(figure, top, title="run")
        (legend,) = figure.legends
        assert legend._ncols == columns
        assert legend.get_window_extent().width <= figure.bbox.width


def test_words_that_look_like_colours_stay_as_they_are():
    figure, top = drawn(["line"])
    top.set_ylabel("#a1b2c3 #777777")
    svg = str(chart("words", figure, "#4477aa").svg)
    assert ">#a1b2c3 #777777<" in svg
    assert 'aria-label="#4477aa"' in svg
    assert "var(--c-4477aa, #4477aa)" in svg


def test_letters_come_from_fonts_that_have_them(monkeypatch):
    monkeypatch.setattr(drawing, "_FALLBACK_FONTS", ("no such font", "STIXGeneral"))
    drawing._families.cache_clear()
    figure, top = drawn(["line"])
    mono = figure.text(0.5, 0.5, "x", family="monospace")
    drawing.as_written(figure)
    drawing._families.cache_clear()
    assert top.yaxis.label.get_fontfamily() == ["sans-serif", "STIXGeneral"]
    assert mono.get_fontfamily() == ["monospace"]


def test_powers_on_a_logarithmic_axis_stay_formulas():
    figure, top = drawn(["line"])
    top.set_yscale("log")
    drawing.as_written(figure)
    assert all(label.get_parse_math() for label in top.get_yticklabels())
    assert not top.yaxis.label.get_parse_math()


def test_pages_take_runs_of_any_name(tmp_path):
    places = [folder_of(tmp_path / name.replace("/", "_"), whole(2)) for name in ODD]
    page = comparison_page(places)
    for name in ODD:
        assert f"<span>{escape(name)} (demo): average 50.00%</span>" in page
    assert run_page(places[1]).count('class="key"') >= 3


def test_figures_of_an_analysis_take_classes_of_any_name():
    figure = canvas(8, 3)
    figure.add_subplot().set_yticks(range(5), ODD[:5])
    figure.suptitle(ODD[1])
    assert picture(figure, "classes.png", "classes").png.startswith(b"\x89PNG")


def test_times_are_sorted_by_their_seconds(tmp_path):
    records = [start(), window(40, elapsed_s=207940.0), epoch(1, elapsed_s=208000.0)]
    long, short = folder_of(tmp_path / "long", records), folder_of(tmp_path / "short", whole(2))
    page = comparison_page([long, short])
    assert '<data value="208000">57 h 46 min</data>' in page
    assert '<data value="60">1 min 00 s</data>' in page


def test_each_run_of_a_recipe_that_is_not_listed_is_repeated_from_its_own_folder(tmp_path):
    run = config.to_dict(dataclasses.replace(recipe("demo"), recipe="my own"))
    places = [folder_of(tmp_path / name, whole(2), run) for name in ("one", "the other")]
    page = comparison_page(places)
    assert f"rn50 train --config {tmp_path}/one/config.json<" in page
    assert str(escape(f"rn50 train --config '{tmp_path}/the other/config.json'")) in page


def test_the_script_answers_to_touch_and_pictures_of_an_analysis_scroll_on_small_screens():
    environment = jinja2.Environment(loader=jinja2.PackageLoader("rn50.report"), autoescape=True)
    script, style = (environment.get_template(name).render() for name in ("page.js", "page.css"))
    assert 'svg.addEventListener("pointerdown", show)' in script
    small = style[style.index("@media (max-width: 40rem)") :]
    assert ".analysis p { overflow-x: auto; }" in small
    assert "width: 40rem" in small
