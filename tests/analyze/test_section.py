import pytest
from markdown_it import MarkdownIt

from rn50.analyze.section import Picture, escaped, table

NAMES = [
    "*bold* _it_ `code` ~~no~~ $x$",
    "&amp; <b>",
    "![x](http:evil)",
    "[click](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "a|b \\| c\\",
    "line\nbreak",
]


def shown(markdown):
    """What a viewer that lets HTML in shows: the names of the tags, and the words."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    inline = [one for one in tokens.parse(markdown) if one.type == "inline"]
    return [[(part.type, part.content) for part in one.children] for one in inline]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_shows_as_it_is_in_tables_sentences_and_alternative_texts(name):
    words = [("text", " ".join(name.split()))]
    assert shown(table(("a", "b"), [(escaped(name), "1")]))[2] == words
    assert shown(escaped(name)) == [words]
    ((picture,),) = (
        [part for part in one.children if part.type == "image"]
        for one in MarkdownIt().parse(Picture("x.png", b"", f"of {name}").markdown)
        if one.type == "inline"
    )
    assert picture.attrs["src"] == "x.png"
    assert [part.content for part in picture.children] == ["of " + words[0][1]]
