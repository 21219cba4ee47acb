"""Which network is analysed: one of a run's, a weights file of ours, or one of torchvision's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from rn50 import config, durable
from rn50.analyze.layers import on_meta
from rn50.config import Arch, Images, Model, Run
from rn50.data.sources.base import ClassName
from rn50.data.sources.wnids import class_names, imagenet_wnids
from rn50.errors import DataError, UsageError, UserError
from rn50.model import pretrained, resnet, weights
from rn50.model.weights import Weights
from rn50.observe.history import CONFIG
from rn50.observe.record import NETWORKS

Choice = Literal["auto", "model", "average", "swa", "best"]
"""A network of a run: the one trained, its EMA, its SWA, the best one so far; auto: the first of
them that there is."""

_ORDER = (*NETWORKS, "best")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is analysed."""

    name: str
    """Such as ``average`` of a run's; of a file its name without the ending."""
    weights: Weights
    others: dict[str, Weights]
    """The other networks of the run, for comparison."""
    run: Run | None
    """The run's settings, where they are there."""
    is_trained: bool
    """False where the run has no weights yet: then only its architecture is known."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the weights files, by network, as ``durable.file_digest`` makes them."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the network."""


def find(path: Path, network: Choice, classes: Sequence[ClassName] = ()) -> Subject:
    """Read what is to be analysed.

    Args:
        path: The folder of a run, or a weights file: of ours, or the ``state_dict`` of a ResNet of
            torchvision's or timm's.
        network: Which one of a run's.
        classes: Those of the data, for a file that does not tell its own.

    Raises:
        DataError: There is nothing to read, or it cannot be read.
        UsageError: The run has no such network.
    """
    if not path.is_dir():
        if network != "auto":
            raise UsageError(
                f"network is {network}, which names one of a run's, but {path} is no folder of a "
                "run; give the run's folder, or leave --network out"
            )
        return _of_file(path, classes)
    files = {name: file for name in _ORDER if (file := path / f"{name}.safetensors").exists()}
    run, why = _settings(path)
    if not files:
        if run is None:
            raise DataError(
                f"{path} holds no run: neither weights nor {CONFIG} ({why}); give the folder of "
                "a run, or a weights file"
            )
        return _untrained(path, network, run)
    chosen = next(iter(files)) if network == "auto" else network
    if chosen not in files:
        raise UsageError(
            f"network is {network}, but {path} has no {network}.safetensors; it has "
            f"{', '.join(files)}: choose one of these"
        )
    # Before they are read: of a file that is replaced meanwhile, the older is told.
    digests = {name: durable.file_digest(file) for name, file in files.items()}
    loaded = {name: weights.load(file) for name, file in files.items()}
    # The best one is a copy of another's at some epoch: to compare, the last ones are enough.
    others = {name: loaded[name] for name in files if name not in (chosen, "best")}
    _check_finite(path / f"{chosen}.safetensors", loaded[chosen])
    return Subject(chosen, loaded[chosen], others, run, is_trained=True, digests=digests)


def _settings(folder: Path) -> tuple[Run | None, str]:
    """Return a run's settings, or None and why."""
    try:
        return config.load(folder / CONFIG), ""
    except UserError as error:
        return None, str(error)


def _untrained(path: Path, network: Choice, run: Run) -> Subject:
    if network != "auto":
        raise UsageError(
            f"network is {network}, but {path} has no weights yet; a run writes them when its "
            "first epoch ends: leave --network out to see the architecture"
        )
    unnamed = tuple(str(i) for i in range(run.model.num_classes))
    fresh = Weights(on_meta(run.model), run.model, run.images, unnamed, unnamed, {})
    note = f"{path} has no weights yet: a run writes them when its first epoch ends."
    return Subject("model", fresh, {}, run, is_trained=False, notes=(note,))


def _of_file(file: Path, classes: Sequence[ClassName]) -> Subject:
    if not file.is_file():
        raise DataError(
            f"there is no {file} to analyse; give the folder of a run, or a weights file"
        )
    found = pretrained.read(file)
    if found.model is not None:
        own = weights.load(file)
        run, _ = _settings(file.parent)
        _check_finite(file, own)
        return Subject(file.stem, own, {}, run, is_trained=True)
    model = _model_of(found)
    net = resnet.build(model, seed=0)
    try:
        pretrained.begin(net, found, model)
    except UsageError as error:
        raise DataError(f"{file} cannot be analysed: {error}") from error
    images = Images(batch_size=256)
    if model.stem == "small":
        images = replace(images, train_px=32, test_px=32, test_resize_px=32)
    told = _classes_of(model.num_classes, classes)
    ids, names = tuple(c.id for c in told), tuple(c.name for c in told)
    note = (
        f"{file.name} tells neither its classes nor how images are prepared: taken are "
        f"{len(ids):,} classes in the order of {ids[0]} to {ids[-1]}, the central {images.test_px} "
        f"px of {images.test_resize_px}, and ImageNet's mean and deviation."
    )
    return Subject(
        file.stem,
        Weights(net.eval(), model, images, ids, names, {}),
        {},
        None,
        is_trained=True,
        notes=(note,),
    )


def _model_of(found: pretrained.Pretrained) -> Model:
    """Return the settings of the network that has tensors of these names and shapes."""
    shapes = {name: t.shape for name, t in found.tensors.items() if t.dim()}
    for arch in get_args(Arch):
        for stem in ("imagenet", "small"):
            outputs = len(found.tensors.get("fc.bias", ())) or 1
            model = Model(arch=arch, stem=stem, num_classes=outputs)
            own = on_meta(model).state_dict()
            if shapes == {name: t.shape for name, t in own.items() if t.dim()}:
                return model
    raise DataError(
        f"{found.file} holds the weights of no network that rn50 knows; give those of "
        f"{', '.join(get_args(Arch))} with torchvision's names"
    )


def _classes_of(outputs: int, classes: Sequence[ClassName]) -> Sequence[ClassName]:
    """Return what the outputs of a network stand for that does not tell."""
    if len(classes) == outputs:
        return classes
    if outputs == len(imagenet_wnids()):
        return class_names(imagenet_wnids())
    return [ClassName(f"output {i}", f"output {i}") for i in range(outputs)]


def _check_finite(file: Path, found: Weights) -> None:
    if not weights.all_finite(found.net):
        raise DataError(
            f"{file} holds weights that are not finite numbers; its run diverged: analyse another "
            "network of it, or an earlier one"
        )
