import dataclasses
import json

import pytest

from rn50 import config
from rn50.config import Average, Hardware, Images, Loss, Model, Optim, Run, Schedule, Storage
from rn50.errors import UsageError


def a_run(**changes) -> Run:
    values = {
        "recipe": "test",
        "epochs": 10,
        "seed": 3,
        "model": Model(arch="resnet18", num_classes=7, stem="small"),
        "images": Images(batch_size=32, crop_area=(0.3, 0.9), mean=(0.1, 0.2, 0.3)),
        "optim": Optim(peak_lr=0.125),
        "schedule": Schedule(warmup_epochs=2.5),
        "hardware": Hardware(device="cpu", workers=3),
        "storage": Storage(data="/somewhere"),
    }
    return Run(**(values | changes))


def refusal(make, *arguments, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        make(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_setting(name: str, value) -> dict:
    values = config.to_dict(a_run())
    *sections, last = name.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[last] = value
    return values


def test_a_run_survives_json():
    run = a_run()
    assert config.from_dict(json.loads(json.dumps(config.to_dict(run)))) == run


def test_a_run_is_read_from_the_file_it_was_written_to(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict(a_run())))
    assert config.load(path) == a_run()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null"])
def test_a_file_without_settings_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert "give the config.json of a run" in refusal(config.load, path)


def test_a_binary_file_a_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "a.bin", tmp_path, tmp_path / "absent.json"):
        assert f"cannot read the settings in {path}" in refusal(config.load, path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim.peak_lrr", "optim.peak_lr"),
        ("optim.weightdecay", "optim.weight_decay"),
        ("epoch", "epochs"),
        ("images.batchsize", "images.batch_size"),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_that_was_meant(name, meant):
    message = refusal(config.from_dict, with_setting(name, 1))
    assert message == f"there is no setting '{name}'; did you mean '{meant}'?"


def test_a_name_like_no_other_is_refused_without_a_hint():
    assert refusal(config.from_dict, with_setting("xyzzy", 1)) == "there is no setting 'xyzzy'"


def test_an_unknown_name_is_refused_where_a_section_is_made():
    assert "there is no setting 'optim.nestrov'" in refusal(Optim, peak_lr=1, nestrov=True)
    assert "did you mean 'optim.nesterov'?" in refusal(Optim, peak_lr=1, nestrov=True)


def test_a_missing_setting_is_named():
    values = config.to_dict(a_run())
    del values["optim"]["peak_lr"]
    assert refusal(config.from_dict, values) == "the setting 'optim.peak_lr' is missing; add it"
    assert refusal(Optim) == "the setting 'optim.peak_lr' is missing; add it"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs is 0: input should be greater than or equal to 1"),
        ("seed", -1, "seed is -1: input should be greater than or equal to 0"),
        ("optim.peak_lr", 0, "optim.peak_lr is 0: input should be greater than 0"),
        ("optim.peak_lr", float("nan"), "optim.peak_lr is nan: input should be a finite number"),
        ("optim.peak_lr", "fast", "optim.peak_lr is 'fast': input should be a valid number"),
        ("optim.momentum", 1.0, "optim.momentum is 1.0: input should be less than 1"),
        ("model.arch", "vgg", "model.arch is 'vgg': input should be 'resnet18'"),
        ("images.train_px", 7, "images.train_px is 7: input should be greater"),
        ("images.flip_prob", 1.01, "images.flip_prob is 1.01: input should be less than or equal"),
        ("images.crop_area", [0.5, 0.4], "images: crop_area is (0.5, 0.4); it must ascend"),
        ("images.crop_area", [0.5, 1.1], "images: crop_area is (0.5, 1.1); it must ascend"),
        ("images.crop_area", [0.0, 1.0], "images.crop_area.0 is 0.0: input should be greater"),
        ("images.crop_ratio", [2.0, 1.0], "images: crop_ratio is (2.0, 1.0); it must ascend"),
        ("images.std", [1.0, 0.0, 1.0], "images.std.1 is 0.0: input should be greater than 0"),
        ("images.test_px", 300, "images: test_resize_px is 256; it must be at least test_px (300)"),
        ("loss.label_smoothing", 1.0, "loss.label_smoothing is 1.0: input should be less than 1"),
        ("hardware.workers", -1, "hardware.workers is -1: input should be greater than"),
        ("model", 3, "model is 3: "),
    ],
)
def test_a_value_out_of_its_range_is_refused_in_one_line(name, value, message):
    assert message in refusal(config.from_dict, with_setting(name, value))


def test_momentum_0_needs_nesterov_off():
    assert "nesterov needs a momentum above 0" in refusal(Optim, peak_lr=1, momentum=0)
    assert Optim(peak_lr=1, momentum=0, nesterov=False).momentum == 0


def test_two_mistakes_are_told_together():
    message = refusal(Optim, peak_lr=0, momentum=2)
    assert "optim.peak_lr is 0" in message
    assert "optim.momentum is 2" in message


@pytest.mark.parametrize("warmup", [10, 11.5])
def test_a_warm_up_that_outlasts_the_run_is_refused(warmup):
    message = refusal(a_run, schedule=Schedule(warmup_epochs=warmup))
    assert f"schedule.warmup_epochs is {warmup:g}, but the run has only 10 epochs" in message
    assert a_run(schedule=Schedule(warmup_epochs=9.99)).epochs == 10


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"warmup_epochs": 2, "tail_epochs": 8}, "tail_epochs is 8, but only 8 of the run's 10"),
        ({"warmup_epochs": 0, "tail_epochs": 12}, "tail_epochs is 12, but only 10 of the run's"),
        (
            {"tail_epochs": 2, "tail_anneal_epochs": 3},
            "tail_anneal_epochs is 3, which is longer than the tail (2 epochs)",
        ),
        (
            {"tail_epochs": 2, "tail_cycle_epochs": 4},
            "tail_cycle_epochs is 4, which is longer than the tail (2 epochs)",
        ),
        (
            {"name": "step", "milestones": (3, 10)},
            "milestones has 10, but the schedule ends after 10 epochs",
        ),
        (
            {"name": "step", "milestones": (8,), "tail_epochs": 2},
            "milestones has 8, but the schedule ends after 8 epochs",
        ),
    ],
)
def test_a_phase_that_outlasts_the_run_is_refused(schedule, message):
    assert message in refusal(a_run, schedule=Schedule(**schedule))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "onecycle", "warmup_epochs": 0, "tail_epochs": 2},
            "onecycle ends at almost no learning rate, and a tail of 2 epochs would raise it again",
        ),
        ({"name": "onecycle"}, "onecycle warms up by itself; set --warmup-epochs 0"),
        (
            {"name": "onecycle", "warmup_epochs": 0, "three_phase": True, "rise": 0.6},
            "rise is 0.6; with three_phase the fall is as long",
        ),
        ({"cycle_momentum": (0.8, 0.9)}, "cycle_momentum belongs to --schedule.name onecycle"),
        ({"name": "step"}, "give milestones, in epochs, with --schedule.name step"),
        ({"milestones": (3,)}, "give milestones, in epochs, with --schedule.name step and only"),
        ({"name": "step", "milestones": (3, 2)}, "milestones are (3.0, 2.0); they must ascend"),
        ({"name": "triangular", "warmup_inside": True}, "triangular has no such clock"),
        (
            {"tail_epochs": 2, "tail_cycle_epochs": 1, "tail_lr": 0.1, "tail_low": 0.2},
            "tail_low is 0.2; it must be at most tail_lr (0.1)",
        ),
        (
            {"tail_epochs": 2, "tail_cycle_epochs": 1, "tail_anneal_epochs": 1},
            "tail_cycle_epochs and tail_anneal_epochs are both set",
        ),
    ],
)
def test_settings_of_a_schedule_that_contradict_each_other_are_refused(settings, message):
    assert message in refusal(Schedule, **settings)


def test_a_decoupled_decay_is_a_share():
    assert "must be below 1" in refusal(Optim, peak_lr=1, name="sgdw", weight_decay=1.0)
    assert Optim(peak_lr=1, name="adamw", momentum=0).nesterov


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((0, 64), (10, 224)), "images.sizes has 224 px from epoch 10 on, but the run's epochs"),
        (((5, 64), (5, 96)), "images: sizes begin at the epochs [5, 5]; these must ascend"),
        (
            tuple((epoch, 64 + 32 * epoch) for epoch in range(6)),
            "images: sizes has 6 different sides; at most five",
        ),
        (((0, 100),), "images.sizes has 100 px; a size on the way to train_px must be divisible"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    def make() -> Run:
        net = Model(arch="resnet18", num_classes=7)
        return a_run(model=net, images=Images(batch_size=32, train_px=176, sizes=sizes))

    assert message in refusal(make)


@pytest.mark.parametrize(
    ("scales", "sizes", "message"),
    [
        (
            (128, 160),
            (),
            "images: multi_scale is (128, 160); it must be two sides or more that asc",
        ),
        ((176, 192), (), "ascend to train_px, which is 176"),
        ((160, 128, 176), (), "multi_scale is (160, 128, 176); it must be two sides or more"),
        ((160, 160, 176), (), "multi_scale is (160, 160, 176); it must be two sides or more"),
        ((176,), (), "multi_scale is (176,); it must be two sides or more"),
        ((100, 176), (), "images.multi_scale has 100 px; a size on the way to train_px must be"),
        ((128, 176), ((0, 176),), "sizes begin at epoch 0 and leave multi_scale no epoch"),
        (
            (64, 96, 128, 160, 176),
            ((8, 192),),
            "sizes has 6 different sides with multi_scale; at most five",
        ),
        ((4, 176), (), "images.multi_scale.0 is 4: input should be greater than or equal to 8"),
    ],
)
def test_scales_that_cannot_be_are_refused(scales, sizes, message):
    def make() -> Run:
        images = Images(batch_size=32, train_px=176, multi_scale=scales, sizes=sizes)
        return a_run(model=Model(arch="resnet18", num_classes=7), images=images)

    assert message in refusal(make)


def test_scales_hold_until_sizes_begin():
    images = Images(batch_size=32, train_px=176, multi_scale=(128, 176), sizes=((2, 160), (4, 192)))
    sides = [(128, 176), (128, 176), (160,), (160,), (192,)]
    assert [images.sides_at(epoch) for epoch in range(5)] == sides
    assert [images.px_at(epoch) for epoch in range(5)] == [side[-1] for side in sides]
    assert Images(batch_size=32, train_px=120).sides_at(99) == (120,)
    run = a_run(model=Model(arch="resnet18", num_classes=7), images=images)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(run)))) == run
    assert config.mathematics(run)["images.multi_scale"] == [128, 176]


def test_sizes_hold_from_their_epoch_on_and_train_px_before():
    images = Images(batch_size=32, train_px=176, sizes=((2, 128), (4, 176)))
    assert [images.px_at(epoch) for epoch in range(6)] == [176, 176, 128, 128, 176, 176]
    assert Images(batch_size=32, train_px=120).px_at(99) == 120
    run = a_run(model=Model(arch="resnet18", num_classes=7), images=images)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(run)))) == run


def test_settings_cannot_be_changed():
    run = a_run()
    for section, name in ((run, "epochs"), (run.optim, "peak_lr"), (run.images, "mean")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, name, 1)


def test_a_changed_copy_is_checked_too():
    assert dataclasses.replace(a_run().optim, peak_lr=2.0).peak_lr == 2.0
    message = refusal(dataclasses.replace, a_run().optim, peak_lr=-2.0)
    assert "optim.peak_lr is -2.0" in message


def test_the_mathematics_are_flat_and_leave_out_how_and_where():
    told = config.mathematics(a_run())
    assert told["optim.peak_lr"] == 0.125
    assert told["images.crop_area"] == [0.3, 0.9]
    assert told["seed"] == 3
    other = a_run(
        hardware=Hardware(device="cpu", precision="bf16", micro_batch=4),
        storage=Storage(output_dir="elsewhere"),
        recipe="another",
    )
    assert config.mathematics(other) == told


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("epochs", {"epochs": 11}),
        ("seed", {"seed": 4}),
        ("model.arch", {"model": Model(arch="resnet34", num_classes=7, stem="small")}),
        ("images.flip_prob", {"images": dataclasses.replace(a_run().images, flip_prob=0.4)}),
        ("optim.nesterov", {"optim": Optim(peak_lr=0.125, nesterov=False)}),
        ("schedule.final", {"schedule": Schedule(warmup_epochs=2.5, final=0.1)}),
        ("loss.label_smoothing", {"loss": Loss(label_smoothing=0.0)}),
        ("average.ema_horizon", {"average": Average(ema_horizon=0.5)}),
        ("average.swa_bn_images", {"average": Average(swa_bn_images=500)}),
        ("init_from", {"init_from": "runs/a"}),
    ],
)
def test_every_recipe_section_is_part_of_the_mathematics(name, change):
    one, other = config.mathematics(a_run()), config.mathematics(a_run(**change))
    assert {key for key in one if one[key] != other[key]} == {name}


COSINE_WITH_TAIL = Schedule(warmup_epochs=1, tail_epochs=3)


@pytest.mark.parametrize(
    ("schedule", "averages", "reason"),
    [
        (COSINE_WITH_TAIL, {"swa_epochs": 3}, None),
        (COSINE_WITH_TAIL, {"swa_epochs": 0.5, "swa_every_steps": 3}, None),
        (Schedule(name="constant", warmup_epochs=1), {"swa_epochs": 8}, None),
        (Schedule(name="step", milestones=(4,), warmup_epochs=1), {"swa_epochs": 5}, None),
        (Schedule(name="step", milestones=(2, 5), warmup_epochs=1), {"swa_epochs": 5}, None),
        (COSINE_WITH_TAIL, {"swa_epochs": 12}, "swa_epochs is 12, but only 9 of the run's 10"),
        (COSINE_WITH_TAIL, {"swa_epochs": 9}, "swa_epochs is 9, but only 9 of the run's 10"),
        (COSINE_WITH_TAIL, {"swa_epochs": 4}, r"tail_epochs is 3: .* give --swa-epochs 3"),
        (
            Schedule(name="onecycle", warmup_epochs=0),
            {"swa_epochs": 3},
            r"onecycle ends at almost no learning rate.* --schedule.tail-epochs 3",
        ),
        (
            Schedule(warmup_epochs=1),
            {"swa_epochs": 3},
            r"cosine lowers the learning rate to the end.* give --schedule.tail-epochs 3",
        ),
        (
            Schedule(name="step", milestones=(4, 7), warmup_epochs=1),
            {"swa_epochs": 5},
            r"milestones lowers the learning rate at epoch 7, among them.* give --swa-epochs 3,",
        ),
        (COSINE_WITH_TAIL, {"swa_epochs": 1}, "an average of one is the model; give 2 or more"),
        (COSINE_WITH_TAIL, {"swa_every_steps": 5}, "swa_epochs is 0, so nothing is averaged"),
        (COSINE_WITH_TAIL, {"swa_epochs": 2, "swa_bn_images": 0}, "average.swa_bn_images is 0"),
    ],
)
def test_swa_is_refused_where_it_makes_no_sense(schedule, averages, reason):
    if reason is None:
        assert a_run(schedule=schedule, average=Average(**averages)).average.swa_epochs > 0
        return
    with pytest.raises(UsageError, match=reason):
        a_run(schedule=schedule, average=Average(**averages))


def test_every_section_of_a_run_is_either_mathematics_or_not():
    how = {"recipe", "hardware", "storage", "log", "guard"}
    assert {field.name for field in dataclasses.fields(Run)} == how | set(config.MATHEMATICS)
