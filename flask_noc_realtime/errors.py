"""Errors that say what happened, whose fault it is, and what to do."""

from __future__ import annotations


class NocRealtimeError(Exception):
    """Base of every error this package raises."""


class ConfigError(NocRealtimeError, ValueError):
    """A `NOC_REALTIME_*` value, or the way the extension was set up, is wrong."""


class EventError(NocRealtimeError, ValueError):
    """An event cannot be emitted as given; nothing was published."""


class UnknownTypeError(EventError):
    """The event type is not in the catalogue."""


class PayloadTooLarge(EventError):
    """The encoded event exceeds `NOC_REALTIME_MAX_EVENT_BYTES`."""


class ParameterError(NocRealtimeError, ValueError):
    """A request parameter of the stream is malformed; the client is at fault."""


class BodyError(ParameterError):
    """The body of a request is malformed; its sender is at fault."""


class BodyTooLarge(BodyError):
    """The body of a request has more bytes than are taken."""


class ReplayError(NocRealtimeError):
    """A signed request was accepted before."""


class IdentityError(NocRealtimeError):
    """A request shows an identity that cannot be accepted; its sender is at fault."""


class OriginError(NocRealtimeError):
    """A request comes from a page of an origin that may not connect."""


class LimitError(NocRealtimeError):
    """There are as many streams as one user, or one worker, may have.

    :ivar everybody: whether it is the worker that is full.
    """

    def __init__(self, message: str, *, everybody: bool) -> None:
        super().__init__(message)
        self.everybody = everybody


class BrokerUnavailable(NocRealtimeError, ConnectionError):
    """The broker could not be reached, or did not answer.

    :ivar uncertain: whether what it was asked for may have been done all the same. An event that
        is emitted again is then seen twice, if it was.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain
