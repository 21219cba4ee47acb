"""What every distribution of a data set is turned into before it is packed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Split = Literal["train", "val"]

Layout = Literal[
    "auto",
    "ilsvrc2012",
    "kaggle",
    "folders",
    "tiny-imagenet",
    "imagenette",
    "imagenet-mini",
    "parquet",
    "webdataset",
]
"""How a source is laid out; ``auto`` finds out."""

SPLITS: tuple[Split, ...] = ("train", "val")


class BadImageError(Exception):
    """One image that cannot be packed; the text says why, without its name."""


@dataclass(frozen=True, slots=True, order=True)
class ClassName:
    """A class: the identifier that orders it, and the words a person reads."""

    id: str
    """WordNet id such as ``n01440764``, or the class folder's name. Index = rank of the id."""
    name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image's bytes lie as they are: a stretch of a file."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One labelled image of a source, not yet read."""

    split: Split
    class_id: str
    path: str
    """Where it lies in the source, with ``/`` between folders; for messages and for its key."""
    read: Callable[[], bytes]
    """Return the file's bytes, from any thread and at any time; or raise ``BadImageError``."""
    place: Place | None = None
    """For an image that can be used where it lies, uncompressed in a tar."""


@dataclass(slots=True)
class Skipped:
    """What a source left out, by reason, so that nothing is lost without a word."""

    paths: dict[str, list[str]] = field(default_factory=dict)
    """Reason such as ``"not an image"`` -> paths."""

    def add(self, reason: str, path: str) -> None:
        """Record that ``path`` was left out for ``reason``."""
        self.paths.setdefault(reason, []).append(path)

    def merge(self, more: "Skipped") -> None:
        """Record all that ``more`` has."""
        for reason, paths in more.paths.items():
            self.paths.setdefault(reason, []).extend(paths)


@runtime_checkable
class Source(Protocol):
    """A data set as it was distributed: a folder, an archive, or a generator."""

    @property
    def kind(self) -> str:
        """Return the layout's name, such as ``"class folders"``."""
        ...

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """Return the classes, sorted by id."""
        ...

    @property
    def skipped(self) -> Skipped:
        """Return what was left out so far; complete once ``images`` is exhausted."""
        ...

    def count(self) -> int:
        """Return the number of images of all splits."""
        ...

    def images(self) -> Iterator[SourceImage]:
        """Yield every image once, in an order that depends on the source's content alone."""
        ...


@runtime_checkable
class Stored(Protocol):
    """A source that lies in a folder or a file, unlike one that is generated."""

    @property
    def origin(self) -> Path:
        """Return the folder or the archive."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images a known data set has, as it was published."""

    name: str
    """The data set."""
    total: Mapping[Split, int] = field(default_factory=dict)
    """Images of a split; a split that is not named may have any number."""
    per_class: Mapping[Split, Mapping[str, int]] = field(default_factory=dict)
    """Images of a split's classes by id; a class that is not named may have any number."""


@runtime_checkable
class Checked(Protocol):
    """A source that can compare itself with what was published."""

    def check(self) -> list[str]:
        """Return what was compared and how it came out, a line each; for the manifest.

        To be called once ``images`` is exhausted: what is compared was gathered on the way.

        Raises:
            DataError: A published archive has other bytes than were published.
        """
        ...


@runtime_checkable
class Noted(Protocol):
    """A source that has something to say to whoever uses its data later."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences for the manifest, such as a warning of contaminated scores."""
        ...


@runtime_checkable
class Expected(Protocol):
    """A source whose numbers of images are known; ``check`` tells where they differ."""

    @property
    def expected(self) -> Counts | None:
        """Return the published numbers, or None where this set is not a known one."""
        ...
