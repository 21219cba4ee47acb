"""Two games that tell how well maps find what they explain: pointing at objects, and at quadrants.

Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop (ECCV 2016,
arXiv:1608.00507). A map of the true class hits if its maximum lies on the object, or near it. It
takes objects whose places are known, and says little where they fill the image.

Grid pointing game: Böhle, Fritz and Schiele, Convolutional Dynamic Alignment Networks (CVPR 2021,
arXiv:2104.00032). Four images of different classes are put together into one; a map of each class
ought to lie in its quadrant. It takes no annotation, and chance is a quarter.
"""

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from rn50.analyze.gradcam import centres, enlarged, peaks

TOLERANCE = 15 / 224
"""How far from an object's box a hit may lie, as a share of the image's side: Zhang et al. allow 15
px, in images whose shorter side has 224 px or about that."""

QUADRANTS = 4


@dataclass(frozen=True, slots=True)
class Score:
    """A game's outcome, each from 0 to 1."""

    hits: float
    """Share of the maps whose maximum lies where it ought to; a map of zeros misses."""
    mass: float
    """Share of a map's sum that lies where it ought to, on average; 0 of a map of zeros."""
    zeros: float = 0.0
    """Share of the maps that are zero everywhere."""


@dataclass(frozen=True, slots=True)
class Objects:
    """Where the objects of images are."""

    masks: Bool[Tensor, "images px px"]
    """The objects' pixels; each image has some."""

    @property
    def px(self) -> int:
        """Return the images' side."""
        return self.masks.shape[-1]

    def on_object(self, places: Float[Tensor, "images 2"]) -> Bool[Tensor, " images"]:
        """Return which places, in pixels from the top and left, lie on their image's object."""
        row, column = places.nan_to_num(0).long().clamp(0, self.px - 1).T
        images = torch.arange(len(places), device=places.device)
        return self.masks[images, row, column] & ~places.isnan().any(dim=1)

    def near_box(self, places: Float[Tensor, "images 2"]) -> Bool[Tensor, " images"]:
        """Return which places lie in the box around the object, or ``TOLERANCE`` from it."""
        boxes = self.boxes()
        beyond = torch.maximum(boxes[:, :2] - places, places - boxes[:, 2:]).clamp(min=0)
        return beyond.norm(dim=1) <= TOLERANCE * self.px  # NaN is near nothing

    def boxes(self) -> Float[Tensor, "images 4"]:
        """Return (top, left, bottom, right) of each object, in pixels; the last two are beyond."""
        sides = []
        for axis in (2, 1):
            hit = self.masks.any(dim=axis).float()
            sides.append((hit.argmax(dim=1), self.px - hit.flip(1).argmax(dim=1)))
        (top, bottom), (left, right) = sides
        return torch.stack([top, left, bottom, right], dim=1).float()


def play_objects(
    maps: Float[Tensor, "images rows columns"], objects: Objects, jump: int
) -> tuple[Score, float]:
    """Return how often maps point at the object, and how often near its box (see ``near_box``).

    Args:
        maps: Of each image's true class.
        objects: The images' objects.
        jump: Pixels from one value of a map to the next.
    """
    places = peaks(maps, jump)
    shares = _spread(maps, objects.px, jump)
    mass = (shares * objects.masks).sum(dim=(1, 2)).mean()
    on_object = objects.on_object(places).float().mean()
    score = Score(float(on_object), float(mass), _zeros(maps))
    return score, float(objects.near_box(places).float().mean())


def chance_objects(rows: int, columns: int, objects: Objects, jump: int) -> tuple[Score, float]:
    """Return ``play_objects`` of maps whose maximum is any of their values, at random."""
    device, images = objects.masks.device, len(objects.masks)
    on_object, near_box = [], []
    for place in centres(torch.cartesian_prod(torch.arange(rows), torch.arange(columns)), jump):
        places = place.to(device).expand(images, 2)
        on_object.append(objects.on_object(places).float().mean())
        near_box.append(objects.near_box(places).float().mean())
    area = objects.masks.float().mean()
    score = Score(float(torch.stack(on_object).mean()), float(area))
    return score, float(torch.stack(near_box).mean())


def choose_grids(
    logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"], most: int
) -> Int64[Tensor, "grids 4"]:
    """Return images to put together: classified right, the surest of each class first.

    The four of a grid are of different classes, those first that have most images left; an image is
    in one grid at most.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    left: dict[int, deque[int]] = {}
    for image in order[(predicted == labels)[order]].tolist():
        left.setdefault(int(labels[image]), deque()).append(image)
    grids: list[list[int]] = []
    while len(left) >= QUADRANTS and len(grids) < most:
        fullest = sorted(left, key=lambda label: (-len(left[label]), label))[:QUADRANTS]
        grids.append([left[label].popleft() for label in fullest])
        left = {label: images for label, images in left.items() if images}
    return torch.tensor(grids, dtype=torch.int64).reshape(-1, QUADRANTS)


def mosaic(
    images: UInt8[Tensor, "images 3 px px"], grids: Int64[Tensor, "grids 4"]
) -> UInt8[Tensor, "grids 3 {2*images.shape[2]} {2*images.shape[2]}"]:
    """Put four images each into one: top left, top right, bottom left, bottom right."""
    top_left, top_right, low_left, low_right = images[grids.to(images.device)].unbind(dim=1)
    top = torch.cat([top_left, top_right], dim=3)
    low = torch.cat([low_left, low_right], dim=3)
    return torch.cat([top, low], dim=2)


def play_grids(maps: Float[Tensor, "grids 4 rows columns"], px: int, jump: int) -> Score:
    """Return how well maps of the four classes of a grid keep to the quadrants of their class.

    Args:
        maps: Of the class in each quadrant, in ``mosaic``'s order.
        px: Side of a grid.
        jump: Pixels from one value of a map to the next.
    """
    quadrants = torch.arange(QUADRANTS, device=maps.device)
    places = peaks(maps, jump)
    halves = (places >= px / 2).long()
    hits = (2 * halves[..., 0] + halves[..., 1] == quadrants) & ~places.isnan().any(dim=-1)
    sums = F.adaptive_avg_pool2d(_spread(maps, px, jump), 2).flatten(2) * (px // 2) ** 2
    mass = sums[:, quadrants, quadrants].mean()
    return Score(float(hits.float().mean()), float(mass), _zeros(maps))


def _zeros(maps: Float[Tensor, "*batch rows columns"]) -> float:
    return float((maps.flatten(-2).amax(dim=-1) == 0).float().mean())


def _spread(
    maps: Float[Tensor, "*batch rows columns"], px: int, jump: int
) -> Float[Tensor, "*batch {px} {px}"]:
    """Return maps at the images' size, each with the sum 1, or 0 where it is of zeros."""
    large = enlarged(maps, px, jump=jump)
    sums = large.sum(dim=(-2, -1), keepdim=True)
    return large / torch.where(sums > 0, sums, 1.0)
