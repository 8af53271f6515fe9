"""The policy of a coalesced view or function: who shares its results, for how long, until what."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from .audience import TypeFilter
from .errors import ConfigError, ParameterError

Scope = str | Callable[[], Any]

SCOPES = ("public", "role", "permissions", "user")
MAX_BYTES = 1024 * 1024

_HELD_OF_USER = frozenset(
    {
        "authorization",
        "g.user",
        "identity.permissions",
        "identity.role",
        "identity.user",
        "session",
    }
)
_EARLY = 0.2


@dataclass(frozen=True, slots=True)
class Policy:
    """What `coalesce` was told; see there.

    :ivar stale: seconds beyond its time that a result is given out while one caller works out
        the next.
    :ivar early: whether one caller works out the next already in the last fifth of its time.
    """

    scope: Scope
    ttl: float | None = None
    invalidate_on: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    headers: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    max_bytes: int = MAX_BYTES
    key: Callable[..., Any] | None = None
    view: bool | None = None
    stale: float = 0.0
    early: bool = False

    def __post_init__(self) -> None:
        if not callable(self.scope) and self.scope not in SCOPES:
            raise ConfigError(
                f"@coalesce needs a scope, and {self.scope!r} is none: say who may share a result "
                f"with scope={', '.join(map(repr, SCOPES))}, or a function that returns what the "
                "requests that share have in common. Without it one user's page would be another's."
            )
        _check_seconds("ttl", 0.0 if self.ttl is None else self.ttl)
        _check_seconds("stale_while_revalidate", self.stale)
        for pattern in self.invalidate_on:
            check_pattern("invalidate_on", pattern)

    @property
    def held(self) -> frozenset[str]:
        """What of a request may be read: it is in the key, or declared not to matter."""
        return self.reads | (_HELD_OF_USER if self.scope == "user" else {self.shared_by})

    @property
    def held_of_view(self) -> frozenset[str]:
        """What a view may read, which has the headers of `vary` in its key as well."""
        names = self.varies
        return self.held | names | ({"cookies", "session"} if "cookie" in names else set())

    @property
    def shared_by(self) -> str:
        """The name under which a witness notes what those who share have in common."""
        if isinstance(self.scope, str):
            return f"identity.{self.scope}"
        return f"scope.{getattr(self.scope, '__qualname__', repr(self.scope))}"

    @property
    def varies(self) -> frozenset[str]:
        """The request headers in the key, in lower case."""
        return frozenset(name.lower() for name in self.vary)

    @property
    def refreshes(self) -> bool:
        """Whether a result may be given out while the next is worked out."""
        return self.early or self.stale > 0

    def due(self, ttl: float) -> float:
        """Return how many seconds before its end, stale time included, a result is refreshed."""
        return self.stale + (ttl * _EARLY if self.early else 0.0)


def names(name: str, value: Collection[str]) -> tuple[str, ...]:
    """Return *value* as a tuple.

    :raises ConfigError: when it is not a collection of names.
    """
    # A str is a collection as well: of letters.
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{name} of @coalesce is {value!r}; pass a list of str.")
    return tuple(value)


def check_pattern(name: str, pattern: str) -> None:
    """Refuse what no event type could match.

    :raises ConfigError: naming the argument it stands in.
    """
    try:
        TypeFilter.parse(pattern)
        if "," in pattern:
            raise ParameterError("it names several")
    except ParameterError as error:
        raise ConfigError(
            f"{name} has {pattern!r}; use types and patterns such as 'incident.*' ({error})."
        ) from None


def _check_seconds(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is {value!r}; use seconds, or 0 to keep nothing.")
