"""The commands of the README and of the guide are run, on miniature data."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributions import (
    VAL,
    flat_tree,
    ilsvrc2012,
    kaggle_tree,
    mini_form,
    parquet,
    ten_classes,
    tiny_form,
    webdataset,
)
from image_trees import write_folder, write_tar, write_zip

from analyze.run_folders import a_model, write_run
from rn50.cli import main
from rn50.data.shards import MANIFEST, PackedDataset
from rn50.model.resnet import build

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs/guide").glob("*.md"))]
ELSEWHERE = (
    "pip ",
    "git ",
    "cd ",
    "tensorboard ",
    "wandb ",
    "python benchmarks/",
    "uv run scripts/check",
    "aws ",
    "hf ",
    "kaggle ",
)
FORMS = {
    "ILSVRC2012",
    "Kaggle CLS-LOC",
    "Hugging Face parquet",
    "WebDataset",
    "ImageNet-mini-1000",
    "tiny-imagenet-200",
    "imagenette2",
    "class folders",
}


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := line.partition("#")[0].strip())]


@pytest.fixture(scope="module")
def desk(packed, tmp_path_factory):
    """A folder with everything that the pages name."""
    place = tmp_path_factory.mktemp("desk")
    for split in ("train", "val"):
        for shard in packed.glob(f"{split}-*.tar"):
            shutil.unpack_archive(shard, place / "my-images" / split, filter="data")
    for label in (place / "my-images").rglob("*.cls"):
        label.unlink()
    shutil.copytree(place / "my-images" / "train", place / "my-train-images")
    shutil.copytree(place / "my-images" / "val", place / "my-val-images")
    distributions(place)
    return place


def distributions(place: Path) -> None:
    """Make a miniature of each distribution, named as the guide names what is downloaded."""
    ilsvrc2012(place / "ILSVRC2012")
    write_zip(place / "imagenet-object-localization-challenge.zip", kaggle_tree())
    parquet(place / "imagenet-1k")
    webdataset(place / "imagenet-1k-wds")
    write_zip(place / "imagenetmini-1000.zip", mini_form())
    archives = place / "archives"
    archives.mkdir()
    write_zip(archives / "tiny-imagenet-200.zip", tiny_form())
    write_tar(archives / "imagenette2-160.tgz", ten_classes("imagenette2-160/"), "w:gz")
    labels = "".join(f"{name}.JPEG\t{wnid}\n" for name, (wnid, _) in VAL.items())
    write_folder(place / "my-flat-images", flat_tree("val/val_annotations.txt", labels))


def words_of(command: str) -> list[str]:
    """What follows ``rn50``, however it is started."""
    words = shlex.split(command.removeprefix("uv run ").removeprefix("rn50 supervise -- "))
    if words[0] == "torchrun":
        assert words[1:3] == ["--nproc-per-node", "8"]
        words = ["rn50", *words[words.index("rn50") + 1 :]]
    assert words.pop(0) == "rn50", command
    return words


def a_run(place: Path) -> None:
    """Make the folder of a run that has trained for one epoch."""
    scores = {"loss": 1.5, "top1": 0.5, "top5": 0.8, "images": 36}
    timing = {"seconds": 9.0, "images_per_second": 10.7, "data_wait": 0.0, "eval_seconds": 1.0}
    epoch = {"kind": "epoch", "step": 6, "epoch": 1, "val": {"model": scores}, "timing": timing}
    start = {"kind": "start", "step": 0, "recipe": place.name, "price_per_hour": 2.0}
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps(epoch)}\n")
    (place / "config.json").write_text(json.dumps({"recipe": place.name, "epochs": 1}))


def lay_out(desk: Path, words: list[str]) -> None:
    """Clear away what earlier commands left, and make the runs that a command looks at."""
    shutil.rmtree(desk / "runs", ignore_errors=True)
    if words[0] == "prepare":  # each section begins with nothing
        shutil.rmtree(desk / words[2], ignore_errors=True)
    for word in words[1:] if words[0] in ("plot", "report") else ():
        if word.startswith("runs/"):
            a_run(desk / word)


def lay_out_weights(desk: Path, words: list[str], dataset: PackedDataset) -> None:
    """Make the weights that are to be analysed: of a run, or a file of torchvision's."""
    if words[1].startswith("runs/"):
        write_run(desk / words[1], dataset, "model", "average")
    else:
        # Of small images: those of ImageNet's size would take a minute.
        net = build(replace(a_model(len(dataset.classes)), stem="small"), seed=0)
        torch.save(net.state_dict(), desk / words[1])


def run(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_accepted_and_the_cheap_ones_run(
    page, desk, monkeypatch, capsys, packed, dataset
):
    monkeypatch.chdir(desk)
    shutil.rmtree(desk / "packed", ignore_errors=True)
    if "rn50 prepare my-images packed" not in commands(page):
        shutil.copytree(packed, desk / "packed")
    seen = 0
    forms = set()
    for command in commands(page):
        if command.startswith(ELSEWHERE):
            continue
        words = words_of(command)
        lay_out(desk, words)
        if words[0] == "analyze":
            lay_out_weights(desk, words, dataset)
        if words[0] == "eval":
            continue  # tests/test_cli.py runs it on a trained run
        if words[0] == "download" and len(words) > 1:
            continue  # tests/data/test_download.py runs it against a server
        if words[0] == "train" and "--config" in words:
            config = desk / words[words.index("--config") + 1]
            config.parent.mkdir(parents=True, exist_ok=True)
            capsys.readouterr()
            run(["train", "--dry-run"])
            config.write_text(capsys.readouterr().out)
        if words[0] == "train" and "--dry-run" not in words:
            words.append("--dry-run")
        assert run(words) == 0, f"{command}\n{capsys.readouterr().err}"
        if words[0] == "prepare":
            forms.add(json.loads((desk / words[2] / MANIFEST).read_text())["source"]["kind"])
        seen += 1
    assert seen or page != "README.md"
    assert page != "docs/guide/data.md" or forms == FORMS
