"""What is known of a trained network, section by section, and as files in a folder."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn50 import __version__, durable
from rn50.analyze import architecture, earlier, examination, networks, summary
from rn50.analyze.earlier import SUMMARY
from rn50.analyze.examination import Settings
from rn50.analyze.networks import Subject
from rn50.analyze.predictions import Report
from rn50.analyze.section import Section, escaped
from rn50.data.shards import PackedDataset
from rn50.errors import DataError, UsageError, UserError

MARKDOWN, FACTS = "analysis.md", earlier.FACTS

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NoData:
    """Data that is not there: what needs none is analysed all the same."""

    why: str


def data_if_there(find: Callable[[], Path]) -> Path | NoData:
    """Return the folder of packed data that ``find`` returns, if it can be read, or why not."""
    try:
        folder = find()
        PackedDataset.open(folder).split("val")
    except UserError as error:
        return NoData(str(error))
    return folder


def default_folder(path: Path) -> Path:
    """Return where an analysis is written if no place is named."""
    return path / "analysis" if path.is_dir() else path.parent / f"analysis-{path.stem}"


def analyze(
    path: Path,
    data: Path | NoData,
    out: Path,
    settings: Settings,
    *,
    say: Say = lambda _: None,
    report: Report = lambda _done, _total: None,
) -> Path:
    """Analyse a network and write ``analysis.md``, ``analysis.json`` and their pictures.

    Each file is replaced atomically, the Markdown last; pictures of an earlier analysis that are
    no more part of it are removed. An analysis with scores is not replaced by one of the
    architecture alone.

    Args:
        path: The folder of a run, or a weights file.
        data: A folder made by ``rn50 prepare``.
        out: The folder to write to; made if need be.
        settings: What is analysed, and how.
        say: Told what a reader of the scores must know.
        report: Told how many images were shown to the network, and of how many.

    Returns:
        The Markdown file.

    Raises:
        DataError: The network or the data cannot be read, or are of different classes; or there is
            no data, or no weights, for as much as ``out`` holds already.
        UsageError: A setting does not fit the network, or ``out`` cannot be written.
    """
    _make(out)  # before hours of work
    found = sections(path, data, settings, say=say, report=report)
    is_less = not earlier.has_scores({SUMMARY: found[0].facts})
    if is_less and earlier.has_scores(earlier.sections(out)):
        why = data.why if isinstance(data, NoData) else f"{path} has no weights"
        raise DataError(
            f"{out} holds an analysis with scores, which is kept, for now only the architecture "
            f"could be analysed ({why}); give --data FOLDER, or another folder to write to"
        )
    return write(found, out, title=f"Analysis of {path.resolve().name}")


def sections(
    path: Path,
    data: Path | NoData,
    settings: Settings,
    *,
    say: Say = lambda _: None,
    report: Report = lambda _done, _total: None,
) -> list[Section]:
    """Return what ``analyze`` writes: first a summary, then what the network does, then what it is.

    Where there is no data, or a run has no weights yet, only the architecture is described, and the
    summary says what is missing.
    """
    dataset = None if isinstance(data, NoData) else PackedDataset.open(data)
    subject = networks.find(path, settings.network, dataset.classes if dataset else ())
    built = _architecture(subject)
    if dataset is None or not subject.is_trained:
        missing = [
            "Nothing of the network's classes, mistakes, confidence, test sizes and Grad-CAM, "
            f"which take data: {data.why}"
            if isinstance(data, NoData)
            else "A network without weights classifies nothing: only its architecture is described."
        ]
        return [summary.section(subject, str(path), None, missing), built]
    examined = examination.sections(subject, dataset, settings, str(path), say=say, report=report)
    return [*examined, built]


def write(found: Sequence[Section], out: Path, *, title: str) -> Path:
    """Write sections as one page of Markdown, its pictures, and their facts as JSON.

    Args:
        found: The sections, in their order.
        out: The folder; made if need be.
        title: Of the page.

    Returns:
        The Markdown file.

    Raises:
        UsageError: The folder cannot be written.
    """
    pictures = {picture.name: picture.png for section in found for picture in section.pictures}
    facts = {
        "title": title,
        "rn50": __version__,
        "sections": {section.title: section.facts for section in found},
        "pictures": list(pictures),
    }
    page = "\n\n".join(
        [f"# {escaped(title)}", *(f"## {section.title}\n\n{section.markdown}" for section in found)]
    )
    _make(out)
    for name, png in pictures.items():
        durable.write_bytes(out / name, png)
    outdated = _pictures_of(out / FACTS) - set(pictures)
    durable.write_json(out / FACTS, _plain(facts))
    durable.write_text(out / MARKDOWN, page + "\n")
    for name in outdated:
        (out / name).unlink(missing_ok=True)
    return out / MARKDOWN


def _make(folder: Path) -> None:
    with durable.explained(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"cannot write to {folder}: a file is in its place; give another folder with --out"
            ) from error


def _pictures_of(facts: Path) -> set[str]:
    """Return the pictures of the analysis that is there already."""
    try:
        names = json.loads(facts.read_text())["pictures"]
        return {name for name in names if name.endswith(".png") and Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _plain(value: Any) -> Any:
    """Return what JSON has words for: null for a number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _architecture(subject: Subject) -> Section:
    run, images = subject.run, subject.weights.images
    return architecture.section(
        subject.weights.model,
        px=images.px_at(run.epochs) if run else images.train_px,
        batch_size=run.hardware.micro_batch or images.batch_size if run else images.batch_size,
        optim=run.optim if run else None,
        average=run.average if run else None,
    )
