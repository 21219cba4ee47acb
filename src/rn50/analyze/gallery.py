"""The section that shows where a network looks: right and wrong answers with Grad-CAM's maps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from rn50.analyze.drawing import shortened, whole_percent
from rn50.analyze.gradcam import default_layer, enlarged, grad_cam, jump_at, scaled
from rn50.analyze.names import shown_names
from rn50.analyze.overlays import Tile, tiles
from rn50.analyze.section import Section, escaped
from rn50.augment.device import Normalise
from rn50.model.weights import Weights

RIGHT, WRONG = 12, 8
"""Images shown of each kind."""

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Answers:
    """The network's answers."""

    labels: Int64[Tensor, " images"]
    predicted: Int64[Tensor, " images"]
    probabilities: Float[Tensor, "images classes"]

    def facts(self, i: int, weights: Weights) -> dict[str, Any]:
        """Return what was said of an image, as plain JSON."""
        true, said = int(self.labels[i]), int(self.predicted[i])
        return {
            "true": weights.class_ids[true],
            "predicted": weights.class_ids[said],
            "confidence": float(self.probabilities[i, said]),
            "true_probability": float(self.probabilities[i, true]),
        }


def section(
    weights: Weights,
    images: UInt8[Tensor, "images 3 px px"],
    labels: Int64[Tensor, " images"],
    *,
    layer: str = "",
    target: int | None = None,
) -> Section:
    """Show up to ``RIGHT`` images classified right and ``WRONG`` classified wrong, with maps.

    Args:
        weights: The network, on any device, and its classes.
        images: As they are tested, before normalising; a few hundred at most. Of those that are
            right, images of as many classes as can be are shown; of those that are wrong, the ones
            of which the network is surest.
        labels: Their classes, as outputs of the network.
        layer: Whose maps are shown, as for ``grad_cam``; empty: ``default_layer``.
        target: The class whose maps are shown on every image; None: the predicted one, and beside
            it, where that is wrong, the true one.

    Raises:
        UsageError: The network has no such layer.
    """
    px = images.shape[-1]
    layer = layer or default_layer(weights.net, px)
    jump_at(weights.net, layer)
    device = next(weights.net.parameters()).device
    images, labels = images.to(device), labels.to(device)
    seen = _answers(weights, images, labels)
    names = shown_names(weights.class_ids, weights.class_names)
    facts: dict[str, Any] = {
        "layer": layer,
        "target": None if target is None else weights.class_ids[target],
    }
    parts, pictures = [], []
    for kind, ids in (("right", shown_right(seen)), ("wrong", shown_wrong(seen))):
        facts[kind] = [seen.facts(i, weights) for i in ids.tolist()]
        if not len(ids):
            parts.append(f"None of the {len(images)} images looked at is classified {kind}.")
            continue
        wanted = seen.predicted[ids, None]
        if target is not None:
            wanted = torch.full_like(wanted, target)
        elif kind == "wrong":
            wanted = torch.cat([wanted, seen.labels[ids, None]], dim=1)
        maps, cells = _maps(weights, images[ids], wanted, layer)
        facts["cells"] = cells
        groups = [
            _group(images[i], maps[place], wanted[place], seen, i, names)
            for place, i in enumerate(ids.tolist())
        ]
        alt = (
            f"{len(ids)} images classified {kind}, each beside itself in grey under the map of "
            f"{_whose(target, kind, names)}"
        )
        pictures.append(tiles(groups, f"gradcam-{kind}.png", alt))
        parts += [f"### Classified {kind}", _caption(target, kind, names), pictures[-1].markdown]
    return Section(
        "Where the network looks",
        "\n\n".join([_words(layer, facts.get("cells"), px), *parts]),
        facts,
        tuple(pictures),
    )


@torch.no_grad()
def _answers(
    weights: Weights,
    images: UInt8[Tensor, "images 3 px px"],
    labels: Int64[Tensor, " images"],
) -> Answers:
    normalise = Normalise(weights.images.mean, weights.images.std).to(images.device)
    net = weights.net.eval()
    logits = torch.cat([net(normalise(part)) for part in torch.split(images, _BATCH)])
    return Answers(labels, logits.argmax(dim=1), logits.softmax(dim=1))


def shown_right(seen: Answers) -> Int64[Tensor, " ids"]:
    """Return images of different classes first, in the order of the classes."""
    found = torch.nonzero(seen.predicted == seen.labels)[:, 0]
    times: dict[int, int] = {}
    turns = []
    for label in seen.labels[found].tolist():
        turns.append(times.get(label, 0))
        times[label] = turns[-1] + 1
    labels = seen.labels[found].cpu().numpy()
    order = np.lexsort((labels, np.array(turns, np.int64)))
    if len(times) > RIGHT:  # classes from all of the list, not its beginning
        first = order[: len(times)]
        order = first[np.linspace(0, len(first) - 1, RIGHT).round().astype(np.int64)]
    chosen = order[:RIGHT]
    return found[
        torch.from_numpy(chosen[np.argsort(labels[chosen], kind="stable")]).to(found.device)
    ]


def shown_wrong(seen: Answers) -> Int64[Tensor, " ids"]:
    """Return the mistakes of which the network is surest, the surest first."""
    found = torch.nonzero(seen.predicted != seen.labels)[:, 0]
    sure = seen.probabilities[found].amax(dim=1)
    return found[sure.argsort(descending=True, stable=True)[:WRONG]]


def _maps(
    weights: Weights,
    images: UInt8[Tensor, "images 3 px px"],
    wanted: Int64[Tensor, "images targets"],
    layer: str,
) -> tuple[Float[Tensor, "images targets px px"], list[int]]:
    normalise = Normalise(weights.images.mean, weights.images.std).to(images.device)
    found = grad_cam(weights.net, normalise(images), layer=layer, targets=wanted)
    large = enlarged(found.maps, images.shape[-1], jump=found.jump)
    return scaled(large), [*found.maps.shape[-2:]]


def _group(
    image: UInt8[Tensor, "3 px px"],
    maps: Float[Tensor, "targets px px"],
    wanted: Int64[Tensor, " targets"],
    seen: Answers,
    i: int,
    names: tuple[str, ...],
) -> list[Tile]:
    pixels = image.permute(1, 2, 0).cpu().numpy()
    true, said = int(seen.labels[i]), int(seen.predicted[i])
    group = [Tile(pixels, title=f"is:\n{shortened(names[true], 20)}")]
    for over, label in zip(maps.cpu().numpy(), wanted.tolist(), strict=True):
        word = "said" if label == said else "is" if label == true else "asked"
        percent = whole_percent(float(seen.probabilities[i, label]))
        title = f"{word}, {percent}:\n{shortened(names[label], 20)}"
        group.append(Tile(pixels, over, title))
    return group


def _whose(target: int | None, kind: str, names: tuple[str, ...]) -> str:
    if target is not None:
        return f"the class {names[target]}"
    return "the predicted class" + (" and under that of the true one" if kind == "wrong" else "")


def _caption(target: int | None, kind: str, names: tuple[str, ...]) -> str:
    if target is not None:
        return f"Each image, and the map of the class *{escaped(names[target])}* over it."
    if kind == "right":
        return "Each image, and the map of the predicted class over it."
    return (
        "Each image, the map of the class that was said, and the map of the class that it is; "
        "those of which the network was surest first."
    )


def _words(layer: str, cells: list[int] | None, px: int) -> str:
    size = f", whose map has {cells[0]} × {cells[1]} values for {px} × {px} px" if cells else ""
    return (
        "Grad-CAM (Selvaraju et al., 2017) shows which places of a layer's map speak for a class: "
        f"the brighter, the more, in each map by its own range. Here of `{layer}`{size}, each "
        "drawn at the centre of what it sees. "
        "It does not show what the network makes of a place, nor what speaks against the class; an "
        "image that stays grey has a map of zeros, for which nothing of this layer speaks."
    )
