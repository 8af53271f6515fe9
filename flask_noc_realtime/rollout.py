"""Which users have streams while an app moves over to them; the others poll."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from .errors import ConfigError
from .event import ROLLOUT, Rule, notice

STREAM, POLLING = "stream", "polling"
MAX_NAMES = 1000

_PLACES = 10_000


@dataclass(frozen=True, slots=True)
class Rollout:
    """Say which users have streams.

    A user's place in the order is a hash: the same in every process, on every machine and in every
    version, so that a higher percentage only ever adds users. Without a user_id, a client has a
    stream only when all have.

    :param percent: how many of the users, from 0 to 100 in steps of 0.01.
    :param allow: users who have streams whatever the percentage.
    :param deny: users who have none.
    :param namespace: so that the apps that share users do not begin with the same ones.
    :raises ConfigError: naming the field that is wrong.
    """

    percent: float = 100.0
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    namespace: str = "noc"

    def __post_init__(self) -> None:
        if not is_percentage(self.percent):
            raise ConfigError(
                f"The rollout's percent is {self.percent!r:.80}; use a number from 0 to 100, in "
                "steps of 0.01."
            )
        for name in ("allow", "deny"):
            object.__setattr__(self, name, _users(name, getattr(self, name)))
        both = sorted(self.allow & self.deny)
        if both:
            raise ConfigError(f"{both[0]!r} is on both lists of the rollout; take it off one.")

    def includes(self, user_id: str | None) -> bool:
        """Tell whether a user has streams."""
        if user_id in self.deny:
            return False
        if self.percent >= 100 or user_id in self.allow:
            return True
        # A product such as 1.1 * 100 is a little more than a whole number.
        return user_id is not None and place(self.namespace, user_id) < round(self.percent * 100)

    def cohort(self, user_id: str | None) -> str:
        """Return ``stream`` or ``polling``: how a user is served."""
        return STREAM if self.includes(user_id) else POLLING


def record_of(rollout: Rollout | None) -> bytes:
    """Encode the notice that sets a rollout; with None the configuration counts again."""
    fields: dict[str, Any] | None = None
    if rollout is not None:
        allow, deny = sorted(rollout.allow), sorted(rollout.deny)
        fields = {"percent": rollout.percent, "allow": allow, "deny": deny}
    return notice(ROLLOUT, json.dumps(fields))


def rollout_of(rule: Rule, configured: Rollout) -> Rollout:
    """Return the rollout that a notice sets, or *configured*.

    :raises ConfigError: when `record_of` did not write it.
    """
    try:
        fields = json.loads(rule.user_id or "")
        if fields is None:
            return configured
        return Rollout(fields["percent"], fields["allow"], fields["deny"], configured.namespace)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"Not a rollout: {rule.user_id!r:.80}") from error


def place(namespace: str, user_id: str) -> int:
    """Return a user's place in the order, from 0 to 9999.

    It is BLAKE2b (RFC 7693) with a digest of 8 bytes, of the namespace, a zero byte and the user in
    UTF-8, as a big-endian number modulo 10,000.
    """
    name = f"{namespace}\0{user_id}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big") % _PLACES


def is_percentage(value: float) -> bool:
    """Tell whether *value* is from 0 to 100, in steps of 0.01."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 100 and abs(value * 100 - round(value * 100)) < 1e-6


def _users(name: str, value: Collection[str]) -> frozenset[str]:
    # A str is a collection as well: of letters.
    if isinstance(value, str) or not isinstance(value, Collection):
        raise ConfigError(f"The rollout's {name} is {value!r:.80}; pass a collection of user ids.")
    if not all(isinstance(user, str) and user for user in value):
        raise ConfigError(f"The rollout's {name} is {value!r:.80}; pass non-empty str only.")
    users = frozenset(value)
    if len(users) > MAX_NAMES:
        raise ConfigError(
            f"The rollout's {name} has {len(users)} users and {MAX_NAMES} are the limit, since "
            "every worker is sent them; use percent for more."
        )
    return users
