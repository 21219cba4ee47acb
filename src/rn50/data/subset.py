"""A part of a source: some of its classes, or the first images of each."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rn50.data.sources.base import (
    SPLITS,
    Checked,
    ClassName,
    Noted,
    Skipped,
    Source,
    SourceImage,
    Split,
    Stored,
)
from rn50.errors import UsageError


class Subset:
    """A source of which only some images are taken.

    Args:
        source: The whole.
        classes: Ids of the classes to take; empty: all.
        per_class: Images of each class and split to take, the first in the source's order (for a
            folder that of the paths, for an archive its own); 0: all. A class that has fewer gives
            what it has.

    Raises:
        UsageError: A class is not in the source, or a number is negative.
    """

    def __init__(self, source: Source, classes: Sequence[str] = (), per_class: int = 0) -> None:
        if per_class < 0:
            raise UsageError(
                f"--per-class is {per_class}; it must be at least 1; leave it out to take all"
            )
        by_id = {class_.id: class_ for class_ in source.classes}
        for name in classes:
            if name not in by_id:
                raise UsageError(_unknown(name, source.classes))
        self._source = source
        self._per_class = per_class
        self.kind = source.kind
        self.classes = tuple(sorted(by_id[name] for name in set(classes))) or source.classes
        self._stopped = False

    @property
    def origin(self) -> Path | None:
        """Return the folder or the archive; None where the source lies nowhere."""
        return self._source.origin if isinstance(self._source, Stored) else None

    @property
    def skipped(self) -> Skipped:
        """Return what the source left out; images that were not chosen are not listed."""
        return self._source.skipped

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the source's notes."""
        return self._source.notes if isinstance(self._source, Noted) else ()

    @property
    def chosen(self) -> dict[str, Any]:
        """Return what was chosen, for the manifest."""
        return {
            "classes": len(self.classes),
            "of_classes": len(self._source.classes),
            "per_class": self._per_class or None,
        }

    def count(self) -> int:
        """Return an upper bound or an estimate: the source does not tell the counts by class."""
        share = len(self.classes) / max(1, len(self._source.classes))
        estimate = round(self._source.count() * share)
        if self._per_class:
            return min(estimate, self._per_class * len(self.classes) * len(SPLITS))
        return estimate

    def images(self) -> Iterator[SourceImage]:
        """Yield the chosen images in the source's order; stop once every class has enough."""
        wanted = {class_.id for class_ in self.classes}
        taken: dict[tuple[Split, str], int] = {}
        full = 0
        self._stopped = False
        for image in self._source.images():
            if image.class_id not in wanted:
                continue
            place = image.split, image.class_id
            count = taken.get(place, 0) + 1
            if self._per_class and count > self._per_class:
                continue
            taken[place] = count
            full += count == self._per_class
            yield image
            if full == len(wanted) * len(SPLITS):
                self._stopped = True
                return

    def check(self) -> list[str]:
        """Return the source's own lines, unless not all of it was read."""
        if not isinstance(self._source, Checked):
            return []
        if self._stopped:
            return ["the source was not compared with what was published: only a part was read"]
        return self._source.check()


def subset(source: Source, classes: str = "", per_class: int = 0) -> Source:
    """Return ``source``, or the part of it that the options ask for.

    Args:
        source: The whole.
        classes: Ids separated by commas, or ``@`` and the path of a file with one id a line.
        per_class: As for ``Subset``.

    Raises:
        UsageError: The options cannot be met.
    """
    if not classes and per_class == 0:
        return source
    ids: list[str] = []
    if classes.startswith("@"):
        try:
            ids = Path(classes[1:]).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--classes is {classes}, which cannot be read ({error}); it must be a text file "
                "with the id of one class a line; check the path"
            ) from error
    elif classes:
        ids = classes.split(",")
    ids = [id_.strip() for id_ in ids if id_.strip()]
    if classes and not ids:
        raise UsageError(
            f"--classes is {classes!r}, which names no class; give ids separated by commas, or "
            "@FILE with one a line; leave it out to take all"
        )
    return Subset(source, ids, per_class)


def _unknown(name: str, classes: Sequence[ClassName]) -> str:
    by_id = {class_.id.casefold(): class_ for class_ in classes}
    by_name = {
        word.strip().casefold(): class_ for class_ in classes for word in class_.name.split(",")
    }
    near = [
        known[match]
        for known in (by_name, by_id)
        for match in difflib.get_close_matches(name.casefold(), known, 3)
    ]
    shown = dict.fromkeys(c.id if c.name == c.id else f"{c.id} ({c.name})" for c in near)
    some = ", ".join(class_.id for class_ in classes[:5]) + (", …" if len(classes) > 5 else "")
    hint = f"did you mean {', '.join(shown)}?" if shown else f"they are {some}"
    return (
        f"--classes names {name!r}, which the source lacks; ids of its classes are needed; {hint}"
    )
