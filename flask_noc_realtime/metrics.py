"""What an operator sees of streams, emits and coalescing, as Prometheus metrics.

The parts of a process tell a `Metrics` what happens. It is `OFF`, which takes no notice, or a
`Prometheus`, which counts.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Protocol

from .event import Rule
from .frame import count_frames, happened

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client import Metric as Family

P = ParamSpec("P")

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
OTHER = "other"
"""The label of a type that the app does not know."""

_REFRESH = 1.0

_logger = logging.getLogger("flask_noc_realtime")


class Metric(NamedTuple):
    """A metric, as it is exported and documented.

    :ivar label: the name of its label, if it has one.
    :ivar values: those of the label that there are, the event types apart.
    :ivar buckets: of a histogram.
    :ivar over: how the workers' values of a gauge become one.
    """

    name: str
    kind: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    over: str = ""


_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LIFETIMES = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

METRICS = (
    Metric("sse_connections_active", "gauge", "Streams that are open.", over="livesum"),
    Metric("sse_connections", "counter", "Streams that were opened."),
    Metric("sse_reconnections", "counter", "Streams that were opened to resume."),
    Metric(
        "sse_connection_duration",
        "histogram",
        "Seconds that streams lasted, when they ended.",
        buckets=_LIFETIMES,
    ),
    Metric(
        "sse_stream_rejections",
        "counter",
        "Requests for a stream that were given none.",
        "reason",
        ("invalid", "unauthorized", "forbidden", "limit", "rollout", "unavailable", OTHER),
    ),
    Metric("sse_events_sent", "counter", "Events sent, one for each stream.", "type", (OTHER,)),
    Metric("sse_replayed_events", "counter", "Events sent that were older than the stream."),
    Metric(
        "sse_delivery_latency",
        "histogram",
        "Seconds from when an event says it happened until it was sent, sampled among those that "
        "waited longest.",
        buckets=_WAITS,
    ),
    Metric(
        "sse_resets",
        "counter",
        "Streams that were told to fetch everything again.",
        "reason",
        ("unknown-position", "overrun", "history-lost", "overload"),
    ),
    Metric(
        "sse_log_lag",
        "gauge",
        "Seconds by which the slowest live stream is behind what its worker knows.",
        over="livemax",
    ),
    Metric(
        "sse_broker_up", "gauge", "1 while every worker has the broker, else 0.", over="livemin"
    ),
    Metric(
        "sse_emit_failures",
        "counter",
        "Emits that the broker did not take: queued, or raised as an error.",
    ),
    Metric("sse_emit_queued", "gauge", "Emits that wait for the broker.", over="livesum"),
    Metric("sse_emit_dropped", "counter", "Emits that were given up."),
    Metric(
        "sse_poll_fallbacks",
        "counter",
        "Polls that were answered, by how the rollout has their user served.",
        "cohort",
        ("stream", "polling"),
    ),
    Metric(
        "sse_poll_events",
        "counter",
        "Events that polls were answered.",
        "cohort",
        ("stream", "polling"),
    ),
    Metric(
        "sse_poll_latency",
        "histogram",
        "Seconds from when an event says it happened until a poll was answered it, of the first in "
        "each answer.",
        "cohort",
        ("stream", "polling"),
        buckets=_WAITS,
    ),
    Metric(
        "sse_rollout_percent",
        "gauge",
        "Percentage of the users who have streams.",
        over="livemax",
    ),
    Metric("dedup_cache_hits", "counter", "Calls that were given a result that is kept."),
    Metric("dedup_cache_misses", "counter", "Calls that did the work."),
    Metric(
        "dedup_requests_deduplicated",
        "counter",
        "Calls that waited for another's work and were given its result.",
    ),
    Metric("dedup_cache_size", "gauge", "Results that workers keep themselves.", over="livesum"),
    Metric(
        "dedup_flight_duration",
        "histogram",
        "Seconds for which the first to ask for a result was at it, and others could join.",
        buckets=_WAITS,
    ),
    Metric(
        "dedup_lease_takeovers",
        "counter",
        "Results worked out in place of a worker whose lease had lapsed.",
    ),
)


class Sweep:
    """What was sent to streams in a moment; it belongs to whoever sends."""

    __slots__ = ("at", "oldest", "replayed", "waited", "writes")

    def __init__(self) -> None:
        self.writes: list[tuple[Sequence[Rule], int]] = []
        self.replayed = 0
        self.oldest = sys.maxsize
        self.waited = b""
        self.at = 0.0

    def __bool__(self) -> bool:
        return bool(self.writes)

    def add(self, rules: Sequence[Rule], writes: int, *, replay: bool = False) -> None:
        """Add that so many streams were sent the same events."""
        if not writes or not rules:
            return
        self.writes.append((rules, writes))
        if replay:
            self.replayed += writes * len(rules)

    def look(self, ordinal: int, body: bytes, now: float) -> None:
        """Measure the latency of the first event in *body*, sent to a live stream *now*.

        It is worth the call where *ordinal*, the event's own, is below `oldest`.
        """
        self.oldest, self.waited, self.at = ordinal, body, now

    def totals(self) -> dict[str, int]:
        """Return how many events were sent of each type."""
        totals: dict[str, int] = {}
        if len(self.writes) == 1:
            ((rules, writes),) = self.writes
            for rule in rules:
                totals[rule.type] = totals.get(rule.type, 0) + writes
            return totals
        # Most writes of a moment are for equally many streams; counting those at once is quicker.
        batches: dict[int, list[Rule]] = {}
        for rules, writes in self.writes:
            batches.setdefault(writes, []).extend(rules)
        for writes, rules in batches.items():
            for rule, count in Counter(rules).items():
                totals[rule.type] = totals.get(rule.type, 0) + count * writes
        return totals


class Source(Protocol):
    """What can be asked for the values of the gauges; a process is."""

    pid: int

    def readings(self) -> Mapping[str, float]: ...


class Metrics:
    """Is told what happens, and takes no notice of it.

    Every method is thread-safe, and raises nothing.
    """

    def watch(self, source: Source) -> None:
        """Ask *source* for the values of the gauges from now on."""

    def unwatch(self, source: Source) -> None:
        """Ask it no more."""

    def opened(self, resumes: bool, reset: str | None) -> None:
        """Count a stream that was opened.

        :param resumes: whether it named a position.
        :param reset: why it begins with a reset, if it does.
        """

    def ended(self, seconds: float) -> None:
        """Count a stream that has ended after so many *seconds*."""

    def rejected(self, reason: str) -> None:
        """Count a request that was given no stream."""

    def swept(self, sweep: Sweep) -> None:
        """Count what was sent."""

    def reset(self, reason: str) -> None:
        """Count a stream that is to fetch everything again."""

    def polled(self, cohort: str, events: bytes) -> None:
        """Count a poll of a user of *cohort*, and the frames it is answered."""

    def emit_failed(self) -> None:
        """Count an emit that the broker did not take."""

    def emit_dropped(self, events: int) -> None:
        """Count *events* that are given up."""

    def shared(self, how: str) -> None:
        """Count a call that was given what is ``kept``, or who ``joined`` for another's result."""

    def worked(self) -> None:
        """Count a call that did the work."""

    def landed(self, seconds: float) -> None:
        """Count a flight that took so many *seconds*."""

    def took_over(self) -> None:
        """Count a lease that was taken over from a worker that is gone."""


OFF = Metrics()


def _harmless(
    tell: Callable[Concatenate[Prometheus, P], None],
) -> Callable[Concatenate[Prometheus, P], None]:
    """Have what goes wrong in *tell* logged, once.

    Whoever tells is amid serving a stream, or an emit: a disk that is full, or a directory that
    was deleted, would silence it.
    """

    @functools.wraps(tell)
    def told(self: Prometheus, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            tell(self, *args, **kwargs)
        except Exception:
            if not self.stumbled:
                self.stumbled = True
                _logger.exception("Metrics are not counted any more, or not all of them.")

    return told


class Prometheus(Metrics):
    """Counts with the metrics of a registry, for one process.

    :param exported: the metrics, which the apps of a process share.
    :param types: the event types that get a label of their own.
    """

    def __init__(self, exported: Exported, types: Container[str]) -> None:
        self.stumbled = False
        self._exported = exported
        self._types = types
        self._of = exported.metrics
        self._sent: dict[str, Any] = {}

    @_harmless
    def watch(self, source: Source) -> None:
        self._exported.watch(source)

    @_harmless
    def unwatch(self, source: Source) -> None:
        self._exported.unwatch(source)

    @_harmless
    def opened(self, resumes: bool, reset: str | None) -> None:
        self._of["sse_connections"].inc()
        if resumes:
            self._of["sse_reconnections"].inc()
        if reset is not None:
            self.reset(reset)

    @_harmless
    def ended(self, seconds: float) -> None:
        self._of["sse_connection_duration"].observe(seconds)

    @_harmless
    def rejected(self, reason: str) -> None:
        self._of["sse_stream_rejections"].labels(reason).inc()

    @_harmless
    def swept(self, sweep: Sweep) -> None:
        for type, total in sweep.totals().items():
            self._sent_of(type).inc(total)
        if sweep.replayed:
            self._of["sse_replayed_events"].inc(sweep.replayed)
        at = happened(sweep.waited) if sweep.waited else None
        if at is not None:
            latency = time.time() - at - (time.monotonic() - sweep.at)
            # Clocks of two machines differ.
            self._of["sse_delivery_latency"].observe(max(0.0, latency))

    @_harmless
    def reset(self, reason: str) -> None:
        self._of["sse_resets"].labels(reason).inc()

    @_harmless
    def polled(self, cohort: str, events: bytes) -> None:
        self._of["sse_poll_fallbacks"].labels(cohort).inc()
        if not events:
            return
        self._of["sse_poll_events"].labels(cohort).inc(count_frames(events))
        at = happened(events)
        if at is not None:
            self._of["sse_poll_latency"].labels(cohort).observe(max(0.0, time.time() - at))

    @_harmless
    def emit_failed(self) -> None:
        self._of["sse_emit_failures"].inc()

    @_harmless
    def emit_dropped(self, events: int) -> None:
        self._of["sse_emit_dropped"].inc(events)

    @_harmless
    def shared(self, how: str) -> None:
        name = _SHARED.get(how)
        if name is not None:
            self._of[name].inc()

    @_harmless
    def worked(self) -> None:
        self._of["dedup_cache_misses"].inc()

    @_harmless
    def landed(self, seconds: float) -> None:
        self._of["dedup_flight_duration"].observe(seconds)

    @_harmless
    def took_over(self) -> None:
        self._of["dedup_lease_takeovers"].inc()

    def _sent_of(self, type: str) -> Any:
        counter = self._sent.get(type)
        if counter is None:
            # Without a bound, whoever emits could make a time series of anything.
            known = type in self._types
            counter = self._of["sse_events_sent"].labels(type if known else OTHER)
            if known:
                self._sent[type] = counter
        return counter


_GAUGES = tuple(metric for metric in METRICS if metric.kind == "gauge")
_SHARED = {"kept": "dedup_cache_hits", "joined": "dedup_requests_deduplicated"}

_OVER: dict[str, Callable[[Sequence[float]], float]] = {
    "livesum": sum,
    "livemax": functools.partial(max, default=0.0),
    "livemin": functools.partial(min, default=1.0),
}


class Exported:
    """The metrics of one registry, or of all processes that share a directory.

    Gauges are read when somebody asks. Of several processes nobody can ask all, so that each
    writes its own down once a second, and whoever buries it deletes them; see `gunicorn`.

    :param registry: what asks, or None where the metrics go to the directory.
    :raises ValueError: when another's metric has one of the names.
    """

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.metrics = {metric.name: _make(metric) for metric in METRICS if metric.kind != "gauge"}
        self._gauges: dict[str, Any] = {}
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._refreshing = False
        if registry is not None:
            registry.register(self)
        else:
            self._gauges = {metric.name: _make(metric) for metric in _GAUGES}

    def watch(self, source: Source) -> None:
        """Read the gauges from *source* as well."""
        if self._pid != os.getpid():
            # A thread of the parent may have held the lock in the moment of the fork.
            self._pid, self._lock, self._refreshing = os.getpid(), threading.Lock(), False
        with self._lock:
            self._sources.add(source)
            starts = bool(self._gauges) and not self._refreshing
            self._refreshing = self._refreshing or starts
        if starts:
            self._start_refreshing()
        self._write()

    def unwatch(self, source: Source) -> None:
        """Read nothing from it any more."""
        with self._lock:
            self._sources.discard(source)
        self._write()

    # What a registry calls.

    def describe(self) -> Iterator[Family]:
        """Yield the names: all are registered, or none is."""
        from prometheus_client import Metric as Family

        for metric in METRICS:
            yield Family(metric.name, metric.help, metric.kind)

    def collect(self) -> Iterator[Family]:
        """Yield the metrics."""
        from prometheus_client.core import GaugeMetricFamily

        for made in self.metrics.values():
            yield from made.collect()
        for metric, value in self._read():
            yield GaugeMetricFamily(metric.name, metric.help, value=value)

    # The gauges.

    def _read(self) -> list[tuple[Metric, float]]:
        with self._lock:
            # After a fork the parent's are there as well, and locks of theirs may be held for ever.
            sources = [source for source in self._sources if source.pid == os.getpid()]
        readings = [source.readings() for source in sources]
        return [
            (metric, _OVER[metric.over]([reading[metric.name] for reading in readings]))
            for metric in _GAUGES
        ]

    def _write(self) -> None:
        if self._gauges:
            for metric, value in self._read():
                self._gauges[metric.name].set(value)

    def _start_refreshing(self) -> None:
        thread = threading.Thread(target=self._refresh, name="noc-realtime-metrics", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # No more threads: the next process tries again.
            self._refreshing = False

    def _refresh(self) -> None:
        stumbled = False
        while self._goes_on():
            try:
                self._write()
            except Exception:
                if not stumbled:
                    stumbled = True
                    _logger.exception("Writing down the gauges stumbled; it goes on.")
            time.sleep(_REFRESH)

    def _goes_on(self) -> bool:
        with self._lock:
            self._refreshing = bool(self._sources)
            return self._refreshing


def _make(metric: Metric) -> Any:
    import prometheus_client as client

    labels = [metric.label] if metric.label else []
    made: Any
    if metric.kind == "counter":
        made = client.Counter(metric.name, metric.help, labels, registry=None)
    elif metric.kind == "histogram":
        made = client.Histogram(
            metric.name, metric.help, labels, registry=None, buckets=metric.buckets
        )
    else:
        over: Any = metric.over
        made = client.Gauge(metric.name, metric.help, registry=None, multiprocess_mode=over)
    for value in metric.values:
        # A rate needs a zero to begin with.
        made.labels(value)
    return made


_exported: weakref.WeakKeyDictionary[Any, Exported] = weakref.WeakKeyDictionary()
_in_directory: list[Exported] = []
_lock = threading.Lock()


def default_registry() -> CollectorRegistry | None:
    """Return the registry of prometheus-flask-exporter; None where nobody imported it."""
    if "prometheus_flask_exporter" not in sys.modules:
        return None
    from prometheus_client import REGISTRY

    return REGISTRY


def metrics_in(registry: CollectorRegistry | None, types: Container[str]) -> Metrics:
    """Return what counts in *registry*, or `OFF` when it is None or cannot be used.

    :param types: the event types that get a label of their own.
    """
    if registry is None:
        return OFF
    try:
        with _lock:
            exported = _exported_in(registry)
    except Exception as error:
        # Also what is in the directory may be broken; an emit waits for this.
        _logger.error("There are no metrics of streams: %s", error)
        return OFF
    return Prometheus(exported, types)


def _exported_in(registry: CollectorRegistry) -> Exported:
    """Return the metrics of *registry*; made once, since two of a name would each count anew."""
    if MULTIPROCESS not in os.environ:
        if registry not in _exported:
            _exported[registry] = Exported(registry)
        return _exported[registry]
    if not _in_directory:
        # In a registry that also reads the directory each would be twice.
        _in_directory.append(Exported(None))
    return _in_directory[0]
