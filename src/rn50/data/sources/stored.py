"""A source whose labels are known from the listing of one or two containers."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rn50.data.sources.base import ClassName, Skipped, SourceImage, Split
from rn50.data.sources.container import Container

Labels = Mapping[str, tuple[Split, str]]
"""Path in a container -> (split, class id)."""


class StoredImages:
    """Images in containers, with what each is labelled.

    Args:
        kind: The layout's name.
        classes: Sorted by id.
        parts: Each container with the labels of its images.
        skipped: What the layout or the containers left out.
    """

    def __init__(
        self,
        kind: str,
        classes: tuple[ClassName, ...],
        parts: list[tuple[Container, Labels]],
        skipped: Skipped,
    ) -> None:
        self.kind = kind
        self.classes = classes
        self.skipped = skipped
        self._parts = parts

    @property
    def origin(self) -> Path:
        """Return the first container's path."""
        return self._parts[0][0].path

    def count(self) -> int:
        """Return the number of images of all splits."""
        return sum(len(labels) for _, labels in self._parts)

    def images(self) -> Iterator[SourceImage]:
        """Yield every image once, container after container, in its order."""
        for container, labels in self._parts:
            for member in container.members(labels.keys()):
                split, class_id = labels[member.path]
                yield SourceImage(split, class_id, member.path, member.read)
