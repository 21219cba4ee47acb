"""Grad-CAM by stage: against the library grad-cam, and how well it finds the demo's objects.

    rn50 train --output-dir runs/demo
    rn50 prepare demo demo
    python benchmarks/gradcam.py runs/demo/model.safetensors demo

A map's values lie a fixed number of pixels apart, from the image's corner on, where their receptive
fields are centred. Libraries stretch the map over the image instead, which moves all of it down and
to the right by almost half that distance. Both are scored: does the maximum lie on the object?
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

import machine
from machine import Row
from rn50.analyze import games, pointing
from rn50.analyze.demo_objects import objects
from rn50.analyze.games import Objects
from rn50.analyze.gradcam import Maps, centres, enlarged, grad_cam, scaled
from rn50.augment.device import Normalise
from rn50.data.loader import Loader
from rn50.data.shards import PackedDataset
from rn50.model import weights
from rn50.model.resnet import ResNet

STAGES = ("layer1", "layer2", "layer3", "layer4")
BATCH = 50


def score(net: ResNet, inputs: Tensor, labels: Tensor, known: Objects, layer: str) -> Row:
    """Return a line of the report."""
    gaps, found = [], []
    for part, wanted in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
        ours = grad_cam(net, part, layer=layer, targets=wanted[:, None])
        found.append(ours)
        with GradCAM(model=net, target_layers=[net.get_submodule(layer)]) as library:
            theirs = library(part, targets=[ClassifierOutputTarget(i) for i in wanted.tolist()])
        stretched = scaled(enlarged(ours.maps[:, 0], part.shape[-1], jump=None))
        gaps.append(np.abs(stretched.numpy() - theirs).max())
    maps, jump = torch.cat([one.maps[:, 0] for one in found]), found[0].jump
    placed, _ = games.play_objects(maps, known, jump)
    chance, _ = games.chance_objects(maps.shape[1], maps.shape[2], known, jump)
    return {
        "layer": layer,
        "map": f"{maps.shape[1]} × {maps.shape[2]}",
        "largest difference to grad-cam": f"{max(gaps):.0e}",
        "on the object, stretched": round(_stretched_hits(found, known), 3),
        "on the object, at its place": round(placed.hits, 3),
        "place at random": round(chance.hits, 3),
    }


def _stretched_hits(found: list[Maps], known: Objects) -> float:
    """Return how often maxima lie on the object where cells divide the image evenly."""
    maps = torch.cat([one.maps[:, 0] for one in found])
    best = maps.flatten(1).argmax(dim=1)
    cells = torch.stack([best // maps.shape[2], best % maps.shape[2]], dim=1)
    middle = (found[0].jump - 1) / 2
    places = torch.where(
        (maps.amax(dim=(1, 2)) > 0)[:, None], centres(cells, found[0].jump), np.nan
    )
    return float(known.on_object(places + middle).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the stages, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path, help="trained on the demo data")
    parser.add_argument("data", type=Path, help="the demo data, packed")
    parser.add_argument("--count", type=int, default=500, help="validation images")
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    own, dataset = weights.load(args.weights), PackedDataset.open(args.data)
    with Loader(torch.device("cpu"), workers=2, prefetch=2) as loader:
        ids, images, labels = pointing.read(own, dataset, loader, args.count)
    known = objects(dataset, ids, own.images)
    if known is None:
        parser.error(f"{args.data} is not the demo data; pack it with: rn50 prepare demo DEST")
    inputs = Normalise(own.images.mean, own.images.std)(images)
    rows = [score(own.net, inputs, labels, known, layer) for layer in STAGES]
    report = {"machine": machine.describe(torch.device("cpu")), "gradcam": rows}
    title = f"# Grad-CAM on {len(ids)} images of {own.images.test_px} px"
    markdown = "\n\n".join([title, machine.table(rows), machine.facts_list(report["machine"])])
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
