"""What an analysis is of, what it found in short, and what could not be told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rn50.analyze.earlier import SUMMARY
from rn50.analyze.networks import Subject
from rn50.analyze.predictions import Scores
from rn50.analyze.section import Section, escaped, table
from rn50.data.shards import PackedDataset
from rn50.hardware import Compute, describe
from rn50.model.weights import parameters


@dataclass(frozen=True, slots=True)
class Test:
    """The test that the scores are from."""

    dataset: PackedDataset
    compute: Compute
    scores: Mapping[str, Scores]
    """By network, the one that is analysed first."""


def section(subject: Subject, place: str, test: Test | None, missing: Sequence[str]) -> Section:
    """Return what was analysed, the scores of its networks, and what is missing and why.

    Args:
        subject: What is analysed.
        place: Where it lies.
        test: What it was tested on, and with which result; None: it was not.
        missing: Sentences.
    """
    about = subject.weights.about
    facts: dict[str, Any] = {
        "path": place,
        "network": subject.name,
        "recipe": about.get("recipe", ""),
        "step": about.get("step"),
        "arch": subject.weights.model.arch,
        "parameters": parameters(subject.weights.net),
        "classes": subject.weights.model.num_classes,
        "weights": {
            name: {"step": one.about.get("step"), "blake2b": subject.digests.get(name)}
            for name, one in {subject.name: subject.weights, **subject.others}.items()
        },
    }
    lines = [
        f"- Analysed: {escaped(place)}, {_network(subject)}",
        f"- Network: {_described(facts)}",
    ]
    parts = []
    if test is not None:
        images = subject.weights.images
        device = describe(test.compute.device)
        lines += [
            f"- Data: the validation images of {escaped(str(test.dataset.folder))} "
            f"(fingerprint {test.dataset.fingerprint})",
            f"- Test: the central {images.test_px} px of images whose shorter side is resized to "
            f"{images.test_resize_px} px; one crop; {test.compute.precision} on {device}",
        ]
        facts |= {
            "data": str(test.dataset.folder),
            "fingerprint": test.dataset.fingerprint,
            "test_px": images.test_px,
            "test_resize_px": images.test_resize_px,
            "precision": test.compute.precision,
            "device": device,
            "scores": {
                name: {**asdict(one), "top1_standard_error": one.top1_error}
                for name, one in test.scores.items()
            },
        }
        parts = [_score_table(test.scores, subject.name)]
    notes = [*subject.notes, *missing]
    facts["notes"] = notes
    if notes:
        parts += ["### To be noted", "\n".join(f"- {escaped(note)}" for note in notes)]
    return Section(SUMMARY, "\n\n".join(("\n".join(lines), *parts)), facts)


def _network(subject: Subject) -> str:
    kind = {
        "model": "the model as trained",
        "average": "the exponential moving average of its weights",
        "swa": "the stochastic weight average of its weights",
        "best": "the best network so far",
    }.get(subject.weights.about.get("network", ""), "")
    name = f"network `{subject.name}`"
    return f"{name} ({kind})" if kind else name


def _described(facts: dict[str, Any]) -> str:
    text = f"{facts['arch']}, {facts['parameters']:,} parameters, {facts['classes']:,} classes"
    if facts["recipe"]:
        text += f", trained by `{facts['recipe']}`"
    if facts["step"] is not None:
        text += f", after step {facts['step']:,}"
    return text


def _score_table(scores: Mapping[str, Scores], chosen: str) -> str:
    rows = [
        (
            f"**{escaped(name)}**" if name == chosen and len(scores) > 1 else escaped(name),
            f"{one.top1:.2%} ± {one.top1_error:.2%}",
            f"{one.top5:.2%}",
            f"{one.loss:.4f}",
            f"{one.images:,}",
        )
        for name, one in scores.items()
    ]
    return table(("network", "top-1 ± standard error", "top-5", "loss", "images"), rows)
