"""The code blocks and recipes of the documentation, which tests run as they stand there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"

_BLOCK = re.compile(
    r"^( *)\.\. code-block:: (\w+)\n((?:\1 +:.*\n)*)\n((?:\1 {4}.*\n|[ ]*\n)+)", re.M
)


def blocks(page: str, language: str, section: str = "") -> list[str]:
    """Return the code blocks of a page in a language, in their order.

    :param section: only those under this title.
    """
    text = (DOCS / f"{page}.rst").read_text()
    if section:
        _, title, text = text.partition(f"\n{section}\n")
        assert title, f"{page}.rst has no section {section!r}"
        text = re.split(r"^.+\n[-~]{3,}\n", text.partition("\n")[2], maxsplit=1, flags=re.M)[0]
    return [textwrap.dedent(found[3]) for found in _BLOCK.findall(text) if found[1] == language]


def recipe(name: str, places: Mapping[str, object]) -> str:
    """Return a file of ``docs/recipes`` for this machine.

    :param places: addresses and paths of the file, and what stands for them here.
    """
    text = (DOCS / "recipes" / name).read_text()
    for theirs, ours in places.items():
        assert theirs in text, f"{name} has no {theirs!r}"
        text = text.replace(theirs, str(ours))
    return text
