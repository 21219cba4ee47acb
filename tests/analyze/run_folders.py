"""The folder of a run, without the run: weights as training writes them."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from rn50 import config
from rn50.config import Images, Model
from rn50.data.shards import PackedDataset
from rn50.model import weights
from rn50.model.resnet import build
from rn50.recipes import recipe

IMAGES = Images(batch_size=8, train_px=32, test_px=32, test_resize_px=40)


def a_model(classes: int) -> Model:
    return Model(arch="resnet18", num_classes=classes, zero_init_residual=False)


def write_weights(file: Path, dataset: PackedDataset, *, seed: int, network: str) -> None:
    """Weights whose answers differ from image to image."""
    model = a_model(len(dataset.classes))
    net = build(model, seed=seed)
    with torch.no_grad():
        net.fc.weight.mul_(30)
    classes = [(c.id, c.name) for c in dataset.classes]
    about = {"recipe": "demo", "step": 12, "network": network}
    header = weights.header(model=model, images=IMAGES, classes=classes, about=about)
    weights.save(file, net.state_dict(), header)


def write_config(folder: Path, classes: int) -> None:
    storage = config.Storage(data=str(folder / "no data"))
    run = replace(recipe("demo"), model=a_model(classes), images=IMAGES, storage=storage)
    (folder / "config.json").write_text(json.dumps(config.to_dict(run)))


def write_run(folder: Path, dataset: PackedDataset, *networks: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, len(dataset.classes))
    for seed, name in enumerate(networks):
        write_weights(folder / f"{name}.safetensors", dataset, seed=seed, network=name)
    return folder
