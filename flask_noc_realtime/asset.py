"""The files that browsers get, each also under an address that names its content."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cache
from importlib.resources import files

ASSETS = {
    "client.js": "noc-realtime.js",
    "client.classic.js": "noc-realtime.classic.js",
    "client-page.js": "noc-realtime-page.js",
    "client-react.js": "noc-realtime-react.js",
}
"""Their names under the prefix, and in the folder static."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asset:
    """Hold a file, and what names its content."""

    source: bytes
    tag: str


@cache
def load(name: str) -> Asset:
    """Return the file that browsers get under *name*."""
    source = files(__package__).joinpath(f"static/{ASSETS[name]}").read_bytes()
    return Asset(source, hashlib.sha256(source).hexdigest()[:16])
