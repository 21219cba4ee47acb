"""What an analysis is made of: sections of words, facts and pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LIVE = re.compile(r"[\\`*_\[\]<>&~$]")


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file beside the words."""

    name: str
    """Its file name, by which the Markdown shows it, such as ``confusion.png``."""
    png: bytes
    alt: str
    """What is to be seen, for those who do not see it."""

    @property
    def markdown(self) -> str:
        """Return what shows it in Markdown."""
        return f"![{escaped(self.alt)}]({self.name})"


@dataclass(frozen=True, slots=True)
class Section:
    """One part of an analysis, whole for a reader of it alone."""

    title: str
    markdown: str
    """GitHub's Markdown below the title, with its pictures as ``![alt](name.png)``."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same and more as plain JSON."""
    pictures: tuple[Picture, ...] = ()


def escaped(text: str) -> str:
    """Return what shows ``text`` as it is, in one line of Markdown or in a cell of ``table``."""
    return _LIVE.sub(r"\\\g<0>", " ".join(text.split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Return a table in GitHub's Markdown.

    Args:
        header: The columns' names.
        rows: As many cells each, of Markdown.
        words: So many columns at the left are text; the others are numbers, set to the right.
    """
    marks = [":--" if i < words else "--:" for i in range(len(header))]
    lines = [header, marks, *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
