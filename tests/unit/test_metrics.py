"""The metrics by themselves: their names, their labels, and what adds up to what."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from flask_noc_realtime import ConfigError, NocRealtime
from flask_noc_realtime.event import Catalogue, Event, Rule
from flask_noc_realtime.eventlog import Entry
from flask_noc_realtime.gunicorn import child_exit
from flask_noc_realtime.metrics import METRICS, OFF, Metrics, Prometheus, Sweep, metrics_in
from flask_noc_realtime.process import Process
from flask_noc_realtime.testing import process_of

NAMES = {
    "sse_connections_active": "gauge",
    "sse_connections": "counter",
    "sse_reconnections": "counter",
    "sse_connection_duration": "histogram",
    "sse_stream_rejections": "counter",
    "sse_events_sent": "counter",
    "sse_replayed_events": "counter",
    "sse_delivery_latency": "histogram",
    "sse_resets": "counter",
    "sse_log_lag": "gauge",
    "sse_broker_up": "gauge",
    "sse_emit_failures": "counter",
    "sse_emit_queued": "gauge",
    "sse_emit_dropped": "counter",
    "sse_poll_fallbacks": "counter",
    "sse_poll_events": "counter",
    "sse_poll_latency": "histogram",
    "sse_rollout_percent": "gauge",
    "dedup_cache_hits": "counter",
    "dedup_cache_misses": "counter",
    "dedup_requests_deduplicated": "counter",
    "dedup_cache_size": "gauge",
    "dedup_flight_duration": "histogram",
    "dedup_lease_takeovers": "counter",
}


class World:
    """A registry, and what counts in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.catalogue = Catalogue()
        self.metrics = metrics_in(self.registry, self.catalogue)

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample."""
        return self.registry.get_sample_value(name, labels)

    def sent(self) -> dict[str, float]:
        """Return how many events were sent, by type."""
        return {
            sample.labels["type"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "sse_events_sent_total" and sample.value
        }


@pytest.fixture
def world() -> World:
    """Return a registry with our metrics."""
    return World()


class Source:
    """A process whose gauges a test sets."""

    def __init__(self, pid: int, **values: float) -> None:
        self.pid = pid
        gauges = {name: 0.0 for name, kind in NAMES.items() if kind == "gauge"}
        self._values = {**gauges, "sse_broker_up": 1.0, **values}

    def readings(self) -> dict[str, float]:
        """Return them."""
        return self._values


def rules(*types: str) -> tuple[Rule, ...]:
    """Return the rules of events of these types."""
    return tuple(Rule(type, None, None) for type in types)


def body(when: datetime) -> bytes:
    """Return the frame of an event that says it happened then."""
    record = Event("log.added", {"timestamp": "2001-01-01T00:00:00.000000Z"}, when).record(1000)
    return Entry.from_record("1-1", record).frame


def at(seconds: float) -> datetime:
    """Return the moment so many seconds from now."""
    return datetime.fromtimestamp(time.time() + seconds, timezone.utc)


def test_the_names_are_those_that_rules_and_dashboards_use() -> None:
    """Whoever renames one breaks alerts that nobody sees failing."""
    assert {metric.name: metric.kind for metric in METRICS} == NAMES


def test_every_metric_is_exported_and_has_no_value_nobody_foresaw(world: World) -> None:
    """Also before the first event: a rate needs a zero to begin with."""
    families = {family.name: family for family in world.registry.collect()}
    assert {name: family.type for name, family in families.items()} == NAMES
    for metric in METRICS:
        family = families[metric.name]
        assert family.documentation == metric.help
        values = {each.labels[metric.label] for each in family.samples if metric.label}
        assert values == set(metric.values)


def test_nothing_is_told_that_is_not_counted() -> None:
    """A moment without a counterpart would be taken for silence."""
    moments = {name for name in vars(Metrics) if not name.startswith("_")}
    assert moments <= set(vars(Prometheus))


def test_a_process_knows_every_gauge() -> None:
    """And no other."""
    app = Flask("gauges")
    NocRealtime(app)
    process = process_of(app)
    assert isinstance(process, Process)
    assert set(process.readings()) == {name for name, kind in NAMES.items() if kind == "gauge"}
    process.close()


def test_events_are_counted_by_type_once_for_each_stream(world: World) -> None:
    """However they were put together in writes."""
    sweep = Sweep()
    sweep.add(rules("log.added", "log.added", "log.added", "incident.created"), 990)
    sweep.add(rules("log.added", "log.added", "log.added", "incident.created"), 10, replay=True)
    sweep.add(rules("log.added", "log.added"), 1)
    world.metrics.swept(sweep)
    assert world.sent() == {"log.added": 3002, "incident.created": 1000}
    assert world.value("sse_replayed_events_total") == 40


def test_types_the_app_does_not_know_are_one_series(world: World) -> None:
    """Whoever emits could make a million otherwise; a type registered later has its own."""
    sweep = Sweep()
    for n in range(500):
        sweep.add(rules(f"novel.type{n}"), 2)
    world.metrics.swept(sweep)
    assert world.sent() == {"other": 1000}
    world.catalogue.register("novel.type7")
    world.metrics.swept(sweep)
    assert world.sent() == {"other": 1998, "novel.type7": 2}


def test_a_write_without_events_is_nothing_to_tell() -> None:
    """Heartbeats between two events are without number."""
    sweep = Sweep()
    sweep.add((), 5)
    sweep.add(rules("log.added"), 0)
    assert not sweep and not sweep.writes


def test_the_latency_is_that_of_the_event_which_waited_longest(world: World) -> None:
    """The newest one in a write has waited for nothing, however slow the sweep."""
    sweep = Sweep()
    sweep.look(7, body(at(-0.2)), time.monotonic())
    sweep.look(5, body(at(-3.0)) + body(at(0.0)), time.monotonic())
    assert sweep.oldest == 5
    world.metrics.swept(sweep)
    assert world.value("sse_delivery_latency_count") == 1
    seconds = world.value("sse_delivery_latency_sum")
    assert seconds is not None and 3.0 <= seconds < 60.0


def test_a_clock_that_is_ahead_makes_no_negative_latency(world: World) -> None:
    """A sum that falls looks like a restart."""
    sweep = Sweep()
    sweep.look(1, body(at(3600.0)), time.monotonic())
    world.metrics.swept(sweep)
    assert world.value("sse_delivery_latency_sum") == 0
    assert world.value("sse_delivery_latency_count") == 1


def test_gauges_of_several_apps_are_summed_or_the_worst(world: World) -> None:
    """A process may serve several; one that is closed is left out, and so is a parent's."""
    pid = os.getpid()
    one = Source(pid, sse_connections_active=3, sse_log_lag=0.5)
    other = Source(pid, sse_connections_active=4, sse_log_lag=2.0, sse_broker_up=0.0)
    parent = Source(pid + 1, sse_connections_active=100)
    for source in (one, other, parent):
        world.metrics.watch(source)
    assert world.value("sse_connections_active") == 7
    assert world.value("sse_log_lag") == 2.0
    assert world.value("sse_broker_up") == 0.0
    world.metrics.unwatch(other)
    assert world.value("sse_connections_active") == 3
    assert world.value("sse_broker_up") == 1.0
    world.metrics.unwatch(one)
    assert world.value("sse_connections_active") == 0
    assert world.value("sse_broker_up") == 1.0


def test_a_child_that_has_served_nothing_shows_no_gauges_of_its_parent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with --preload, where somebody looks first: what it shows were counted twice."""
    parent = Source(os.getpid(), sse_connections_active=3)
    world.metrics.watch(parent)
    assert world.value("sse_connections_active") == 3
    monkeypatch.setattr(os, "getpid", lambda: parent.pid + 1)
    assert world.value("sse_connections_active") == 0


def test_apps_that_share_a_registry_share_the_metrics() -> None:
    """A second metric of a name would be refused, and its app have none."""
    registry = CollectorRegistry()
    for type in ("one.type", "other.type"):
        sweep = Sweep()
        sweep.add(rules(type), 1)
        metrics_in(registry, {type}).swept(sweep)
    for type in ("one.type", "other.type"):
        assert registry.get_sample_value("sse_events_sent_total", {"type": type}) == 1


def test_a_name_that_is_taken_costs_the_metrics_and_not_the_app(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An app may have had one of its own for years."""
    registry = CollectorRegistry()
    Counter("sse_resets", "Somebody else's", registry=registry)
    with caplog.at_level(logging.ERROR):
        assert metrics_in(registry, ()) is OFF
    assert "There are no metrics of streams" in caplog.text and "sse_resets" in caplog.text
    assert [family.name for family in registry.collect()] == ["sse_resets"]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have prometheus-flask-exporter look imported."""
    monkeypatch.setitem(sys.modules, "prometheus_flask_exporter", ModuleType("exporter"))
    yield


def counts(app: Flask) -> Metrics:
    """Return where the app counts."""
    process = process_of(app)
    process.close()
    metrics: Metrics = process.metrics
    return metrics


def app_of(realtime: NocRealtime, **config: Any) -> Flask:
    """Return an app."""
    app = Flask("app")
    app.config.update({f"NOC_REALTIME_{name}": value for name, value in config.items()})
    realtime.init_app(app)
    return app


def test_metrics_go_where_the_app_says() -> None:
    """The exporter of an app, or a bare registry; before init_app or after."""
    registry = CollectorRegistry()

    class Exporter:
        """As a PrometheusMetrics."""

        def __init__(self) -> None:
            self.registry = registry

    realtime = NocRealtime()
    realtime.metrics(Exporter())
    assert isinstance(counts(app_of(realtime)), Prometheus)
    late = NocRealtime()
    app = app_of(late)
    late.metrics(registry)
    assert isinstance(counts(app), Prometheus)
    assert registry.get_sample_value("sse_connections_total") == 0


def test_metrics_go_to_the_exporter_where_the_app_uses_it(exporter: None) -> None:
    """With nothing to configure; and nowhere where they are off."""
    assert isinstance(counts(app_of(NocRealtime())), Prometheus)
    assert REGISTRY.get_sample_value("sse_connections_total") is not None
    realtime = NocRealtime()
    realtime.metrics(CollectorRegistry())
    assert counts(app_of(realtime, METRICS="off")) is OFF


def test_without_an_exporter_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And prometheus-client is not needed."""
    for name in ("prometheus_client", "prometheus_flask_exporter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert counts(app_of(NocRealtime())) is OFF
    assert "prometheus_client" not in sys.modules


def test_what_is_no_exporter_is_refused() -> None:
    """The class instead of an instance, or the app."""
    realtime = NocRealtime()
    for wrong in (Flask("app"), None, CollectorRegistry):
        with pytest.raises(ConfigError, match="pass the PrometheusMetrics of"):
            realtime.metrics(wrong)


def test_gauges_that_cannot_be_forgotten_leave_gunicorn_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends with all of its workers when a hook raises."""
    (tmp_path / "gauge_livesum_7.db").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    arbiter = SimpleNamespace(log=logging.getLogger("gunicorn.error"))
    child_exit(arbiter, SimpleNamespace(pid=7))
    assert "The gauges of worker 7 are left behind." in caplog.text
