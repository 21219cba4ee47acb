import io

import pytest
from histories import epoch, start, whole, window
from matplotlib.colors import to_hex
from PIL import Image

from rn50.observe.figures import FIGURES, accuracy, loss, png, schedule, throughput
from rn50.observe.history import History

EVENTS = [
    start("resume", 60),
    start("resume", 100),
    {"kind": "rollback", "step": 140, "message": "went back"},
    {"kind": "stall", "step": 30, "message": "slow", "cause": "saving", "timing": {}},
]


def drawn(axes):
    """The points of each line of a panel, by its label."""
    return {
        line.get_label().split(" (")[0]: list(
            zip(line.get_xdata(), [round(y, 6) for y in line.get_ydata()], strict=True)
        )
        for line in axes.lines
    }


def with_networks():
    return History.of(
        [
            start(),
            *(window(step) for step in (20, 40, 60, 80)),
            epoch(1, top1=0.2, average=0.4),
            epoch(2, top1=0.3, average=0.5, swa=0.6),
        ]
    )


def test_the_loss_is_drawn_of_training_within_and_by_epoch_and_of_each_network():
    (axes,) = loss(with_networks()).axes
    lines = drawn(axes)
    assert [x for x, _ in lines["training, within epochs"]] == [0.5, 1.0, 1.5, 2.0]
    assert lines["training"] == [(1, 2.0), (2, 1.0)]
    assert lines["validation"] == [(1, 2.3), (2, 2.2)]
    assert lines["validation, average"] == [(1, 2.1), (2, 2.0)]
    assert lines["validation, SWA"] == [(2, 1.9)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss (nats)")


def test_accuracy_is_drawn_as_top1_of_training_and_networks_and_as_top5():
    top1, top5 = accuracy(with_networks()).axes
    assert drawn(top1)["training"] == [(1, 0.1), (2, 0.2)]
    assert [x for x, _ in drawn(top1)["training, within epochs"]] == [0.5, 1.0, 1.5, 2.0]
    for axes, one, average, swa in ((top1, 0.2, 0.4, 0.6), (top5, 0.3, 0.6, 0.9)):
        assert drawn(axes)["validation"][0] == (1, one)
        assert drawn(axes)["validation, average"][0] == (1, average)
        assert drawn(axes)["validation, SWA"] == [(2, swa)]
    assert (top1.get_ylabel(), top5.get_ylabel()) == ("top-1 accuracy", "top-5 accuracy")
    assert top1.yaxis.get_major_formatter()(0.5) == "50%"
    labels = [text.get_text() for text in top1.get_legend().get_texts()]
    assert "validation, SWA (last 60.00%)" in labels


def test_the_schedule_shows_rate_and_image_sizes_as_steps_with_the_size_of_validation():
    sizes = {20: 64, 40: 64, 60: 96, 80: 128}
    windows = [window(step, px=px, lr=step / 100) for step, px in sizes.items()]
    rate, size = schedule(History.of([start(), *windows], {"images": {"test_px": 160}})).axes
    assert drawn(rate)["learning rate"] == [(0.5, 0.2), (1.0, 0.4), (1.5, 0.6), (2.0, 0.8)]
    steps = [(0.0, 64), (1.0, 64), (1.0, 96), (1.5, 96), (1.5, 128), (2.0, 128)]
    assert drawn(size)["training images"] == steps
    assert {y for _, y in drawn(size)["validation images"]} == {160}
    assert list(size.get_yticks()) == [64, 96, 128, 160]
    assert size.get_ylabel() == "image side (px)"


def test_throughput_shows_speed_data_wait_stalls_slow_epochs_and_what_was_measured_of_the_gpu():
    windows = [window(step, seconds=10.0) for step in (20, 40, 60, 80)]
    windows[1]["timing"] |= {"data_wait": 0.4, "gpu_utilisation": 0.9, "saving_s": 10.0}
    epochs = [epoch(n, seconds=60.0 if n == 2 else 24.0) for n in range(1, 4)]
    stall = {"kind": "stall", "step": 60, "message": "slow", "cause": "", "timing": {}}
    speed, share = throughput(History.of([start(), *windows, *epochs, stall])).axes
    assert drawn(speed)["within epochs"][0] == (0.5, 128.0)
    assert drawn(speed)["by epoch"] == [(n, 104.0) for n in (1, 2, 3)]
    assert drawn(speed)["stall"] == [(1.5, 1.0)]
    assert drawn(speed)["slow epoch"] == [(2, 104.0)]
    assert [y for _, y in drawn(share)["waiting for data"]] == [0.02, 0.4, 0.02, 0.02]
    assert drawn(share)["GPU utilisation"] == [(1.0, 0.9)]
    assert drawn(share)["waiting for a checkpoint"] == [(1.0, 0.5)]
    assert "data-bound above 20%" in drawn(share)
    assert (speed.get_ylabel(), share.get_ylabel()) == ("images per second", "share of time")


def test_what_was_never_measured_has_no_line():
    speed, share = throughput(History.of(whole(3))).axes
    assert set(drawn(speed)) == {"within epochs", "by epoch"}
    assert set(drawn(share)) == {"waiting for data"}


@pytest.mark.parametrize("draw", FIGURES.values())
def test_every_panel_marks_restarts_and_the_first_explains_them(draw):
    figure = draw(History.of([*whole(), *EVENTS]))
    for axes in figure.axes:
        tops = [list(line.get_xdata()) for line in axes.lines if line.get_marker() in "v<"]
        assert tops == [[1.5, 2.5], [3.5]]
        stems = [segment[0][0] for stem in axes.collections for segment in stem.get_segments()]
        assert {1.5, 2.5, 3.5} <= set(stems)
    told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert {"resumed (2 times)", "rolled back"} <= set(told)


@pytest.mark.parametrize("draw", FIGURES.values())
def test_lines_differ_without_their_colours_and_every_panel_has_a_label(draw):
    figure = draw(with_networks())
    for axes in figure.axes:
        looks = {
            (line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in axes.lines
        }
        assert len(looks) == len(axes.lines)
        assert axes.get_ylabel()
        assert len({to_hex(line.get_color()) for line in axes.lines}) >= len(axes.lines) - 1
    assert figure.axes[-1].get_xlabel() == "epoch"
    assert figure.get_suptitle().startswith("demo: ")


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "records",
    [
        [],
        [start()],
        [start(), window(20)],
        [start(), window(20, loss=None, lr=None, top1=None, px=None)],
        [epoch(1)],
        [epoch(1, val=None, train_loss=None, train_top1=None, lr=None, px=None, timing=None)],
        [{"kind": "resume", "step": 20}, {"kind": "stall", "step": 1, "message": "slow"}],
    ],
)
def test_runs_that_hardly_began_give_a_picture_all_the_same(records, name):
    picture = Image.open(io.BytesIO(png(FIGURES[name](History.of(records)))))
    assert picture.width == 1200
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_where_nothing_was_recorded_every_figure_says_so():
    for draw in FIGURES.values():
        for axes in draw(History.of([start()])).axes:
            assert [text.get_text() for text in axes.texts] == ["nothing was recorded yet"]


def test_losses_none_of_which_was_finite_are_told_as_such():
    records = [start(), window(20, loss=None), epoch(1, val=None, train_loss=None)]
    (axes,) = loss(History.of(records)).axes
    assert [text.get_text() for text in axes.texts] == ["no value was finite"]


@pytest.mark.parametrize("recipe", [r"p$\frac{1$", "cost $5 and $6", "_", "金魚 🐟", "<b>&amp;"])
@pytest.mark.parametrize("name", FIGURES)
def test_a_name_is_drawn_as_it_is_written(recipe, name):
    figure = FIGURES[name](History.of(whole(2, recipe=recipe)))
    assert png(figure)
    assert figure._suptitle._preprocess_math(recipe) == (recipe, False)


def test_a_few_huge_losses_do_not_flatten_the_others_and_are_told():
    windows = [window(step, loss=1e6 if step < 3 else 2.0) for step in range(1, 101)]
    (axes,) = loss(History.of([start(), *windows])).axes
    assert axes.get_ylim()[1] < 10
    assert axes.get_title(loc="right") == "2 higher values are not shown"


def test_many_windows_are_thinned_to_what_can_be_seen():
    windows = [window(step) for step in range(1, 10_001)]
    (axes,) = loss(History.of([start(), *windows])).axes
    assert 1000 <= len(drawn(axes)["training, within epochs"]) <= 2000
