"""One exact pass over a split: every image once, at any world size, integers added at the end."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from rn50 import hardware
from rn50.augment.device import Normalise
from rn50.config import Hardware, Images, Model
from rn50.data.bad_images import Met
from rn50.data.loader import Batch, Loader, OnBad
from rn50.data.plan import Request, evaluation_requests
from rn50.data.shards import PackedDataset, PackedSplit
from rn50.data.sources.base import ClassName
from rn50.data.sources.wnids import class_names, imagenet_wnids
from rn50.distributed import Group
from rn50.errors import DataError, UsageError
from rn50.hardware import Compute
from rn50.model import weights
from rn50.observe.record import NETWORKS


@runtime_checkable
class Reader(Protocol):
    """What an evaluation reads with: a ``Loader``, or what stands in front of one."""

    def read(
        self, split: PackedSplit, requests: Iterable[Request], *, on_bad: OnBad = "error"
    ) -> Iterator[Batch]:
        """Yield a batch for each request, in order."""


LOSS_UNIT = 2.0**-16
"""Losses are added as integers of this unit, so that their sum does not depend on the order."""

BATCH = 256
"""Images per forward pass."""

_SMALLEST_PX, _LARGEST_PX = 8, 2048


def labelled(dataset: PackedDataset, model: Model) -> PackedDataset:
    """Return the data with the labels that a network is trained on.

    Raises:
        DataError: ImageNet's classes are asked for, and the data has others.
        UsageError: The network has another number of outputs than there are classes.
    """
    if model.classes == "imagenet":
        dataset = dataset.with_classes(class_names(imagenet_wnids()))
    count, outputs = len(dataset.classes), model.num_classes
    if outputs == count:
        return dataset
    known = set(imagenet_wnids())
    hint = ""
    if outputs == len(known) and all(c.id in known for c in dataset.classes):
        hint = "; or --model.classes imagenet to train ImageNet's 1000 outputs on some of them"
    raise UsageError(
        f"model.num_classes is {outputs}, but {dataset.folder} has {count} classes; choose the "
        f"recipe for this data, or give --model.num-classes {count}{hint}"
    )


def score(
    path: Path,
    data: Path,
    settings: Hardware,
    *,
    px: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Evaluate a weights file, or the model and the averages in a run's folder, on ``data``.

    Data of some of the classes is scored among all that the network tells apart.

    Args:
        path: The file, or the folder of a run.
        data: A folder made by ``rn50 prepare``.
        settings: Device, precision and threads.
        px: Side of the test crop; 0: the network's own.
        say: Told what a reader of the scores must know.

    Returns:
        What ``evaluate`` does; the names are those of the files.

    Raises:
        DataError: The weights or the data cannot be read, or are of different classes.
        UsageError: There is no such test size.
    """
    files = [path]
    if path.is_dir():
        files = [p for name in NETWORKS if (p := path / f"{name}.safetensors").exists()]
        if not files:
            raise DataError(
                f"{path} has no weights yet; a run writes model.safetensors when its first epoch "
                "ends; give the folder of such a run, or a weights file"
            )
    loaded = {file.stem: weights.load(file) for file in files}
    dataset = of_classes(PackedDataset.open(data), loaded, say)
    compute = hardware.resolve(settings)
    nets: dict[str, nn.Module] = {n: one.net.to(compute.device) for n, one in loaded.items()}
    images = next(iter(loaded.values())).images
    images = at_size(images, px) if px else images
    with Loader(
        compute.device, workers=compute.workers, prefetch=compute.prefetch_batches
    ) as loader:
        return evaluate(nets, dataset.split("val"), images, loader, compute, Group())


def at_size(images: Images, px: int) -> Images:
    """Return the settings for another test size, with the same share of the image in the crop.

    Raises:
        UsageError: The size is too small or too large to be one.
    """
    if not _SMALLEST_PX <= px <= _LARGEST_PX:
        raise UsageError(
            f"px is {px}; a test size has {_SMALLEST_PX} to {_LARGEST_PX} pixels, such as "
            f"{images.test_px}, the network's own"
        )
    if px == images.test_px:
        return images
    resize_px = max(px, round(px * images.test_resize_px / images.test_px))
    return dataclasses.replace(images, test_px=px, test_resize_px=resize_px)


def of_classes(
    dataset: PackedDataset, loaded: dict[str, weights.Weights], say: Callable[[str], None]
) -> PackedDataset:
    """Return the data with the labels of the weights, which may tell more classes apart.

    Args:
        dataset: The data.
        loaded: The weights by name, at least one.
        say: Told where the data has only some of the classes.

    Raises:
        DataError: The data has other classes, or the weights differ in theirs.
    """
    ids = tuple(c.id for c in dataset.classes)
    first, one = next(iter(loaded.items()))
    if all(other.class_ids == ids for other in loaded.values()):
        return dataset
    told_apart = {other.class_ids for other in loaded.values()}
    if len(told_apart) > 1 or not set(ids) <= set(one.class_ids):
        raise DataError(
            f"the weights {first} tell {len(one.class_ids)} classes apart "
            f"({', '.join(one.class_ids[:3])} …), {dataset.folder} has {len(ids)} "
            f"({', '.join(ids[:3])} …); give the data of the same classes, or of some of them"
        )
    say(
        f"{dataset.folder} has {len(ids)} of the {len(one.class_ids)} classes of the weights; "
        "they are found by their ids and scored among all"
    )
    for note in dataset.manifest.get("notes", []):
        say(f"note: {note}")
    return dataset.with_classes(tuple(map(ClassName, one.class_ids, one.class_names)))


@torch.no_grad()
def evaluate(
    nets: dict[str, nn.Module],
    split: PackedSplit,
    images: Images,
    loader: Reader,
    compute: Compute,
    group: Group,
    bad: Met | None = None,
) -> dict[str, dict[str, float]]:
    """Score several networks on every image of ``split`` in one pass over the data.

    Every process must call it, with the same weights. A network's mode is restored afterwards.

    Args:
        nets: Bare networks by name, such as the model and its averages.
        split: What to score on.
        images: Test size, resize and normalisation.
        loader: Decodes the images.
        compute: Device and precision.
        group: The processes that share the pass.
        bad: Told, at the end, of images that cannot be decoded. They stay in the denominator, as
            wrong, with the loss of a guess among all outputs. None: they are errors.

    Raises:
        DataError: An image cannot be decoded and ``bad`` is None, or ``bad`` raises it.

    Returns:
        For each network ``loss`` (mean cross-entropy without label smoothing), ``top1``, ``top5``
        (0 to 1) and ``images`` (how many were scored: always the whole split). With fewer than
        five classes ``top5`` counts that many guesses.
    """
    was_training = {name: net.training for name, net in nets.items()}
    for net in nets.values():
        net.eval()
    normalise = Normalise(images.mean, images.std).to(compute.device)
    counts = torch.zeros(len(nets), 4, dtype=torch.int64, device=compute.device)
    requests = evaluation_requests(
        images, split.num_images, BATCH, rank=group.rank, world_size=group.world_size
    )
    met = [np.empty(0, np.int64)]
    for batch in loader.read(split, requests, on_bad="error" if bad is None else "blank"):
        inputs = normalise(batch.images)
        met.append(batch.bad)
        lost = np.isin(batch.request.ids, batch.bad)
        for row, net in enumerate(nets.values()):
            counts[row] += _count_whole(logits_of(net, inputs, compute), batch.labels, lost)
    if bad is not None:
        bad(np.concatenate(met))
    for name, net in nets.items():
        net.train(was_training[name])
    totals = group.sum(counts.flatten()).view(len(nets), 4).tolist()
    scores = {}
    for name, (total, loss_units, top1, top5) in zip(nets, totals, strict=True):
        assert total == split.num_images
        scores[name] = {
            "loss": loss_units * LOSS_UNIT / total,
            "top1": top1 / total,
            "top5": top5 / total,
            "images": total,
        }
    return scores


def logits_of(
    net: nn.Module, inputs: Float[Tensor, "batch 3 px px"], compute: Compute
) -> Float[Tensor, "batch classes"]:
    """Return a network's scores as float32, computed in the precision of ``compute``."""
    dtype = compute.autocast_dtype
    with torch.autocast(compute.device.type, dtype=dtype, enabled=dtype is not None):
        logits = net(inputs)
    return logits.float()


def _count_whole(
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    lost: Bool[np.ndarray, " batch"],
) -> Int64[Tensor, " 4"]:
    """Return ``count`` of the whole images, and of the lost ones as of guesses that are wrong."""
    if not lost.any():
        return count(logits, labels)
    whole = torch.from_numpy(~lost).to(logits.device)
    num_lost, guess = int(lost.sum()), round(math.log(logits.shape[1]) / LOSS_UNIT)
    wrong = torch.tensor([num_lost, num_lost * guess, 0, 0], device=logits.device)
    return count(logits[whole], labels[whole]) + wrong


def num_batches(count: int, world_size: int) -> int:
    """Return how many batches of an evaluation of ``count`` images the first process has: most."""
    return math.ceil(math.ceil(count / world_size) / BATCH)


def count(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Int64[Tensor, " 4"]:
    """Return images, summed loss in units of 2**-16, and top-1 and top-5 hits, on the device."""
    units = loss_units(logits, labels).sum()
    hits = [topk_correct(logits, labels, min(k, logits.shape[1])) for k in (1, 5)]
    return torch.stack([torch.full_like(units, len(labels)), units, *hits])


def loss_units(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """Return the cross-entropy of each image in units of 2**-16, on the device.

    That of a network that diverged is 2**20: large and finite.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses.nan_to_num(nan=2.0**20, posinf=2.0**20) / LOSS_UNIT).round().long()


def topk_correct(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], k: int
) -> Int[Tensor, ""]:
    """Count the images whose true class is among the ``k`` highest scores.

    Args:
        logits: Unnormalised scores; among equal ones ``torch.topk`` decides.
        labels: Class indices.
        k: Guesses allowed per image, 1 to the number of classes.

    Returns:
        An int64 count, still on the device: no host sync.
    """
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k is {k}; with {logits.shape[1]} classes it must be from 1 to that")
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).sum()
