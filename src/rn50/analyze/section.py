"""What an analysis is made of: sections of words, facts and pictures."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file beside the words."""

    name: str
    """Its file name, by which the Markdown shows it, such as ``confusion.png``."""
    png: bytes
    alt: str
    """What is to be seen, for those who do not see it."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of an analysis, whole for a reader of it alone."""

    title: str
    markdown: str
    """GitHub's Markdown below the title, with its pictures as ``![alt](name.png)``."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same and more as plain JSON."""
    pictures: tuple[Picture, ...] = ()
