"""Real time for Flask: live streams from a legacy synchronous app."""

from __future__ import annotations

from .auth import Identity
from .coalesce import coalesce
from .emits import emits, emitting
from .errors import (
    BrokerUnavailable,
    ConfigError,
    EventError,
    NocRealtimeError,
    ParameterError,
    PayloadTooLarge,
    UnknownTypeError,
)
from .event import Event
from .extension import NocRealtime
from .handler import RealtimeHandler
from .ingest import Alert
from .outside import Emitter
from .rollout import Rollout

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "BrokerUnavailable",
    "ConfigError",
    "Emitter",
    "Event",
    "EventError",
    "Identity",
    "NocRealtime",
    "NocRealtimeError",
    "ParameterError",
    "PayloadTooLarge",
    "RealtimeHandler",
    "Rollout",
    "UnknownTypeError",
    "coalesce",
    "emits",
    "emitting",
]
