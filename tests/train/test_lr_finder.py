import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from rn50.cli import main
from rn50.errors import UsageError
from rn50.train.find_lr import CURVES, VALUES
from rn50.train.lr_finder import Range, Suggestion, read_curve, smoothed

LRS = Range(low=1e-4, high=10, steps=101).lrs()


def bowl(least: float) -> list[float]:
    """A loss that is flat, falls, has its least at ``least`` and then explodes."""
    return [3 - 2 / (1 + (math.log10(lr / least)) ** 2) + max(0, lr / least - 3) for lr in LRS]


def test_the_rates_are_even_in_the_logarithm():
    assert LRS[0] == pytest.approx(1e-4)
    assert LRS[-1] == pytest.approx(10)
    assert np.diff(np.log(LRS)) == pytest.approx(math.log(1e5) / 100)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"low": 0.0}, "both must be above 0"),
        ({"low": 2.0, "high": 1.0}, "the first the smaller one"),
        ({"steps": 5}, "needs at least 20"),
    ],
)
def test_a_range_that_cannot_be_swept_is_refused(values, told):
    with pytest.raises(UsageError, match=told):
        Range(**values)


def test_the_running_mean_of_a_constant_is_the_constant():
    assert smoothed([2.5] * 30) == pytest.approx([2.5] * 30)


def test_the_running_mean_follows_a_step_as_its_weights_say():
    smooth = smoothed([0.0] * 50 + [1.0] * 3)
    assert smooth[52] == pytest.approx((1 - 0.9**3) / (1 - 0.9**53))


def test_the_rules_read_what_the_curve_shows():
    losses = bowl(0.1)
    smooth = smoothed(losses)
    found = read_curve(0, LRS, losses, of=101)
    least = int(np.argmin(smooth))
    assert found.minimum_tenth == pytest.approx(LRS[least] / 10)
    falls = np.diff(smooth)[11:least]
    steepest = LRS[11 + int(np.argmin(falls))]
    assert found.steepest == pytest.approx(steepest, rel=0.3)
    assert found.steepest < LRS[least]
    assert not found.diverged


def test_a_sweep_that_ended_early_has_diverged():
    assert read_curve(0, LRS[:70], bowl(0.05)[:70], of=101).diverged


@pytest.mark.parametrize("losses", [[1.0 + i for i in range(101)], [], [1.0]])
def test_a_loss_that_never_falls_is_told_with_what_to_do(losses):
    with pytest.raises(UsageError, match=r"the loss does not fall .* give a lower --low, or more"):
        read_curve(3, LRS[: len(losses)], losses, of=101)


def test_several_sweeps_are_put_together_by_three_means():
    found = Suggestion.of([0.1, 0.2, 0.9])
    assert (found.mean, found.median) == pytest.approx((0.4, 0.2))
    assert found.geometric_mean == pytest.approx((0.1 * 0.2 * 0.9) ** (1 / 3))


@pytest.fixture(scope="module")
def swept(packed, tmp_path_factory):
    place = tmp_path_factory.mktemp("find") / "lr"
    words = (
        *("find-lr", "demo", "--data", str(packed), "--arch", "resnet18", "--device", "cpu"),
        *("--model.num-classes", "4", "--batch-size", "16", "--train-px", "32", "--workers", "1"),
        *("--precision", "fp32", "--steps", "24", "--runs", "2", "--seed", "5", "--low", "1e-3"),
    )
    main([*words, "--out", str(place)])
    return words, place


@pytest.mark.slow
def test_the_command_writes_curves_and_values_and_says_what_to_try(swept, capsys):
    words, place = swept
    values = json.loads((place / VALUES).read_text())
    assert [sweep["seed"] for sweep in values["sweeps"]] == [5, 6]
    assert values["sweeps"][0]["losses"] != values["sweeps"][1]["losses"]
    assert values["run"]["images"]["batch_size"] == 16
    assert (place / CURVES).read_bytes().startswith(b"\x89PNG")
    main([*words, "--out", str(place)])
    said = capsys.readouterr().out
    (tried,) = re.findall(r"for batches of 16, try --lr (\S+)", said)
    assert float(tried) == pytest.approx(values["suggested"], rel=0.06)
    assert json.loads((place / VALUES).read_text()) == values


@pytest.mark.slow
def test_a_sweep_begins_from_the_weights_that_the_run_would_begin_from(swept, tmp_path):
    words, _ = swept
    net = torchvision.models.resnet18(num_classes=4)
    nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.tensor([40.0, 0.0, 0.0, 0.0])
    torch.save(net.state_dict(), tmp_path / "sure.pth")
    main([*words, "--runs", "1", "--out", str(tmp_path), "--init-from", str(tmp_path / "sure.pth")])
    losses = json.loads((tmp_path / VALUES).read_text())["sweeps"][0]["losses"]
    assert losses[0] > 10


@pytest.mark.slow
def test_a_range_without_descent_is_refused_by_the_command(swept, capsys):
    words, place = swept
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(place), "--low", "50", "--high", "100"])
    assert stop.value.code == 2
    assert "the loss does not fall" in capsys.readouterr().err


@pytest.mark.long
def test_two_processes_find_what_one_finds(swept, tmp_path):
    words, place = swept
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rn50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *words, "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("try --lr") == 1
    one, two = (json.loads((p / VALUES).read_text()) for p in (place, tmp_path))
    for alone, shared in zip(one["sweeps"], two["sweeps"], strict=True):
        # BatchNorm's statistics are those of each process's share of a batch.
        assert shared["losses"][:3] == pytest.approx(alone["losses"][:3], rel=0.05)
        assert shared["lrs"][:3] == alone["lrs"][:3]
    assert abs(math.log(two["suggested"] / one["suggested"])) < math.log(4)
