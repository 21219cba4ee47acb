"""Settings that cannot be are refused on the command line: one line, exit code 2, the reason."""

import pytest

from rn50.cli import main

ONECYCLE = ("--lr-schedule", "onecycle", "--warmup-epochs", "0")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--mixup-alpha", "-0.1"), "mixup_alpha is -0.1: input should be greater than or equal"),
        (("--cutmix-alpha", "-1"), "cutmix_alpha is -1.0: input should be greater than or equal"),
        (("--epochs", "5"), "warm-up must end before the run"),
        (("--images.sizes", "0", "128", "90", "224"), "224 px from epoch 90 on, but the run's"),
        (
            ("--lr-schedule", "step", "--schedule.milestones", "30", "95"),
            "every milestone must come before",
        ),
        (("--schedule.tail-epochs", "85"), "the tail must be shorter than they are"),
        (
            ("--images.sizes", "0", "100", "9", "224"),
            "must be divisible by 32, by which the network",
        ),
        ((*ONECYCLE, "--schedule.tail-epochs", "5"), "a tail of 5 epochs would raise it again"),
        (ONECYCLE[:2], "onecycle warms up by itself"),
        (
            ("--loss", "bce", "--loss.bce-threshold", "0.2", "--label-smoothing", "0.1"),
            "the threshold makes every target 0 or 1 again, which undoes smoothing",
        ),
        (("--loss.bce-threshold", "0.2"), "bce_threshold is 0.2, but the loss is cross-entropy"),
        (
            ("--loss", "bce", "--loss.bce-over-classes", "mean"),
            "bce_over_classes is mean, which divides the gradient by the number of classes, and",
        ),
        (("--augment.repeats", "3", "-b", "4"), "a batch has only 4 images; it must hold two"),
        (("--mixup-alpha", "0.2", "-b", "9"), "images are mixed in pairs; make it even"),
        (("--price-per-hour", "-1"), "price_per_hour is -1.0: input should be greater than or"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(words, reason, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "imagenet-90", "--dry-run", *words])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.startswith("rn50: error: ")
    assert told.count("\n") == 1
