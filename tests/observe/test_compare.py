import pytest
from histories import epoch, folder_of, start, whole, window
from matplotlib.collections import FillBetweenPolyCollection

from rn50.cli import main
from rn50.errors import UsageError
from rn50.observe.compare import Entry, comparison, gather, table, write
from rn50.observe.figures import accuracy
from rn50.observe.history import History
from rn50.observe.published import CURVES, curve

S3 = "s3-onecycle-50"


def run(epochs=3, *, recipe="demo", seconds=12.0, label="a", price=0.0, **more):
    records = [start(epochs=epochs, recipe=recipe, **more)]
    for n in range(1, epochs + 1):
        records += [window(40 * n - 20, seconds=seconds), window(40 * n, seconds=seconds)]
        records.append(epoch(n, average=0.2 * n))
    return Entry(label, History.of(records), price)


def drawn(axes):
    return {
        line.get_label().partition(":")[0]: list(
            zip(*([round(float(v), 6) for v in d] for d in line.get_data()), strict=True)
        )
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def bands(axes):
    return [one for one in axes.collections if isinstance(one, FillBetweenPolyCollection)]


def test_runs_are_laid_along_epochs_their_share_hours_and_dollars():
    # 30 s an epoch with its evaluation, and 6 minutes; 36 and 360 dollars an hour.
    cheap = run(2, label="cheap", price_per_hour=36.0)
    dear = run(4, seconds=177.0, label="dear", price=360.0)
    xs = {
        by: {label: [x for x, _ in points] for label, points in drawn(figure.axes[0]).items()}
        for by in ("epoch", "fraction", "hour", "dollar")
        if (figure := comparison([cheap, dear], by))
    }
    assert xs["epoch"] == {"cheap": [1, 2], "dear": [1, 2, 3, 4]}
    assert xs["fraction"] == {"cheap": [0.5, 1], "dear": [0.25, 0.5, 0.75, 1]}
    assert xs["hour"]["cheap"] == pytest.approx([1 / 120, 2 / 120], abs=1e-6)
    assert xs["hour"]["dear"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert xs["dollar"]["cheap"] == pytest.approx([0.3, 0.6])
    assert xs["dollar"]["dear"] == pytest.approx([36, 72, 108, 144])


def test_a_comparison_shows_top1_and_loss_of_the_network_asked_for_with_units():
    figure = comparison([run()], "hour")
    top1, loss = figure.axes
    assert [y for _, y in drawn(top1)["a"]] == [0.2, 0.4, 0.6]
    assert [y for _, y in drawn(loss)["a"]] == [2.3, 2.1, 1.9]
    assert top1.get_ylabel() == "validation top-1 accuracy"
    assert (loss.get_xlabel(), loss.get_ylabel()) == (
        "hours of machine time",
        "validation loss (nats)",
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a: average 60.00%"]
    assert legend.get_title().get_text() == "run: network and its last top-1"
    (top1, _) = comparison([run()], which="model").axes
    assert [y for _, y in drawn(top1)["a"]] == [0.1, 0.2, 0.3]
    assert comparison([run()], which="swa") is None


def test_a_run_without_a_price_is_not_laid_along_dollars_unless_one_is_given():
    assert comparison([run()], "dollar") is None
    figure = comparison([run(), run(label="b", price=2.0)], "dollar")
    assert set(drawn(figure.axes[0])) == {"b"}


def test_the_published_curve_of_a_recipe_is_a_band_up_to_the_last_epoch_shown():
    entry = run(12, recipe=S3)
    figure = comparison([run(label="other"), entry])
    (band,) = bands(figure.axes[0])
    corners = band.get_paths()[0].vertices
    assert (corners[:, 0].min(), corners[:, 0].max()) == (2, 10)
    at_5 = sorted({round(y, 4) for x, y in corners if x == 5})
    assert at_5 == [0.3883, 0.4083]
    label = "published ± 1 point (S3: ResNet-50, one T4, OneCycle, 50 epochs)"
    assert band.get_label() == label
    assert label in [text.get_text() for text in figure.legends[0].get_texts()]
    by_share = bands(comparison([entry], "fraction").axes[0])[0].get_paths()[0].vertices
    assert by_share[:, 0].max() == 1.0
    assert not bands(comparison([entry], "hour").axes[0])
    assert not bands(comparison([run()]).axes[0])
    assert bands(comparison([run(12)], reference=CURVES[S3]).axes[0])


def test_a_run_of_the_recipe_shows_the_band_in_its_own_figure():
    top1, top5 = accuracy(run(12, recipe=S3).history).axes
    assert "published ± 1 point" in bands(top1)[0].get_label()
    assert bands(top5)[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(0.7708)
    assert not any(bands(axes) for axes in accuracy(run(12).history).axes)
    assert bands(accuracy(run(12).history, CURVES[S3]).axes[0])


def test_the_published_curve_is_the_one_on_record():
    known = dict(CURVES[S3].of("top1", 51))
    assert len(known) == 14
    assert (known[2], known[40], known[51]) == pytest.approx((0.1183, 0.6223, 0.7527))
    assert dict(CURVES[S3].of("top5", 51))[51] == pytest.approx(0.9256)
    with pytest.raises(UsageError, match=r"curve is known of 's3'.*name a recipe .*: s3-onecycle"):
        curve("s3")


def test_more_runs_than_colours_differ_by_style_and_marker_too():
    figure = comparison([run(label=f"run-{n}") for n in range(24)])
    lines = figure.axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 24
    assert len(figure.legends[0].get_texts()) == 24


def test_runs_are_told_apart_by_as_much_of_their_paths_as_it_takes(tmp_path):
    places = ["x/demo", "y/demo", "y/other", "y/demo-2"]
    for place in places:
        folder_of(tmp_path / place, whole())
    entries, refused = gather([tmp_path / place for place in (*places, "x/../x/demo")])
    assert [entry.label for entry in entries.values()] == [
        "x/demo",
        "y/demo",
        "other (demo)",
        "demo-2",
    ]
    assert refused == []


def test_the_table_tells_last_and_best_score_hours_and_cost():
    never = Entry("b|c", History.of([start()]))
    text = table([run(price=3600.0), never])
    row, other = text.splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    last = ["average", "60.00%", "60.00%", "3", "0.03", "90.00"]
    assert cells == ["a", "demo", "not finished, 3 of 3 epochs done", *last]
    assert other.startswith("| b\\|c | demo | not finished, 0 of 5 epochs done | - | - |")


def test_what_could_not_be_compared_is_told(tmp_path):
    entries = [run(price=1.0), run(label="b"), Entry("c", History.of([start()]))]
    files, notes = write(entries, tmp_path / "out")
    assert [file.name for file in files] == [
        "comparison.md",
        *(f"comparison-{by}.png" for by in ("epoch", "fraction", "hour", "dollar")),
    ]
    assert all(file.stat().st_size for file in files)
    assert notes == [
        "not compared: c: no epoch of its network 'auto' was evaluated yet",
        "not compared by dollar: b: its price is unknown (give --price-per-hour)",
    ]
    files, notes = write([run()], tmp_path / "out")
    assert len(files) == 4
    assert notes == []
    assert "price is unknown" in write([run()], tmp_path / "out", ("dollar",))[1][0]


def ran(*words):
    try:
        main(["plot", *map(str, words)])
    except SystemExit as stop:
        return stop.code
    return 0


OWN = {"training_log.md", "history.json", "loss.png", "accuracy.png", "lr.png", "throughput.png"}


def test_plot_draws_a_runs_files_anew_in_its_folder_or_elsewhere(tmp_path, capsys):
    place = folder_of(tmp_path / "demo", whole())
    assert ran(place) == 0
    assert {file.name for file in place.iterdir()} == {"metrics.jsonl", "config.json", *OWN}
    assert "demo, finished: wrote" in capsys.readouterr().out
    assert ran(place, "--out", tmp_path / "out", "--by", "hour") == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {*OWN, "comparison.md", "comparison-hour.png"}


def test_plot_of_several_runs_leaves_out_what_is_none_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "a", whole(3))
    folder_of(tmp_path / "b", whole(4))
    folder_of(tmp_path / "empty", [])
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    assert ran("a", "nowhere", "b", "empty", "--price-per-hour", "3") == 0
    told = capsys.readouterr()
    assert "left out: nowhere does not exist; name the folder of a run\n" in told.err
    assert "b: the last line of metrics.jsonl is torn" in told.err
    assert "empty: metrics.jsonl is empty: the run did not begin" in told.err
    assert "not compared: empty (demo): no epoch" in told.err
    made = {file.name for file in (tmp_path / "comparison").iterdir()}
    assert made == {
        "comparison.md",
        *(f"comparison-{by}.png" for by in ("epoch", "fraction", "hour", "dollar")),
    }
    assert (tmp_path / "b" / "loss.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the folder of a run, or several: rn50 plot runs/demo"),
        (["nowhere", "neither"], "nowhere does not exist; name the folder of a run; neither does"),
        (["demo", "--reference", "demo"], "no published curve is known of 'demo'"),
        (["demo", "--price-per-hour", "-1"], "--price-per-hour is -1.0; give dollars, 0 or more"),
        (["demo", "--price-per-hour", "nan"], "--price-per-hour is nan; give dollars, 0 or more"),
        (["demo", "--by", "mile"], "mile"),
    ],
)
def test_plot_refuses_what_it_cannot_draw(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "demo", whole())
    assert ran(*words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "demo" / "loss.png").exists()


def test_plot_compares_runs_whose_folders_may_not_be_written(tmp_path, capsys, monkeypatch):
    from rn50.observe import files

    def refused(history, folder, reference=None):
        raise UsageError(f"cannot write {folder}: permission is denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "write_history", refused)
    folder_of(tmp_path / "a", whole(3))
    folder_of(tmp_path / "b", whole(4))
    assert ran("a", "b") == 0
    assert "not drawn anew: cannot write a: permission is denied" in capsys.readouterr().err
    assert (tmp_path / "comparison" / "comparison-epoch.png").exists()
    assert ran("a") == 2
