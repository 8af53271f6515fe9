"""Who is asking for a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from flask import Request

from .audience import Audience, TypeFilter


@dataclass(frozen=True, slots=True)
class Identity:
    """The user behind a request, as the app's identity loader sees them.

    :ivar user_id: receives events emitted with this user_id.
    :ivar role: the user's role.
    :ivar permissions: receives events emitted with any of these permissions.
    :ivar expires_at: an aware time after which the identity is void.
    """

    user_id: str | None = None
    role: str | None = None
    permissions: frozenset[str] = frozenset()
    expires_at: datetime | None = None

    def audience(self, types: TypeFilter) -> Audience:
        """Return the audience class of this identity's streams."""
        return Audience(frozenset(self.permissions), types)


ANONYMOUS = Identity()

IdentityLoader = Callable[[Request], "Identity | None"]
