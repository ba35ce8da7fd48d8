"""Users' names as text of a Markdown page: shown as they are, whatever characters they have.

A name may come from a command line, a file or another machine. On a page it must neither end a
table's cell or a heading, nor become a link, a picture, HTML or a formula.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

NO_NAME: Final = "(no name)"
HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
JOINERS: Final = "\u200c\u200d"
"""Invisible characters that scripts and emoji need."""
SPECIAL: Final = re.compile(
    r"[\\`*\[\]#!|~$@]"
    r"|:(?=\S)"  # an address, or an emoji's name
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # emphasis; within a word it is none
    r"|(?<=www)\.",
    re.IGNORECASE,
)


def one_line(text: str) -> str:
    """A text on one line, in characters that can be seen and written as UTF-8.

    White space of any kind becomes one space. What has no shape, or changes the direction of the
    text around it, becomes ``�``. Bytes that Python could not decode, as it marks them in names
    of files under an ASCII locale, are read as UTF-8.
    """
    text = re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "\ufffd", " ".join(text.split()))
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(each if _is_visible(each) else "\ufffd" for each in text)


def _is_visible(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co")


def escape(text: str) -> str:
    """A text on one line in which nothing is Markdown or HTML, for tables, headings and links."""
    text = re.sub(r"[&<>]", lambda found: HTML[found[0]], one_line(text))
    return SPECIAL.sub(r"\\\g<0>", text)


def name_on_page(name: str) -> str:
    """A name that is not empty, so that a reader sees that there is one missing."""
    return name if one_line(name) else NO_NAME


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
