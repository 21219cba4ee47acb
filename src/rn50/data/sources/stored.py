"""A source that is read from disk: parts that each yield labelled images, and what they share."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rn50.data.sources.base import SPLITS, ClassName, Counts, Skipped, SourceImage, Split
from rn50.data.sources.container import Container
from rn50.data.sources.published import deviations, verdict
from rn50.data.sources.tars import Tar

Labels = Mapping[str, tuple[Split, str]]
"""Path in a container -> (split, class id)."""


@runtime_checkable
class Part(Protocol):
    """Some of a source's images, such as those of one archive."""

    @property
    def skipped(self) -> Skipped:
        """Return what the last pass of ``images`` left out."""
        ...

    def count(self) -> int:
        """Return the number of images."""
        ...

    def images(self) -> Iterator[SourceImage]:
        """Yield every image once, in an order that depends on the content alone."""
        ...

    def check(self) -> list[str]:
        """Return what the last pass found about archives, or raise ``DataError``."""
        ...


class Labelled:
    """Files of a container, all of whose labels are known."""

    def __init__(self, container: Container, labels: Labels) -> None:
        self.container = container
        self.labels = labels
        self.skipped = Skipped()

    def count(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def images(self) -> Iterator[SourceImage]:
        """Yield the images in the container's order."""
        for member in self.container.members(self.labels.keys()):
            split, class_id = self.labels[member.path]
            yield SourceImage(split, class_id, member.path, member.read)

    def check(self) -> list[str]:
        """Compare the archive's hash with the published one, if it was hashed."""
        if isinstance(self.container, Tar) and self.container.md5 is not None:
            return [verdict(self.container.path, self.container.md5)]
        return []


class StoredImages:
    """Labelled images on disk.

    Args:
        kind: The layout's name.
        origin: The folder or archive that the user named.
        classes: Sorted by id.
        parts: Where the images are, in the order in which they are to be read.
        skipped: What the layout or the containers left out, before any part is read.
        expected: How many images the set has as published, where it is a known one.
        notes: What the user of the data should know.
    """

    def __init__(
        self,
        kind: str,
        origin: Path,
        classes: tuple[ClassName, ...],
        parts: Sequence[Part],
        skipped: Skipped,
        *,
        expected: Counts | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.origin = origin
        self.classes = classes
        self.parts = parts
        self.expected = expected
        self.notes = notes
        self.facts: list[str] = []
        """Lines for ``check`` that are known without a pass over the images."""
        self._skipped = skipped
        self._found: dict[Split, Counter[str]] = {}

    @property
    def skipped(self) -> Skipped:
        """Return what was left out so far."""
        merged = Skipped()
        for skipped in (self._skipped, *(part.skipped for part in self.parts)):
            merged.merge(skipped)
        return merged

    def count(self) -> int:
        """Return the number of images of all splits."""
        return sum(part.count() for part in self.parts)

    def images(self) -> Iterator[SourceImage]:
        """Yield every image once, part after part."""
        self._found = {split: Counter() for split in SPLITS}
        for part in self.parts:
            for image in part.images():
                self._found[image.split][image.class_id] += 1
                yield image

    def check(self) -> list[str]:
        """Compare archives and numbers of images with the published ones."""
        lines = [*self.facts, *(line for part in self.parts for line in part.check())]
        if self.expected is not None and self._found:
            lines += deviations(self.expected, self._found)
        return lines
