"""The section on the network itself: layers, stages, memory and its family; it needs no data."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import torchvision

from rn50.analyze import memory
from rn50.analyze.architecture_figure import figure, shown, shown_arch
from rn50.analyze.layers import Layer, Part, layers, on_meta, parts
from rn50.analyze.memory import Kept, Precision
from rn50.analyze.section import Section, table
from rn50.config import Arch, Average, Model, Optim
from rn50.model.resnet import ResNet
from rn50.model.stochastic_depth import rates
from rn50.model.weights import parameters


def section(
    model: Model,
    *,
    px: int,
    batch_size: int,
    optim: Optim | None = None,
    average: Average | None = None,
) -> Section:
    """Describe a network, all computed from the network that training would build.

    Args:
        model: Its settings.
        px: Side of the training images.
        batch_size: Images in one forward pass of a process: its micro-batch.
        optim: The run's optimizer; None: each is listed, none is marked.
        average: Which averages of the weights the run keeps; None: none.
    """
    net = on_meta(model)
    found = layers(net, px)
    kept = memory.kept(net, px, "fp32")
    sums = parts(net, found, kept.by_part)
    training = _training(net, px, batch_size, kept, optim, average or Average())
    family = _family(model, px)
    drawn = figure(model, px, found, sums)
    words = [
        _summary(model, px, found, sums),
        "### Stages",
        _stages(sums, px),
        drawn.markdown,
        "### Memory",
        _memory_words(training, batch_size, px),
        "### The family",
        _family_words(model, family, px),
        "### Layers",
        _layers_words(found),
    ]
    return Section(
        title="Architecture",
        markdown="\n\n".join(words),
        facts={
            "model": asdict(model),
            "px": px,
            "parameters": parameters(net),
            "flops": _flops(found),
            "gmacs": _flops(found) / 2e9,
            "receptive_field_px": sums[-2].field_px,
            "parts": [asdict(part) for part in sums],
            "layers": [_layer_facts(layer) for layer in found],
            "memory": training,
            "family": family,
        },
        pictures=(drawn,),
    )


def _training(
    net: ResNet,
    px: int,
    batch: int,
    kept: Kept,
    optim: Optim | None,
    average: Average,
) -> dict[str, Any]:
    measured: dict[Precision, Kept] = {"fp32": kept, "16-bit": memory.kept(net, px, "16-bit")}
    weights = memory.model_bytes(net)
    trained = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    momentum = 0.9 if optim is None else optim.momentum
    return {
        "batch_size": batch,
        "weights": weights,
        "gradients": trained,
        "optimizer": None if optim is None else optim.name,
        "optimizers": {
            name: memory.optimizer_bytes(net, name, momentum=momentum)
            for name in memory.OPTIMIZER_TENSORS
        },
        "averages": memory.num_averages(average) * weights,
        "activations": {
            name: {
                "per_image": one.per_image,
                "fixed": one.fixed,
                "batch": one.of(batch),
                "recomputed_batch": one.recomputed(batch),
                "inference_per_image": memory.inference_peak(net, px, name),
            }
            for name, one in measured.items()
        },
    }


def _family(model: Model, px: int) -> list[dict[str, Any]]:
    """Return the networks of all depths with the other settings of ``model``."""
    rows = []
    for arch in get_args(Arch):
        net = on_meta(replace(model, arch=arch))
        found = layers(net, px)
        rows.append(
            {
                "arch": arch,
                "blocks": net.num_blocks,
                "parameters": parameters(net),
                "flops": _flops(found),
                "receptive_field_px": max(layer.field.px for layer in found if layer.field),
                "kept_per_image": memory.kept(net, px, "fp32").per_image,
                "published_top1": _published(arch) if _is_torchvisions(model) else {},
            }
        )
    return rows


def _is_torchvisions(model: Model) -> bool:
    """Return whether torchvision has weights for such a network."""
    return (model.stem, model.blurpool, model.num_classes) == ("imagenet", "none", 1000)


def _published(arch: str) -> dict[str, float]:
    """Return the top-1 on ImageNet, 0 to 1, that torchvision reports of its own weights."""
    return {
        weights.name: weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
        for weights in torchvision.models.get_model_weights(arch)
    }


def _summary(model: Model, px: int, found: Sequence[Layer], sums: Sequence[Part]) -> str:
    total = sum(layer.parameters for layer in found)
    field = sums[-2].field_px or 0
    lines = [
        f"{shown(model)}: **{total:,} parameters**, **{_gmacs(_flops(found))} GMACs** for an image "
        f"of {px} × {px} px, {model.num_classes:,} outputs.",
        f"A GMAC is 10⁹ multiply-adds, which papers also call FLOPs; a multiplication and an "
        f"addition counted as two, it is {_flops(found) / 1e9:.2f} GFLOPs. Convolutions and the "
        "classifier are counted, as `torch.utils.flop_counter` does; BatchNorm, ReLU, sums and "
        "pools are not.",
        f"A value of the last map sees {field} × {field} px (its receptive field)"
        + (", more than the whole image." if field > px else f" of the {px} × {px}."),
    ]
    if model.blurpool != "none":
        where = "the max-pool and " if model.blurpool == "convs-and-max-pool" else ""
        lines.append(
            f"BlurPool: {where}the strided convolutions see a blurred map; the blurs have no "
            "parameters, and are counted as work and in the receptive field."
        )
    if model.stochastic_depth > 0:
        dropped = rates(model.stochastic_depth, sum(part.blocks for part in sums))
        lines.append(
            f"Stochastic depth: in training an image skips {sum(dropped):.1f} of {len(dropped)} "
            f"residuals on average, the last with probability {dropped[-1]:.0%}. They are computed "
            "and multiplied by 0, so the work stays what it is."
        )
    if model.train_only != "all":
        lines.append("Only the classifier is trained; the last BatchNorm follows its statistics.")
    return "\n".join(lines)


def _stages(sums: Sequence[Part], px: int) -> str:
    total, flops = sum(p.parameters for p in sums), sum(p.flops for p in sums)
    rows = [
        [
            part.name,
            str(part.blocks or "-"),
            f"{part.channels} × {part.side} × {part.side}",
            f"{part.parameters:,}",
            f"{part.parameters / total:.1%}",
            _gmacs(part.flops),
            f"{part.flops / flops:.1%}",
            f"{part.field_px} px" if part.field_px else "all",
            f"{part.jump} px" if part.jump else "-",
            _mib(part.kept),
        ]
        for part in sums
    ]
    header = ["stage", "blocks", "map", "parameters", "share", "GMACs", "share"]
    header += ["receptive field", "jump", "kept for backward"]
    return (
        table(header, rows)
        + "\n\n*map*: channels × height × width of the stage's output (of the head: pooled). "
        "*jump*: pixels between the centres of two neighbours' receptive fields. *kept for "
        f"backward*: activations of one image of {px} px in training, in fp32."
    )


def _memory_words(facts: dict[str, Any], batch: int, px: int) -> str:
    both = [facts["activations"][name] for name in ("fp32", "16-bit")]
    rows = [
        [words, *(_mib(one[name]) for one in both)]
        for words, name in (
            (f"kept for backward, {batch} images", "batch"),
            ("the same with `--hardware.recompute`", "recomputed_batch"),
            ("in inference, at most, one image", "inference_per_image"),
        )
    ]
    fixed = [
        ["weights and BatchNorm's statistics", _mib(facts["weights"])],
        ["gradients", _mib(facts["gradients"])],
        *(
            [f"optimizer: {name}{' (this run)' if name == facts['optimizer'] else ''}", _mib(size)]
            for name, size in facts["optimizers"].items()
        ),
        ["averages of the weights (EMA, SWA) of this run", _mib(facts["averages"])],
    ]
    return (
        table(["activations", "fp32", "16-bit autocast"], rows)
        + "\n\n"
        + table(["whatever the batch", "fp32"], fixed)
        + f"\n\nMeasured on the network at {px} px, each storage once. Under autocast backward "
        "also keeps 16-bit copies of the weights, which are in the first row. Not in it: the "
        "gradients of activations while backward runs, and what the libraries' kernels take."
    )


def _family_words(model: Model, family: Sequence[dict[str, Any]], px: int) -> str:
    published = _is_torchvisions(model)
    header = ["network", "blocks", "parameters", f"GMACs at {px} px", "receptive field"]
    header += ["kept for backward", *(["top-1 of torchvision's weights"] if published else [])]
    rows = []
    for one in family:
        name = shown_arch(one["arch"])
        row = [
            f"**{name}**" if one["arch"] == model.arch else name,
            str(one["blocks"]),
            f"{one['parameters']:,}",
            _gmacs(one["flops"]),
            f"{one['receptive_field_px']} px",
            _mib(one["kept_per_image"]),
        ]
        if published:
            row.append(
                ", ".join(
                    f"{top1:.1%} ({name.removeprefix('IMAGENET1K_')})"
                    for name, top1 in one["published_top1"].items()
                )
            )
        rows.append(row)
    told = "All with this run's stem, BlurPool and number of outputs."
    if published:
        told += (
            " Top-1 on ImageNet is what torchvision reports of its own weights (V1: its first "
            "recipe; V2: its second)."
        )
    return table(header, rows) + "\n\n" + told


def _layers_words(found: Sequence[Layer]) -> str:
    total = sum(layer.parameters for layer in found)
    rows = [
        [
            f"`{layer.name}`",
            layer.kind,
            str(layer.stride),
            f"{layer.channels} × {layer.side} × {layer.side}",
            f"{layer.parameters:,}",
            f"{layer.parameters / total:.2%}",
            f"{layer.flops / 2e6:,.1f}",
            f"{layer.field.px} px" if layer.field else "all",
            f"{layer.field.jump} px" if layer.field else "-",
        ]
        for layer in found
    ]
    header = ["layer", "kind", "stride", "map", "parameters", "share", "MMACs"]
    header += ["receptive field", "jump"]
    return (
        table(header, rows, words=2)
        + "\n\nIn the order in which they run; parameters are with those of the BatchNorm behind "
        "the convolution. An MMAC is 10⁶ multiply-adds."
    )


def _layer_facts(layer: Layer) -> dict[str, Any]:
    facts = asdict(layer)
    field = facts.pop("field")
    return facts | {
        "receptive_field_px": layer.field and layer.field.px,
        "jump": field and field["jump"],
    }


def _flops(found: Sequence[Layer]) -> int:
    return sum(layer.flops for layer in found)


def _gmacs(flops: int) -> str:
    return f"{flops / 2e9:.2f}" if flops >= 1e7 else "<0.01"


def _mib(num_bytes: float) -> str:
    mib = num_bytes / 2**20
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
