"""The configuration, read once from `app.config` into a frozen object."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .emit import EmitOptions
from .errors import ConfigError
from .hub import HubOptions
from .lease import LeaseOptions
from .rollout import Rollout, is_percentage

_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)
_PREFIX = re.compile(r"(/[A-Za-z0-9_.~-]+)+", re.ASCII)
_STRONG = re.compile(r"[!-~]{16,}", re.ASCII)


class Secret(str):
    """A str that no log shows by its repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>" if self else "''"


_NO_SECRET = Secret()
_MEMORY = Secret("memory://")


@dataclass(frozen=True, slots=True)
class Config:
    """Every `NOC_REALTIME_*` key.

    :ivar url: where events travel: ``memory://`` (one process) or any Redis URL.
    :ivar prefix: the path of the blueprint.
    :ivar allow_anonymous: serve streams to clients without an identity.
    :ivar heartbeat: seconds of silence on a stream at most.
    :ivar retry: seconds until a browser reconnects, on average.
    :ivar history_events: events kept for replay, in Redis and in each process.
    :ivar history_bytes: bytes of events kept for replay, in Redis and in each process.
    :ivar max_event_bytes: bytes of one encoded event at most.
    :ivar max_lag: seconds an overloaded worker may let live streams fall behind before it
        resets them.
    :ivar stream_lifetime: seconds a stream lasts at most before its client is sent to
        reconnect, so that a load balancer can spread the load anew; 0 is for ever.
    :ivar max_streams_per_user: streams of one user on all workers; 0 is any number.
    :ivar max_streams: streams of one worker; 0 is any number.
    :ivar max_long_polls: polls that wait in one worker; another is answered at once; 0 is any
        number.
    :ivar stream_limit: what a user's stream too many does: ``reject`` answers it with 429,
        ``evict`` ends the oldest.
    :ivar lease: seconds until the streams of a killed worker no longer count.
    :ivar ticket_ttl: seconds in which a ticket must be used.
    :ivar poll_interval: seconds a polling client is told to wait.
    :ivar rollout: percentage of the users who have streams, in steps of 0.01, until another one is
        stored; the others poll.
    :ivar health_grace: seconds the broker may be away before ``health?ready=1`` answers 503.
    :ivar cors_origins: other origins whose pages may connect, such as
        ``["https://wallboard.example"]``.
    :ivar jwt_user_claim: the claim that holds the user; by default the identity claim of
        Flask-JWT-Extended.
    :ivar jwt_role_claim: the claim that holds the role.
    :ivar jwt_permissions_claim: the claim that holds the list of permissions.
    :ivar transport: ``auto``, ``detached`` or ``portable``.
    :ivar namespace: prefix of every Redis key and channel, so that apps share a Redis.
    :ivar emit_errors: ``log`` queues what the broker does not take; ``raise`` raises.
    :ivar queue_events: events queued while the broker is away, at most.
    :ivar queue_bytes: bytes queued while the broker is away, at most.
    :ivar coalesce_ttl: seconds `@coalesce` gives out a result, unless told otherwise.
    :ivar coalesce_store: ``auto`` keeps the pages of `@coalesce` in the app's Flask-Caching, where
        it has one that fits; ``own`` never does.
    :ivar metrics: ``auto`` counts where `NocRealtime.metrics` said, or else in the registry of
        prometheus-flask-exporter, where the app uses it; ``off`` counts nothing.
    :ivar debug_page: serve ``debug`` under the prefix, a page that shows whoever has an identity
        what their stream does.
    :ivar strict_types: refuse event types nobody registered.
    :ivar ingest_alertmanager_token: the token or password Alertmanager sends; without one
        ``ingest/alertmanager`` is no address.
    :ivar ingest_secret: what webhooks are signed with; without one ``ingest/webhook`` is no
        address.
    :ivar ingest_permissions: who may see what is ingested; without any, everybody.
    :ivar ingest_max_bytes: bytes of one body at most.
    :ivar ingest_window: seconds the timestamp of a signed webhook may be off.
    :ivar ingest_repeat: seconds in which an alert that says nothing new is not emitted again.
    """

    url: Secret = _MEMORY
    prefix: str = "/api/v1/events"
    allow_anonymous: bool = False
    heartbeat: float = 15.0
    retry: float = 3.0
    history_events: int = 10_000
    history_bytes: int = 64 * 1024 * 1024
    max_event_bytes: int = 256 * 1024
    max_lag: float = 2.0
    stream_lifetime: float = 0.0
    max_streams_per_user: int = 3
    max_streams: int = 0
    max_long_polls: int = 100
    stream_limit: str = "reject"
    lease: float = 10.0
    ticket_ttl: float = 30.0
    poll_interval: float = 5.0
    rollout: float = 100.0
    health_grace: float = 30.0
    cors_origins: tuple[str, ...] = ()
    jwt_user_claim: str = ""
    jwt_role_claim: str = "role"
    jwt_permissions_claim: str = "permissions"
    transport: str = "auto"
    namespace: str = "noc"
    emit_errors: str = "log"
    queue_events: int = 10_000
    queue_bytes: int = 16 * 1024 * 1024
    coalesce_ttl: float = 5.0
    coalesce_store: str = "auto"
    metrics: str = "auto"
    debug_page: bool = False
    strict_types: bool = True
    ingest_alertmanager_token: Secret = _NO_SECRET
    ingest_secret: Secret = _NO_SECRET
    ingest_permissions: tuple[str, ...] = ()
    ingest_max_bytes: int = 32 * 1024 * 1024
    ingest_window: float = 300.0
    ingest_repeat: float = 3600.0

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Config:
        """Read the keys, accepting strings as environment variables carry them.

        :raises ConfigError: naming the key, its value and what it takes.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            key = key_of(field.name)
            if key in mapping:
                values[field.name] = _convert(key, mapping[key], type(field.default))
        if "cors_origins" in values:
            values["cors_origins"] = tuple(origin.lower() for origin in values["cors_origins"])
        config = cls(**values)
        config._check()
        return config

    @property
    def ingests(self) -> bool:
        """Whether alerts or events are taken from outside."""
        return bool(self.ingest_alertmanager_token or self.ingest_secret)

    @property
    def emit_options(self) -> EmitOptions:
        """How events are emitted."""
        return EmitOptions(
            max_event_bytes=self.max_event_bytes,
            queue_events=self.queue_events,
            queue_bytes=self.queue_bytes,
            raises=self.emit_errors == "raise",
        )

    @property
    def lease_options(self) -> LeaseOptions:
        """How many streams there may be."""
        return LeaseOptions(
            per_user=self.max_streams_per_user,
            per_worker=self.max_streams,
            evict=self.stream_limit == "evict",
            seconds=self.lease,
        )

    @property
    def hub_options(self) -> HubOptions:
        """What the hub needs to know."""
        return HubOptions(
            history_events=self.history_events,
            history_bytes=self.history_bytes,
            max_lag=self.max_lag,
            heartbeat=self.heartbeat,
            retry=self.retry,
            stream_lifetime=self.stream_lifetime,
            rollout=Rollout(self.rollout, namespace=self.namespace),
        )

    def _check(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(choices)}")
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise _wrong(name, getattr(self, name), f"a number of at least {least}")
        if not _PREFIX.fullmatch(self.prefix):
            raise _wrong("prefix", self.prefix, "a path such as '/api/v1/events'")
        if not _NAMESPACE.fullmatch(self.namespace):
            raise _wrong("namespace", self.namespace, "letters, digits and _ . : -")
        if not is_percentage(self.rollout):
            raise _wrong("rollout", self.rollout, "a number from 0 to 100, in steps of 0.01")
        for name in ("ingest_alertmanager_token", "ingest_secret"):
            if not _STRONG.fullmatch(getattr(self, name) or 16 * "-"):
                raise ConfigError(
                    f"{key_of(name)} is too weak, or has blanks; use 16 or more letters, digits "
                    "and signs of ASCII, such as `openssl rand -hex 32` prints."
                )
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise _wrong("cors_origins", origin, "origins such as 'https://noc.example:8443'")


_CHOICES = {
    "transport": ("auto", "detached", "portable"),
    "emit_errors": ("log", "raise"),
    "stream_limit": ("reject", "evict"),
    "coalesce_store": ("auto", "own"),
    "metrics": ("auto", "off"),
}
_LEAST = {
    "heartbeat": 0.1,
    "retry": 0.0,
    "history_events": 1,
    "history_bytes": 1,
    "max_event_bytes": 64,
    "max_lag": 0.1,
    "stream_lifetime": 0.0,
    "max_streams_per_user": 0,
    "max_streams": 0,
    "max_long_polls": 0,
    "lease": 1.0,
    "ticket_ttl": 1.0,
    "poll_interval": 0.1,
    "health_grace": 0.0,
    "coalesce_ttl": 0.0,
    "queue_events": 0,
    "queue_bytes": 0,
    "ingest_max_bytes": 1024,
    "ingest_window": 1.0,
    "ingest_repeat": 0.0,
}
_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def key_of(name: str) -> str:
    """Return the config key of a field: ``NOC_REALTIME_HEARTBEAT`` for ``heartbeat``."""
    return f"NOC_REALTIME_{name.upper()}"


def _convert(key: str, value: Any, kind: type) -> Any:
    if kind is bool:
        word = _WORDS.get(str(value).lower())
        if word is None:
            raise ConfigError(f"{key} is {value!r}; use True or False.")
        return word
    if kind is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple, set, frozenset)) or not all(
            isinstance(part, str) for part in parts
        ):
            raise ConfigError(f"{key} is {value!r}; use a list of str.")
        return tuple(part.strip() for part in parts if part.strip())
    if kind in (str, Secret):
        if not isinstance(value, str):
            shown = f"a {type(value).__name__}" if kind is Secret else repr(value)
            raise ConfigError(f"{key} is {shown}; use a str.")
        return value if kind is str else Secret(value)
    try:
        number = kind(value)
        # An infinite interval would pass every check and fail the first stream.
        if isinstance(value, bool) or number != float(value) or not math.isfinite(number):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        noun = "a whole number" if kind is int else "a finite number"
        raise ConfigError(f"{key} is {value!r}; use {noun}.") from None


def _wrong(name: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key_of(name)} is {value!r}; use {wanted}.")
