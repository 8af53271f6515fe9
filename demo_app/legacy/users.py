"""Who may log in, and what each role may do. A login lasts for a shift."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from flask import session

SHIFT = 12 * 3600

_VIEWER = frozenset({"incidents.read", "servers.read"})
_OPERATOR = _VIEWER | {"incidents.acknowledge", "logs.read", "automations.read"}
_ENGINEER = _OPERATOR | {"incidents.take_over", "logs.debug"}

ROLES = {"operator": _OPERATOR, "engineer": _ENGINEER, "viewer": _VIEWER}

# Its passwords are on the login page: there is nothing to protect in a simulated network.
ACCOUNTS = {
    "kim": ("operator", "kim-demo"),
    "alex": ("engineer", "alex-demo"),
    "robin": ("viewer", "robin-demo"),
}


@dataclass(frozen=True)
class User:
    """Somebody who is logged in.

    :ivar until: when the login ends, in seconds since 1970.
    """

    name: str
    role: str
    until: float

    @property
    def permissions(self) -> frozenset[str]:
        """What the role may do."""
        return ROLES[self.role]


def log_in(name: str, password: str) -> bool:
    """Log the browser in, if the password is right."""
    role, right = ACCOUNTS.get(name, ("", ""))
    if not role or not hmac.compare_digest(password.encode(), right.encode()):
        return False
    session.update(user=name, role=role, until=time.time() + SHIFT)
    return True


def log_out() -> None:
    """Forget who uses the browser."""
    session.clear()


def current_user() -> User | None:
    """Return who sent the request."""
    if session.get("role") not in ROLES or session["until"] <= time.time():
        return None
    return User(session["user"], session["role"], session["until"])
