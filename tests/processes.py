"""Child processes of the tests: waiting with a deadline, free ports, and leftovers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_taken: set[int] = set()


def wait_until(condition: Callable[[], T], timeout: float, what: str) -> T:
    """Return the first true result of *condition*; fail after *timeout* seconds.

    :raises TimeoutError: naming *what* did not happen.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.005)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 nobody uses, and a different one on every call."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
        if port not in _taken:
            _taken.add(port)
            return port


def group_members(group: int) -> list[int]:
    """Return the living processes of a process group; a zombie is not alive."""
    if not Path("/proc/self/stat").exists():
        return [group] if _group_exists(group) else []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    """Return the living direct children of *pid* (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(entry.name))
    return sorted(found)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
