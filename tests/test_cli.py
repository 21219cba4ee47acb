import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract import runs
from rn50.cli import main

COMMANDS = (
    *("train", "find-lr", "download", "prepare", "verify", "eval", "analyze", "recipes"),
    "doctor",
)


def outcome(capsys, *arguments):
    """Run a command in this process; return its exit code and what it printed."""
    try:
        main([str(a) for a in arguments])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def one_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.startswith("rn50: error: ")]
    assert len(lines) == 1, error
    return lines[0]


def test_help_lists_the_commands(capsys):
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, out, _ = outcome(capsys, command, "--help")
    assert code == 0
    assert f"rn50 {command}" in out


def test_completion_is_printed_for_bash_and_zsh(capsys):
    for shell in ("bash", "zsh"):
        code, out, _ = outcome(capsys, "--tyro-print-completion", shell)
        assert code == 0
        assert "rn50" in out


def test_recipes_are_listed_as_a_table_and_as_json(capsys):
    code, out, _ = outcome(capsys, "recipes")
    assert code == 0
    assert "tiny-imagenet-resnet50" in out
    code, out, _ = outcome(capsys, "recipes", "--format", "json")
    assert json.loads(out)["demo"]["model"]["num_classes"] == 10


def test_a_recipe_is_shown_with_its_source_and_settings(capsys):
    code, out, _ = outcome(capsys, "recipes", "show", "imagenet-90")
    assert code == 0
    assert "Source: pytorch/vision" in out
    assert json.loads(out[out.index("{") :])["epochs"] == 90


def test_two_recipes_are_compared_setting_by_setting(capsys):
    code, out, _ = outcome(capsys, "recipes", "diff", "cifar10-resnet18", "cifar10-resnet50")
    assert code == 0
    (epochs,) = [line.split() for line in out.splitlines() if line.split()[0] == "epochs"]
    assert epochs == ["epochs", "30", "40"]
    assert "images.train_px" not in out


@pytest.mark.parametrize("words", [("show",), ("diff", "demo"), ("list", "demo")])
def test_recipes_says_how_many_names_it_takes(capsys, words):
    code, _, err = outcome(capsys, "recipes", *words)
    assert code == 2
    assert "names of recipes, not" in err


def test_the_field_s_everyday_flags_are_accepted(capsys):
    flags = (
        *("--data", "D", "--epochs", "7", "--batch-size", "32", "--lr", "0.3", "--workers", "3"),
        *("--output-dir", "O", "--seed", "5", "--label-smoothing", "0.2", "--wd", "1e-4"),
        *("--momentum", "0.8", "--arch", "resnet18", "--no-amp", "--warmup-epochs", "2"),
    )
    code, out, _ = outcome(capsys, "train", "demo", *flags, "--dry-run")
    run = json.loads(out)
    assert code == 0
    assert (run["epochs"], run["seed"], run["storage"]["data"]) == (7, 5, "D")
    assert (run["images"]["batch_size"], run["hardware"]["workers"]) == (32, 3)
    assert (run["optim"]["peak_lr"], run["optim"]["momentum"]) == (0.3, 0.8)
    assert run["hardware"]["precision"] == "fp32"
    assert run["storage"]["output_dir"] == "O"


def test_settings_printed_are_accepted_back(capsys, tmp_path):
    _, out, _ = outcome(capsys, "train", "cifar10-resnet18", "--lr", "0.25", "--dry-run")
    (tmp_path / "config.json").write_text(out)
    _, again, _ = outcome(capsys, "train", "--config", tmp_path / "config.json", "--dry-run")
    assert json.loads(again) == json.loads(out)


def test_a_misspelt_setting_is_refused_with_the_right_one(capsys):
    code, out, err = outcome(capsys, "train", "--optim.peek-lr", "2")
    assert code == 2
    assert "optim.peek-lr" in out + err
    assert "optim.peak-lr" in out + err


def test_a_misspelt_recipe_is_refused_with_the_right_one(capsys):
    code, _, err = outcome(capsys, "train", "imagenet90")
    assert code == 2
    assert "did you mean 'imagenet-90'?" in one_line(err)


def test_a_setting_out_of_range_is_refused_in_one_line(capsys):
    code, _, err = outcome(capsys, "train", "--lr", "-1")
    assert code == 2
    assert "optim.peak_lr is -1.0: input should be greater than 0" in one_line(err)


def test_a_recipe_for_other_classes_than_the_data_has_is_refused(capsys, packed, tmp_path):
    place = tmp_path / "run"
    code, _, err = outcome(
        capsys, "train", "imagenet-90", "--data", packed, "--output-dir", place, "--device", "cpu"
    )
    assert code == 2
    assert "model.num_classes is 1000" in one_line(err)
    assert "--model.num-classes 4" in one_line(err)
    assert not place.exists()


def test_a_recipe_without_data_says_how_to_make_some(capsys, tmp_path):
    code, _, err = outcome(capsys, "train", "imagenet-90", "--output-dir", tmp_path / "run")
    assert code == 2
    assert "rn50 prepare SOURCE FOLDER" in one_line(err)


def test_unpacked_data_is_refused_with_the_command_to_pack_it(capsys, tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    code, _, err = outcome(capsys, "train", "--data", tmp_path / "images")
    assert code == 3
    assert f"rn50 prepare {tmp_path / 'images'} DEST" in one_line(err)


def test_an_empty_folder_cannot_be_prepared(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = outcome(capsys, "prepare", tmp_path / "empty", tmp_path / "packed")
    assert code == 3
    assert str(tmp_path / "empty") in one_line(err)
    assert not (tmp_path / "packed").exists()


def test_a_device_that_is_not_there_is_refused(capsys, packed, tmp_path):
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    code, _, err = outcome(
        capsys, "train", "--data", packed, "--model.num-classes", "4", "--device", "mps"
    )
    assert code == 2
    assert "--device auto" in one_line(err)


def test_verify_names_the_image_whose_byte_was_flipped(capsys, packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    assert outcome(capsys, "verify", copy)[0] == 0
    shard = copy / "val-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    code, _, err = outcome(capsys, "verify", copy)
    assert code == 3
    key = (copy / "val.keys.txt").read_text().splitlines()[0]
    assert "is damaged" in one_line(err)
    assert f"{key} (val-000000.tar at byte 512): its JPEG was altered" in err


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "run"
    more = ("--epochs", "2", "--ema-horizon", "0.1")
    output = runs.finish(runs.command(packed, place, *more))
    return place, output


@pytest.mark.slow
def test_training_names_the_files_it_wrote(trained):
    place, output = trained
    for name in ("training_log.md", "loss.png", "accuracy.png", "lr.png", "history.json"):
        assert (place / name).stat().st_size > 0
        assert str(place / name) in output
    assert "val top-1" in output


@pytest.mark.slow
def test_eval_scores_a_run_as_training_did_and_a_weights_file_alike(capsys, trained, packed):
    place, _ = trained
    told = json.loads((place / "history.json").read_text())["epochs"][-1]["val"]
    same = ("--hardware.device", "cpu", "--hardware.precision", "fp32", "--json")
    code, out, _ = outcome(capsys, "eval", place, *same)
    assert code == 0
    scores = json.loads(out)
    assert scores["model"]["top1"] == told["model"]["top1"]
    assert scores["average"]["loss"] == pytest.approx(told["average"]["loss"], abs=1e-3)
    assert scores["model"]["images"] == 36
    file = place / "average.safetensors"
    code, out, _ = outcome(capsys, "eval", file, "--data", packed, *same)
    assert json.loads(out)["average"] == scores["average"]
    code, out, _ = outcome(capsys, "eval", place, "--px", "48", *same)
    assert json.loads(out)["model"]["loss"] != scores["model"]["loss"]
    code, out, err = outcome(capsys, "eval", place, "--px", "4", *same)
    assert code == 2
    assert "px is 4; a test size has 8 to 2048 pixels, such as 32" in err


@pytest.mark.slow
def test_resuming_on_other_data_is_refused(capsys, trained, packed, tmp_path):
    from rn50.data.pack import pack
    from rn50.data.sources.detect import open_source

    place, _ = trained
    unpacked = tmp_path / "unpacked"
    for split in ("train", "val"):
        for shard in packed.glob(f"{split}-*.tar"):
            shutil.unpack_archive(shard, unpacked / split, filter="data")
    for label in unpacked.rglob("*.cls"):
        label.unlink()
    victim = sorted(unpacked.rglob("*.jpg"))[0]
    victim.unlink()
    pack(open_source(str(unpacked)), tmp_path / "other")
    before = (place / "metrics.jsonl").read_bytes()
    words = runs.command(tmp_path / "other", place, "--epochs", "2", "--resume")
    output = runs.finish([*words, "--ema-horizon", "0.1"], code=2)
    assert "was trained on other data" in output
    assert str(packed) in output
    assert (place / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_new_run_does_not_overwrite_another(trained, packed):
    place, _ = trained
    output = runs.finish(runs.command(packed, place), code=2)
    assert "already holds a run; add --resume" in output


@pytest.mark.slow
def test_divergence_exits_4_and_leaves_whole_checkpoints(packed, tmp_path):
    place = tmp_path / "run"
    words = runs.command(packed, place, "--lr", "1e30", "--optim.momentum", "0.99")
    output = runs.finish(words, code=4)
    assert "resume with a lower --lr" in output
    assert not list(place.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving_leaves_the_earlier_checkpoint_whole(packed, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or not _mount(place):
        pytest.skip("needs the right to mount a small file system")
    try:
        sparing = ("--storage.checkpoint-epochs", "0", "--storage.checkpoint-steps", "5")
        words = runs.command(packed, place / "run", "--resume", *sparing)
        process = subprocess.Popen(
            words, env=runs.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while not list((place / "run" / "checkpoints").glob("step-*")) and process.poll() is None:
            time.sleep(0.01)
        _fill(place / "ballast", but_for=10_000_000)
        output = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 2
        assert "a checkpoint could not be saved; training goes on: " in output
        assert "the disk is full" in output
        assert "run the same command again" in output
        assert not list(place.rglob(".tmp-*"))
        from rn50.train import checkpoint

        saved, refused = checkpoint.newest(place / "run")
        assert saved is not None
        assert refused == []
        (place / "ballast").unlink()
        assert "resumed at step" in runs.finish(words)
        del saved  # its tensors are mapped from the disk that is to be unmounted
    finally:
        subprocess.run(["umount", place], check=True)


def _fill(ballast: Path, *, but_for: int) -> None:
    """Fill a disk that is being written to."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(ballast.parent).free > but_for:
            file.write(bytes(1_000_000))


def _mount(place) -> bool:
    options = ["-t", "tmpfs", "-o", "size=800m", "tmpfs", str(place)]
    return subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0


def test_a_notebook_that_names_a_backend_which_is_not_there_does_no_harm():
    program = """
from rn50.cli import main
try:
    main(["recipes"])
finally:
    import matplotlib
"""
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
