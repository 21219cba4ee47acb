import sys
import warnings

import pytest

from rn50.errors import UsageError
from rn50.observe.trackers import TensorBoard


def window(step, loss):
    timing = {"seconds": 1.0, "images_per_second": 104.0, "data_wait": 0.02}
    record = {"kind": "train", "step": step, "epoch": step / 40, "loss": loss, "top1": None}
    return {**record, "lr": 0.05, "px": 64, "timing": timing}


EPOCH = {
    "kind": "epoch",
    "step": 40,
    "epoch": 1,
    "train_loss": 2.0,
    "train_top1": 0.25,
    "lr": 0.05,
    "px": 64,
    "val": {"model": {"loss": 1.5, "top1": 0.5, "top5": 0.75, "images": 600}},
    "timing": {"seconds": 12.0, "images_per_second": 104.0, "data_wait": 0.0, "eval_seconds": 2.0},
}


@pytest.fixture
def scalars():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        events = EventAccumulator(str(folder)).Reload()
        return {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }

    return read


def test_scalars_of_train_and_epoch_records_can_be_read_back(tmp_path, scalars):
    board = TensorBoard(tmp_path)
    for record in ({"kind": "start", "step": 0}, window(20, 2.5), window(40, None), EPOCH):
        board.write(record)
    board.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(20, 2.5)]
    assert found["schedule/px"] == [(20, 64.0), (40, 64.0)]
    assert found["speed/images_per_second"] == [(20, 104.0), (40, 104.0)]
    assert found["val_model/top1"] == [(40, 0.5)]
    assert found["epoch/seconds"] == [(40, 12.0)]
    assert "train/top1" not in found


def test_an_epoch_without_evaluation_has_no_validation_scalars(tmp_path, scalars):
    board = TensorBoard(tmp_path)
    board.write({**EPOCH, "val": None})
    board.close()
    assert not [name for name in scalars(tmp_path) if name.startswith("val")]


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path, scalars):
    first = TensorBoard(tmp_path)
    for step in (20, 40, 60, 80):
        first.write(window(step, 1.0))
    first.close()
    second = TensorBoard(tmp_path, resume_step=40)
    second.write(window(60, 2.0))
    second.close()
    assert scalars(tmp_path)["train/loss"] == [(20, 1.0), (40, 1.0), (60, 2.0)]


def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'rn50\[track\]'"):
        TensorBoard(tmp_path)
