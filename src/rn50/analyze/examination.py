"""A trained network before the validation images: the sections that need data."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from rn50 import hardware
from rn50.analyze import calibration, classes, gallery, mistakes, pointing, resolutions, summary
from rn50.analyze.gradcam import jump_at
from rn50.analyze.mistakes import Labels
from rn50.analyze.names import shown_names
from rn50.analyze.networks import Choice, Subject
from rn50.analyze.predictions import FLIPPED, Predictions, Report, Scores, predict
from rn50.analyze.resolutions import AtSize
from rn50.analyze.section import Section
from rn50.config import Hardware, Images
from rn50.data.loader import Loader
from rn50.data.plan import Request
from rn50.data.shards import PackedDataset, PackedSplit
from rn50.errors import UsageError
from rn50.evaluate import BATCH, at_size, of_classes
from rn50.hardware import Compute
from rn50.model.weights import Weights

_MAPPED = 100
"""Images taken evenly from the split for Grad-CAM, and as many mistakes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is analysed, and how."""

    network: Choice = "auto"
    """Which of a run's."""
    px: tuple[int, ...] = ()
    """Test sizes besides the network's own; none: the usual ones."""
    layer: str = ""
    """Whose maps Grad-CAM shows; empty: the last stage that is not too coarse."""
    class_id: str = ""
    """The class whose maps Grad-CAM shows, on images of it or taken for it; empty: any."""
    images: int = 12
    """Images of each gallery of mistakes."""
    hardware: Hardware = field(default_factory=Hardware)


@dataclass(frozen=True, slots=True)
class _Bench:
    """What a test takes."""

    split: PackedSplit
    loader: Loader
    compute: Compute

    def decoded(
        self, ids: Int64[np.ndarray, " ids"], images: Images
    ) -> UInt8[Tensor, "ids 3 px px"]:
        """Return images of the split as the network sees them, on the device."""
        requests = [
            Request(
                ids=part,
                px=images.test_px,
                boxes=None,
                resize_px=images.test_resize_px,
                flips=np.zeros(len(part), dtype=bool),
            )
            for part in np.split(ids, range(BATCH, len(ids), BATCH))
        ]
        return torch.cat([b.images.clone() for b in self.loader.read(self.split, requests)])


def sections(
    subject: Subject,
    dataset: PackedDataset,
    settings: Settings,
    place: str,
    *,
    say: Callable[[str], None] = lambda _: None,
    report: Report = lambda _done, _total: None,
) -> list[Section]:
    """Test a network on every validation image, and tell what is seen.

    Args:
        subject: The network, with those of its run that it is compared with.
        dataset: Data of its classes, or of some of them.
        settings: What is wanted.
        place: Where the network lies, for the summary.
        say: Told where the data has only some of the classes, and what is done when all are tested.
        report: Told how many images were shown to the network, and of how many.

    Returns:
        Summary, test sizes, classes, mistakes, confidence, and where the network looks.

    Raises:
        DataError: The data has other classes, or an image cannot be decoded.
        UsageError: A setting does not fit the network.
    """
    own = subject.weights
    sizes = _check(settings, own)
    dataset = of_classes(dataset, {subject.name: own}, say)
    compute = hardware.resolve(settings.hardware)
    for one in (own, *subject.others.values()):
        one.net.to(compute.device)
    with Loader(
        compute.device, workers=compute.workers, prefetch=compute.prefetch_batches
    ) as loader:
        bench = _Bench(dataset.split("val"), loader, compute)
        seen, rows, scores = _tested(bench, subject, sizes, report)
        names = shown_names(own.class_ids, own.class_names)
        labels = Labels(own.class_ids, names, bench.split.key)
        say("now where the network looks (Grad-CAM)")
        return [
            summary.section(subject, place, summary.Test(dataset, compute, scores), []),
            resolutions.section(rows, own.images),
            classes.section(seen, own.class_ids, names),
            mistakes.section(
                seen,
                labels,
                lambda ids: bench.decoded(ids, own.images).permute(0, 2, 3, 1).cpu().numpy(),
                settings.images,
            ),
            calibration.section(seen),
            _maps(bench, own, seen, settings),
            pointing.section(own, dataset, loader=loader, layer=settings.layer),
        ]


def _tested(
    bench: _Bench, subject: Subject, sizes: list[Images], report: Report
) -> tuple[Predictions, list[AtSize], dict[str, Scores]]:
    """Return the answers at the network's own size, the scores by size and those by network."""
    own = subject.weights
    nets = {subject.name: own.net, **{n: one.net for n, one in subject.others.items()}}
    total = bench.split.num_images * len(sizes)
    seen, scores = None, {}
    rows: list[AtSize] = []
    for images in sizes:
        before = len(rows) * bench.split.num_images
        answers = predict(
            nets,
            bench.split,
            images,
            bench.loader,
            bench.compute,
            mirrored=subject.name,
            report=_after(before, total, report),
        )
        flipped = answers.pop(FLIPPED).scores
        found = {name: one.scores for name, one in answers.items()}
        others = {name: found[name] for name in subject.others}
        rows.append(
            AtSize(images.test_px, images.test_resize_px, found[subject.name], flipped, others)
        )
        if images == own.images:
            seen, scores = answers[subject.name], found
    assert seen is not None
    return seen, rows, scores


def _maps(bench: _Bench, own: Weights, seen: Predictions, settings: Settings) -> Section:
    """Return Grad-CAM of images taken evenly from the split, and of the most confident mistakes."""
    chosen, target = np.arange(len(seen.labels)), None
    if settings.class_id:
        target = own.class_ids.index(settings.class_id)
        chosen = np.flatnonzero((seen.labels == target) | (seen.predicted == target))
        if not len(chosen):
            raise UsageError(
                f"class is {settings.class_id}, but no validation image is of it or is taken for "
                "it; give another class, or leave --class out"
            )
    evenly = chosen[np.linspace(0, len(chosen) - 1, min(_MAPPED, len(chosen))).astype(np.int64)]
    wrong = mistakes.most_confident(seen, len(seen.labels))
    ids = np.union1d(evenly, wrong[np.isin(wrong, chosen)][:_MAPPED])
    return gallery.section(
        own,
        bench.decoded(ids, own.images),
        torch.from_numpy(seen.labels[ids]),
        layer=settings.layer,
        target=target,
    )


def _after(before: int, total: int, report: Report) -> Report:
    return lambda done, _: report(before + done, total)


def _check(settings: Settings, own: Weights) -> list[Images]:
    """Return the settings of each test size, ascending; refuse what does not fit the network."""
    if settings.images < 1:
        raise UsageError(f"images is {settings.images}; a gallery has at least 1: give --images 12")
    if settings.class_id and settings.class_id not in own.class_ids:
        called = [
            id_
            for id_, name in zip(own.class_ids, own.class_names, strict=True)
            if settings.class_id in name.split(", ")
        ]
        hint = f"; that is the name of {' and '.join(called)}" if called else ""
        raise UsageError(
            f"class is {settings.class_id!r}, but classes are told by their ids, such as "
            f"{own.class_ids[0]}{hint}"
        )
    if settings.layer:
        jump_at(own.net, settings.layer)  # refuses a layer that is none
    usual = resolutions.default_sizes(own.images, own.model.num_classes)
    sides = {own.images.test_px, *(settings.px or usual)}
    return [at_size(own.images, px) for px in sorted(sides)]
