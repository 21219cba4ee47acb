"""The section that measures where a network looks: the pointing game, and the one on grids."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from rn50.analyze import games
from rn50.analyze.demo_objects import objects
from rn50.analyze.drawing import shortened
from rn50.analyze.games import TOLERANCE, Objects
from rn50.analyze.gradcam import default_layer, enlarged, grad_cam, jump_at, peaks, scaled
from rn50.analyze.names import shown_names
from rn50.analyze.overlays import Tile, tiles
from rn50.analyze.section import Picture, Section, table
from rn50.augment.device import Normalise
from rn50.data.loader import Loader
from rn50.data.plan import Request
from rn50.data.shards import PackedDataset
from rn50.model import resnet
from rn50.model.resnet import ResNet
from rn50.model.weights import Weights

_BATCH = 32
_GRIDS = 100
_GRIDS_SHOWN = 4
_OBJECTS_SHOWN = 12
_TRAINED = "this network"


@dataclass(frozen=True, slots=True)
class _Board:
    """What is played with: images, their classes, and networks to compare."""

    weights: Weights
    nets: dict[str, ResNet]
    images: UInt8[Tensor, "images 3 px px"]
    labels: Int64[Tensor, " images"]

    def maps(
        self,
        net: ResNet,
        images: UInt8[Tensor, "batch 3 side side"],
        targets: Int64[Tensor, "batch targets"],
        layer: str,
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch targets rows columns"]]:
        """Return logits and maps of any number of images."""
        normalise = Normalise(self.weights.images.mean, self.weights.images.std).to(images.device)
        found = [
            grad_cam(net, normalise(images[at : at + _BATCH]), layer=layer, targets=wanted)
            for at, wanted in zip(
                range(0, len(images), _BATCH), torch.split(targets, _BATCH), strict=True
            )
        ]
        return torch.cat([one.logits for one in found]), torch.cat([one.maps for one in found])


def section(
    weights: Weights,
    dataset: PackedDataset,
    *,
    loader: Loader,
    layer: str = "",
    limit: int = 500,
) -> Section:
    """Play with a network on validation images, and with one that was never trained.

    Args:
        weights: The network, on the device of the loader.
        dataset: Labelled with the network's outputs.
        loader: Decodes the images.
        layer: Whose maps are scored; empty: the last that is not too coarse, which may be a later
            one for grids, whose side is twice as long.
        limit: Images to read, evenly over the split.

    Raises:
        UsageError: The network has no such layer.
        DataError: An image cannot be read.
    """
    if layer:
        jump_at(weights.net, layer)
    ids, images, labels = read(weights, dataset, loader, limit)
    untrained = resnet.build(weights.model, seed=0).to(images.device)
    on = _Board(weights, {_TRAINED: weights.net, "untrained": untrained}, images, labels)
    px = images.shape[-1]
    known = objects(dataset, ids, weights.images)
    parts = [
        _grids(on, layer or default_layer(weights.net, 2 * px)),
        _objects(on, known, layer or default_layer(weights.net, px)),
    ]
    played = [part for part in parts if part is not None]
    return Section(
        "Does it look at the object?",
        "\n\n".join(part.markdown for part in played),
        {part.title: part.facts for part in played},
        tuple(picture for part in played for picture in part.pictures),
    )


def read(
    weights: Weights, dataset: PackedDataset, loader: Loader, limit: int
) -> tuple[Int64[np.ndarray, " images"], UInt8[Tensor, "images 3 px px"], Int64[Tensor, " images"]]:
    """Return the ids of up to ``limit`` validation images, evenly over all, themselves and labels.

    They are resized and cropped as the network is tested.
    """
    split = dataset.split("val")
    places = np.linspace(0, split.num_images - 1, min(limit, split.num_images))
    ids = places.round().astype(np.int64)
    requests = [
        Request(
            ids=part,
            px=weights.images.test_px,
            boxes=None,
            resize_px=weights.images.test_resize_px,
            flips=np.zeros(len(part), dtype=bool),
        )
        for part in np.split(ids, range(_BATCH, len(ids), _BATCH))
    ]
    batches = [
        (batch.images.clone(), batch.labels.clone()) for batch in loader.read(split, requests)
    ]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return ids, images, labels


def _grids(on: _Board, layer: str) -> Section:
    """Play the game on grids, or say why there are none."""
    logits, _ = on.maps(on.weights.net, on.images, on.labels[:, None], "layer4")
    grids = games.choose_grids(logits, on.labels, _GRIDS).to(on.labels.device)
    if not len(grids):
        why = _no_grids(on.labels, on.labels[logits.argmax(dim=1) == on.labels])
        return Section("grids", f"### Grids of four\n\n{why}", {"layer": layer, "grids": 0})
    images, targets = games.mosaic(on.images, grids), on.labels[grids]
    side = images.shape[-1]
    rows, facts, jump = [], {}, jump_at(on.weights.net, layer)
    shown: dict[str, Tensor] = {}
    for name, net in on.nets.items():
        _, maps = on.maps(net, images, targets, layer)
        shown[name] = maps
        score = games.play_grids(maps, side, jump)
        facts[name] = asdict(score)
        rows.append([name, *map(_percent, (score.hits, score.mass, score.zeros))])
    maps = shown[_TRAINED]
    rows.append(["at random", _percent(1 / games.QUADRANTS), _percent(1 / games.QUADRANTS), "-"])
    alt = (
        f"{min(_GRIDS_SHOWN, len(grids))} grids of four images, each with the map of each of its "
        "four classes over it"
    )
    drawn = _draw_grids(
        on, images, targets, scaled(enlarged(maps[:_GRIDS_SHOWN], side, jump=jump)), alt
    )
    words = (
        f"Four images of different classes, each classified right, are put together into one of "
        f"{side} × {side} px, and the map of each class, of `{layer}` ({_cells(maps)}), ought to "
        "lie on its quadrant (the grid pointing game of Böhle et al., 2021). "
        f"{len(grids)} grids, {len(grids) * games.QUADRANTS} maps."
    )
    header = ["", "maximum in the quadrant", "map's sum in the quadrant", "maps of zeros"]
    return Section(
        "grids",
        "\n\n".join(["### Grids of four", words, table(header, rows), drawn.markdown]),
        {"layer": layer, "grids": len(grids), "px": side, "scores": facts},
        (drawn,),
    )


def _no_grids(labels: Int64[Tensor, " images"], right: Int64[Tensor, " right"]) -> str:
    """Return why no grid can be put together: of the images' labels, and of those told right."""
    takes = f"A grid takes images of {games.QUADRANTS} classes, each classified right"
    if (there := len(set(labels.tolist()))) < games.QUADRANTS:
        return f"{takes}; those looked at are of {there}."
    return (
        f"{takes}; of the {len(labels):,} looked at, {len(right):,} are classified right, of "
        f"{len(set(right.tolist()))} classes."
    )


def _draw_grids(
    on: _Board,
    images: UInt8[Tensor, "grids 3 side side"],
    targets: Int64[Tensor, "grids 4"],
    maps: Float[Tensor, "shown 4 side side"],
    alt: str,
) -> Picture:
    names = shown_names(on.weights.class_ids, on.weights.class_names)
    groups = []
    for image, labels, overs in zip(images, targets.tolist(), maps.cpu().numpy(), strict=False):
        pixels = image.permute(1, 2, 0).cpu().numpy()
        group = [Tile(pixels)]
        for label, over in zip(labels, overs, strict=True):
            group.append(Tile(pixels, over, shortened(names[label], 22)))
        groups.append(group)
    return tiles(groups, "grids.png", alt)


def _objects(on: _Board, found: Objects | None, layer: str) -> Section | None:
    """Play the game on objects; None where it is not known where they are."""
    if found is None:
        return None
    found = Objects(found.masks.to(on.images.device))
    rows, facts, jump = [], {}, jump_at(on.weights.net, layer)
    shown: dict[str, Tensor] = {}
    for name, net in on.nets.items():
        _, maps = on.maps(net, on.images, on.labels[:, None], layer)
        shown[name] = maps[:, 0]
        score, near = games.play_objects(maps[:, 0], found, jump)
        facts[name] = {**asdict(score), "near_box": near}
        rows.append([name, *map(_percent, (score.hits, score.mass, near, score.zeros))])
    maps = shown[_TRAINED]
    chance, near = games.chance_objects(maps.shape[-2], maps.shape[-1], found, jump)
    facts["a place at random"] = {**asdict(chance), "near_box": near}
    rows.append(["a place at random", *map(_percent, (chance.hits, chance.mass, near)), "-"])
    drawn = _draw_objects(on, maps, found, jump)
    words = (
        "The demo's pictures tell where their object is; it covers "
        f"{chance.mass:.0%} of the image. The map of the true class, of `{layer}` "
        f"({_cells(maps)}), points to the centre of what its largest value sees (the "
        f"pointing game of Zhang et al., 2016). {len(maps)} images. Their own rule, in the "
        f"box around the object or up to {TOLERANCE * 224:.0f} px from it in an image of 224 px "
        f"({TOLERANCE * found.px:.1f} px here), is met by almost any point of objects as large as "
        "these."
    )
    header = ["", "maximum on the object", "map's sum on the object", "maximum near its box"]
    header.append("maps of zeros")
    return Section(
        "objects",
        "\n\n".join(["### Pointing at the object", words, table(header, rows), drawn.markdown]),
        {"layer": layer, "images": len(maps), "px": found.px, "scores": facts},
        (drawn,),
    )


def _draw_objects(
    on: _Board, maps: Float[Tensor, "images rows columns"], found: Objects, jump: int
) -> Picture:
    names = shown_names(on.weights.class_ids, on.weights.class_names)
    chosen = torch.linspace(0, len(maps) - 1, min(_OBJECTS_SHOWN, len(maps))).round().long()
    places = peaks(maps, jump)
    hits = found.on_object(places)
    groups = []
    overs = scaled(enlarged(maps[chosen], found.px, jump=jump)).cpu()
    for i, over in zip(chosen.tolist(), overs, strict=True):
        word = "on the object" if hits[i] else "beside the object"
        row, column = places[i].tolist()
        groups.append(
            [
                Tile(
                    on.images[i].permute(1, 2, 0).cpu().numpy(),
                    over.numpy(),
                    f"{shortened(names[int(on.labels[i])], 20)}:\n{word}",
                    outline=found.masks[i].cpu().numpy(),
                    point=None if math.isnan(row) else (row, column),
                )
            ]
        )
    alt = (
        f"{len(groups)} images, evenly from all, under the map of their class: the object's "
        "outline, and a cross at the map's maximum"
    )
    return tiles(groups, "pointing.png", alt)


def _cells(maps: Float[Tensor, "*batch rows columns"]) -> str:
    return f"{maps.shape[-2]} × {maps.shape[-1]} values"


def _percent(share: float) -> str:
    return f"{share:.1%}"
