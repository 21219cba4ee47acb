import dataclasses
import json

import pytest

from rn50 import cli, config
from rn50.config import Augment, Hardware, Mix
from rn50.errors import UsageError
from rn50.recipes import recipe


def a_run(**changes):
    return dataclasses.replace(recipe("cifar10-resnet18"), **changes)


def of_size(batch_size: int):
    return dataclasses.replace(recipe("cifar10-resnet18").images, batch_size=batch_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": of_size(25)}, "images.batch_size is 25, but images are mixed in pairs; make"),
        ({"hardware": Hardware(micro_batch=3)}, "hardware.micro_batch is 3, but images are mixed"),
    ],
)
def test_odd_batches_cannot_be_mixed(changes, message):
    a_run(**changes)
    with pytest.raises(UsageError, match=message):
        a_run(**changes, mix=Mix(cutmix_alpha=1.0))


def test_a_batch_must_hold_two_images_as_often_as_each_is_repeated():
    a_run(images=of_size(6), augment=Augment(repeats=3))
    with pytest.raises(UsageError, match=r"repeats is 4, but .* only 6 .* give --batch-size 8 or"):
        a_run(images=of_size(6), augment=Augment(repeats=4))


def test_augmentation_and_mixing_count_as_mathematics():
    names = config.mathematics(a_run())
    assert {"augment.policy", "augment.repeats", "mix.mixup_alpha", "mix.prob"} < {*names}


def test_the_fields_everyday_flags_are_understood(capsys):
    words = ("--mixup-alpha", "0.2", "--cutmix-alpha", "1", "--random-erase", "0.1")
    cli.main(["train", "--dry-run", "--auto-augment", "trivialaugment", *words])
    run = json.loads(capsys.readouterr().out)
    assert run["augment"]["policy"] == "trivialaugment"
    assert run["augment"]["erase_prob"] == 0.1
    assert (run["mix"]["mixup_alpha"], run["mix"]["cutmix_alpha"]) == (0.2, 1.0)
