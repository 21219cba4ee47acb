import dataclasses

import pytest

from observe.histories import PRICE, epoch, folder_of, start, window
from report.test_page import Outline
from rn50 import config
from rn50.errors import UsageError
from rn50.observe.compare import gather
from rn50.recipes import recipe
from rn50.report.comparison import comparison_page, differing, over_seeds

RUN = dataclasses.replace(recipe("demo"), epochs=5)


def folder(place, *, seed=0, top1=0.5, lr=0.1, finished=True, average=None):
    run = dataclasses.replace(RUN, seed=seed, optim=dataclasses.replace(RUN.optim, peak_lr=lr))
    records = [start(price_per_hour=PRICE), window(20), window(40)]
    records.append(epoch(1, top1=top1, average=average))
    if finished:
        records.append({"kind": "end", "step": 200, "timing": {}})
    return folder_of(place, records, config.to_dict(run))


def rows_of(page: str) -> list[list[str]]:
    """Return the cells of the first table, row by row."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return [Outline(f"<table>{row}</tr></table>").text for row in body.split("</tr>")[:-1]]


def test_each_run_has_its_row_and_a_network_it_lacks_leaves_a_dash(tmp_path):
    one = folder(tmp_path / "one", top1=0.5, average=0.6)
    other = folder(tmp_path / "other", top1=0.25)
    page = comparison_page([one, other])
    cells = rows_of(page)
    assert cells[0][3:7] == ["50.00% ± 2.04%", "75.00%", "60.00% ± 2.00%", "90.00%"]
    assert cells[1][3:7] == ["25.00% ± 1.77%", "37.50%", "-", "-"]
    assert cells[0][9] == f"${30 / 3600 * PRICE:,.2f}"
    words = Outline(page).words
    assert "2 runs beside each other" in words
    assert "Validation of 2 runs by epoch" in words
    assert "Validation of 2 runs by dollar" in words


def test_runs_that_differ_in_their_seed_alone_are_taken_together(tmp_path):
    seeds = [folder(tmp_path / f"seed{n}", seed=n, top1=0.5 + 0.01 * n) for n in range(3)]
    again = folder(tmp_path / "again", seed=2, top1=0.52)  # the same seed is no further one
    other = folder(tmp_path / "other", lr=0.2)
    running = folder(tmp_path / "running", seed=9, finished=False)
    entries = list(gather([*seeds, again, other, running])[0].values())
    (row,) = over_seeds(entries)
    assert row["seeds"] == "3"
    assert row["model, top-1"] == "51.00% ± 1.00%"
    assert over_seeds(entries[:1] + entries[4:]) == []


def test_what_differs_is_told_by_setting(tmp_path):
    runs = [folder(tmp_path / "one"), folder(tmp_path / "other", lr=0.2)]
    (row,) = differing(list(gather(runs)[0].values()))
    assert row == {"setting": "optim.peak_lr", "one (demo)": "0.1", "other (demo)": "0.2"}


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    said: list[str] = []
    runs = [folder(tmp_path / "one"), tmp_path / "none", folder(tmp_path / "other")]
    words = Outline(comparison_page(runs, say=said.append)).words
    assert "2 runs beside each other" in words
    assert "What is missing" in words
    assert len(said) == 1
    assert "none does not exist" in said[0]
    with pytest.raises(UsageError, match="does not exist"):
        comparison_page([tmp_path / "none", tmp_path / "nor this"])
