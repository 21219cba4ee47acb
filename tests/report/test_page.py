import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from observe.histories import PRICE, epoch, folder_of, start, whole, window
from rn50 import config
from rn50.errors import UsageError
from rn50.recipes import recipe
from rn50.report.page import run_page

SETTINGS = config.to_dict(
    dataclasses.replace(recipe("demo"), epochs=5, average=config.Average(ema_horizon=0.1))
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects text, addresses and identifiers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.sources += [found[name] for name in ("src", "href") if found.get(name)]
        self.ids += [found["id"]] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def analysed(run_dir: Path, text: str) -> None:
    folder = run_dir / "analysis"
    folder.mkdir()
    (folder / "analysis.md").write_text(text)
    (folder / "matrix.png").write_bytes(b"\x89PNG picture")


def test_the_page_of_a_whole_run_says_what_came_of_it(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(price_per_hour=PRICE), SETTINGS)
    seen = Outline(run_page(run_dir))
    for words in (
        "50.00% top-1, last epoch, EMA",
        "5 of 5 epochs",
        "finished",
        "0.1.0",
        "EMA of the model 50.00% ± 2.04%",  # sqrt(0.25 / 600)
        "Single centre crop",
        "rn50 train demo --epochs 5 --average.ema-horizon 0.1",
        "average.ema_horizon",
    ):
        assert words in seen.words, words
    assert "What is missing" not in seen.words
    assert len(seen.ids) == len(set(seen.ids))


def test_the_page_says_what_the_run_cost(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(price_per_hour=PRICE), SETTINGS)
    hours = 5 * (24 + 6) / 3600
    assert f"${hours * PRICE:,.2f} at $2.00 an hour" in Outline(run_page(run_dir)).words


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(), SETTINGS)
    analysed(run_dir, "# Analysis\n\n## Classes\n\n![matrix](matrix.png)\n")
    page = run_page(run_dir)
    for source in Outline(page).sources:
        assert source.startswith(("data:", "#")), source
    assert not re.search(r"@import|url\(\s*['\"]?http", page)
    assert "default-src 'none'" in page


def test_the_analysis_is_in_the_page_with_its_pictures(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(), SETTINGS)
    analysed(
        run_dir,
        "# Analysis of it\n\n## Classes\n\n| class | F1 |\n| --- | ---: |\n| a <b> | 0.5 |\n\n"
        "![the \\*matrix\\* of \\<b\\>](matrix.png)\n\n![no](../config.json)\n\n"
        "## Grad-CAM\n\nMaps.\n",
    )
    page = run_page(run_dir)
    seen = Outline(page)
    assert "Classes class F1 a <b> 0.5" in seen.words
    assert "Grad-CAM Maps." in seen.words
    assert base64.b64encode(b"\x89PNG picture").decode() in page
    assert 'alt="the *matrix* of &lt;b&gt;"' in page
    assert seen.sources.count("#analysis-1") == 1
    assert "analysis-1" in seen.ids
    assert sum(source.startswith("data:") for source in seen.sources) == 1


def write_sizes(run_dir, network="model", images=600, step=200, **summary):
    """Write the facts of an analysis of a network and the run's other ones at 64 and at 80 px."""
    score = {"top1": 0.625, "top1_standard_error": 0.01, "top5": 0.75, "loss": 1.25}
    names = [network, *(name for name in ("model", "average") if name != network)]
    others = {name: {**score, "top1": 0.75} for name in names[1:]}
    told = {
        "network": network,
        "scores": {name: {"images": images} for name in names},
        "weights": {name: {"step": 80 if name == "best" else step} for name in names},
        **summary,
    }
    sizes = [{"px": px, **score, "others": others} for px in (64, 80)]
    sections = {"Summary": told, "Test sizes": {"test_px": 64, "sizes": sizes}}
    path = run_dir / "analysis" / "analysis.json"
    path.write_text(json.dumps({"sections": sections}))
    return path


@pytest.fixture
def analysed_run(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(), SETTINGS)
    analysed(run_dir, "# Analysis\n")
    state = run_dir / "checkpoints" / "step-00000200" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"about": {"data": "packed", "fingerprint": "abc"}}))
    return run_dir


def test_the_results_are_at_the_analysis_s_other_test_sizes_too(analysed_run):
    path = write_sizes(analysed_run, fingerprint="abc")
    words = Outline(run_page(analysed_run)).words
    assert "model 62.50% ± 1.00% 75.00% 80 1.2500 600 5" in words
    assert "EMA of the model 75.00% ± 1.00% 75.00% 80 1.2500 600 5" in words
    assert words.count("± 1.00%") == 2  # at the run's own size its record tells
    path.write_text('{"sections": {"Summary": 3}}')
    assert "± 1.00%" not in Outline(run_page(analysed_run)).words


def test_the_best_of_many_has_no_row(analysed_run):
    write_sizes(analysed_run, "best")
    words = Outline(run_page(analysed_run)).words
    assert "62.50%" not in words
    assert "model 75.00% ± 1.00% 75.00% 80" in words


def test_of_an_analysis_without_the_other_networks_the_one_has_rows(analysed_run):
    path = write_sizes(analysed_run, weights=None, step=200)
    told = json.loads(path.read_text())
    for size in told["sections"]["Test sizes"]["sizes"]:
        del size["others"]
    path.write_text(json.dumps(told))
    words = Outline(run_page(analysed_run)).words
    assert "62.50%" in words
    assert words.count("± 1.00%") == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"images": 500}, "they are of 500 images of other, and the run's of 600"),
        ({"step": 160}, "they are of step 160, and the run's last evaluation of step 200"),
        ({"fingerprint": "xyz"}, "they are of other, which is not what the run was trained on"),
    ],
)
def test_what_is_not_of_the_run_s_last_evaluation_has_no_row(analysed_run, change, why):
    write_sizes(analysed_run, data="other", **change)
    words = Outline(run_page(analysed_run)).words
    assert f"results at other test sizes are left out: {why}" in words
    assert "± 1.00%" not in words


def test_names_from_a_run_cannot_become_markup(tmp_path):
    bad = '<script>alert("1")</script>'
    records = [start(recipe=bad, device=bad), window(20), epoch(1)]
    warning = {"kind": "warning", "step": 20, "message": f"</script>{bad}"}
    run_dir = folder_of(tmp_path / "run", [*records, warning], {"recipe": bad})
    page = run_page(run_dir)
    assert bad not in page
    assert bad in Outline(page).words


def test_what_went_otherwise_is_told_in_its_order(tmp_path):
    records = [
        start(),
        window(20, skipped=2),
        start("resume", 20),
        {"kind": "stall", "step": 30, "message": "step 30 took 9 s", "cause": "data"},
        window(40),
        epoch(1),
    ]
    words = Outline(run_page(folder_of(tmp_path / "run", records, SETTINGS))).words
    told = [
        "0.50 skipped updates 2 updates left out",
        "0.50 restart went on at step 20",
        "0.75 stall step 30 took 9 s",
    ]
    places = [words.find(one) for one in told]
    assert min(places) > 0
    assert max(places) == places[2]
    assert "not finished, 1 of 5 epochs done" in words
    assert "these are no final figures" in words


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "metrics.jsonl is empty"),
        ([start()], "No epoch was evaluated"),
        ([window(20), epoch(1)], "the record of the run's start is missing"),
    ],
)
def test_of_a_crashed_run_there_is_what_there_can_be(tmp_path, records, told):
    run_dir = folder_of(tmp_path / "run", records, SETTINGS)
    assert told in Outline(run_page(run_dir)).words


def test_a_torn_last_line_is_named_and_the_rest_is_shown(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(), SETTINGS)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    words = Outline(run_page(run_dir)).words
    assert "the last line of metrics.jsonl is torn" in words
    assert "50.00% top-1, last epoch, EMA" in words


def test_settings_of_another_version_are_no_obstacle(tmp_path):
    run_dir = folder_of(tmp_path / "run", whole(), {**SETTINGS, "unknown": 1})
    words = Outline(run_page(run_dir)).words
    assert "rn50 train --config config.json" in words
    assert "50.00%" in words


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a run"):
        run_page(tmp_path)
