"""The rollout as clients and operators see it, on both brokers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_noc_realtime import BrokerUnavailable, ConfigError, Identity, NocRealtime
from flask_noc_realtime.broker import Broker
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.event import ROLLOUT, notice
from flask_noc_realtime.eventlog import Entry
from flask_noc_realtime.hub import Hub, HubOptions
from flask_noc_realtime.process import Process
from flask_noc_realtime.rollout import Rollout, record_of
from flask_noc_realtime.testing import StreamRefused, cut, process_of, stream_client
from tests.conftest import RedisFactory
from tests.contract.conftest import HISTORY
from tests.contract.sinks import RecordingSink, key, record
from tests.processes import wait_until

PREFIX = "/api/v1/events"
TIMEOUT = 10.0

_namespaces, _positions = count(1), count(1)


class Site:
    """An app whose users are named by a header; its workers are several of these."""

    def __init__(self, url: str, namespace: str, **config: Any) -> None:
        self.app = Flask("rollout")
        self.app.config.update(NOC_REALTIME_URL=url, NOC_REALTIME_NAMESPACE=namespace)
        self.app.config.update({f"NOC_REALTIME_{name}": value for name, value in config.items()})
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(lambda request: who(request.headers.get("User")))

    @property
    def process(self) -> Process:
        """What runs for the app."""
        return process_of(self.app)

    def get(self, route: str, user: str | None = None, **options: Any) -> TestResponse:
        """Ask as *user*, who may be nobody."""
        headers = {"User": user} if user else {}
        headers |= options.pop("headers", {})
        return self.app.test_client().get(f"{PREFIX}/{route}", headers=headers, **options)

    def told(self, user: str | None) -> bool:
        """Return what a poll tells a user of streams."""
        answer: bool = self.get("poll", user).json["stream"]
        return answer


def who(user: str | None) -> Identity | None:
    """Return the identity of a user; *guest* is let in without an id."""
    return None if user is None else Identity(None if user == "guest" else user)


@pytest.fixture
def make_site(request: pytest.FixtureRequest) -> Iterator[Callable[..., Site]]:
    """Return a factory of workers of one app, on Redis unless a test is about both brokers."""
    sites: list[Site] = []
    namespace = f"rollout-{next(_namespaces)}"
    url = "memory://"
    if getattr(request, "param", "redis") == "redis":
        url = request.getfixturevalue("redis_url")

    def make(**config: Any) -> Site:
        sites.append(Site(url, namespace, **config))
        return sites[-1]

    yield make
    for site in sites:
        site.process.close()


@pytest.fixture(scope="module")
def redis_url(module_redis_server: RedisFactory) -> str:
    """Return the URL of a Redis that the tests of this module share."""
    return module_redis_server().url


on_both = pytest.mark.parametrize("make_site", ["memory", "redis"], indirect=True)


# What clients are told.


@on_both
def test_who_is_left_to_polling_gets_no_content(make_site: Callable[..., Site]) -> None:
    """With 204 an EventSource stops; whoever is included has a stream."""
    site = make_site(ROLLOUT=0)
    site.realtime.rollout(allow=["ada"])
    wait_until(lambda: site.told("ada"), TIMEOUT, "the worker knows")
    answer = site.get("stream", "bob")
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Noc-Rollout"] == "polling"
    with stream_client(site.app, headers={"User": "ada"}) as stream:
        assert stream.opened.type == "stream.open"
    with pytest.raises(StreamRefused, match="204 NO CONTENT: the rollout leaves this user"):
        stream_client(site.app, headers={"User": "bob"})


def test_a_ticket_opens_no_stream_to_who_is_left_to_polling(make_site: Callable[..., Site]) -> None:
    """Nor takes the user's place among the streams."""
    site = make_site(ROLLOUT=0, MAX_STREAMS_PER_USER=1)
    client = site.app.test_client()
    for _ in range(2):
        url = client.post(f"{PREFIX}/connect", headers={"User": "ada"}).json["url"]
        answer = client.get(url)
        assert (answer.status_code, answer.headers["X-Noc-Rollout"]) == (204, "polling")
    site.realtime.rollout(100)
    wait_until(lambda: site.told("ada"), TIMEOUT, "the worker knows")
    with stream_client(site.app, headers={"User": "ada"}):
        pass


def test_nobody_is_refused_and_not_left_to_polling(make_site: Callable[..., Site]) -> None:
    """A client that polls without an identity would be refused there, too."""
    site = make_site(ROLLOUT=0)
    assert [site.get(route).status_code for route in ("stream", "poll", "config")] == [401] * 3


def test_who_has_no_id_has_a_stream_when_all_have(make_site: Callable[..., Site]) -> None:
    """On a list or not, nobody else is left then."""
    site = make_site(ROLLOUT=100)
    assert site.told("guest")
    site.realtime.rollout(99.99)
    wait_until(lambda: not site.told("guest"), TIMEOUT, "the worker knows")
    assert site.get("stream", "guest").status_code == 204


@on_both
def test_a_poll_tells_who_may_open_a_stream(make_site: Callable[..., Site]) -> None:
    """Also one whose answer is otherwise what it was, and asks with its ETag."""
    site = make_site(ROLLOUT=0)
    first = site.get("poll", "ada")
    assert first.json["stream"] is False
    query = {"after": first.json["position"]}
    etag = site.get("poll", "ada", query_string=query).headers["ETag"]
    same = {"headers": {"If-None-Match": etag}, "query_string": query}
    assert site.get("poll", "ada", **same).status_code == 304
    site.realtime.rollout(100)
    wait_until(lambda: site.told("ada"), TIMEOUT, "the worker knows")
    answer = site.get("poll", "ada", **same)
    assert (answer.status_code, answer.json["events"], answer.json["stream"]) == (200, [], True)


def test_a_client_is_told_what_it_needs_to_know(make_site: Callable[..., Site]) -> None:
    """Whether it has a stream is its own, so that nothing keeps the answer."""
    site = make_site(ROLLOUT=0, HEARTBEAT=7, RETRY=2, POLL_INTERVAL=4)
    site.realtime.register_type("link.flapped")
    answer = site.get("config", "ada")
    assert answer.headers["Cache-Control"] == "no-store"
    assert {name: value for name, value in answer.json.items() if name != "types"} == {
        "stream": False,
        "heartbeat": 7.0,
        "retry": 2.0,
        "poll_interval": 4.0,
    }
    assert {"incident.created", "link.flapped"} <= set(answer.json["types"])


def test_a_page_of_another_origin_can_read_why_there_is_no_stream(
    make_site: Callable[..., Site],
) -> None:
    """A browser hides every header that is not listed."""
    site = make_site(ROLLOUT=0, CORS_ORIGINS=["https://wall.example"])
    answer = site.get("stream", "ada", headers={"Origin": "https://wall.example"})
    assert answer.status_code == 204
    assert "X-Noc-Rollout" in answer.headers["Access-Control-Expose-Headers"]


# What happens when it changes.


@on_both
def test_the_streams_of_who_is_moved_out_end_and_others_go_on(
    make_site: Callable[..., Site],
) -> None:
    """They say why, as they stand; then there is only polling, from where they were."""
    site = make_site()
    ada = stream_client(site.app, headers={"User": "ada"}, timeout=TIMEOUT)
    bob = stream_client(site.app, headers={"User": "bob"}, timeout=TIMEOUT)
    with ada, bob:
        site.realtime.emit("log.added", 1)
        assert [next(ada).data, next(bob).data] == [1, 1]
        site.realtime.rollout(deny=["ada"])
        (close,) = ada
        assert (close.type, close.data["reason"]) == ("stream.close", "rollout")
        site.realtime.emit("log.added", 2)
        assert next(bob).data == 2
        query = {"after": ada.position, "wait": TIMEOUT}
        poll = site.get("poll", "ada", query_string=query).json
        assert [event["data"] for event in poll["events"]] == [2]
        assert (poll["stream"], poll["retry_after"] > 0) == (False, True)


def test_a_change_reaches_the_other_workers(make_site: Callable[..., Site]) -> None:
    """Through the subscription each of them has."""
    one, other = make_site(), make_site()
    with stream_client(other.app, headers={"User": "ada"}, timeout=TIMEOUT) as stream:
        one.realtime.rollout(0)
        assert next(stream).data["reason"] == "rollout"
    one.realtime.rollout(100)
    wait_until(lambda: other.told("ada"), TIMEOUT, "the other worker knows")


def test_a_stream_let_in_just_before_the_change_ends_as_well(
    make_site: Callable[..., Site],
) -> None:
    """The decision is taken anew when it begins."""
    site = make_site()
    answer = site.get("stream", "ada", buffered=False)
    bodies = answer.iter_encoded()
    site.realtime.rollout(0)
    wait_until(lambda: not site.told("ada"), TIMEOUT, "the worker knows")
    assert b"event: stream.open\n" in next(bodies)
    assert b'event: stream.close\ndata: {"reason":"rollout",' in next(bodies)
    assert next(bodies, None) is None
    answer.close()


def test_what_is_stored_counts_instead_of_the_configuration(make_site: Callable[..., Site]) -> None:
    """Also for workers that start later, until it is reset."""
    site = make_site(ROLLOUT=100)
    assert site.realtime.rollout(10, deny=["ada"]) == site.realtime.rollout()
    later = make_site(ROLLOUT=50)
    namespace = later.app.config["NOC_REALTIME_NAMESPACE"]
    expected = Rollout(10, deny=frozenset({"ada"}), namespace=namespace)
    assert later.realtime.rollout() == expected
    assert not later.told("ada")
    assert later.process.hub.rollout == expected
    site.realtime.rollout(reset=True)
    wait_until(lambda: later.process.hub.rollout.percent == 50, TIMEOUT, "the configuration counts")
    assert make_site(ROLLOUT=70).realtime.rollout().percent == 70


def test_what_is_not_given_stays(make_site: Callable[..., Site]) -> None:
    """A list that is given replaces the one before."""
    realtime = make_site().realtime
    realtime.rollout(10, allow=["ada", "bob"])
    realtime.rollout(20)
    assert realtime.rollout(allow=["cyd"]).allow == {"cyd"}
    realtime.rollout(deny=["bob"])
    found = realtime.rollout()
    assert (found.percent, found.allow, found.deny) == (20, {"cyd"}, {"bob"})
    assert realtime.rollout(30, reset=True).allow == set()


def test_what_is_wrong_changes_nothing(make_site: Callable[..., Site]) -> None:
    """And says what would be right."""
    site = make_site()
    site.realtime.rollout(10, allow=["ada"])
    with pytest.raises(ConfigError, match="from 0 to 100"):
        site.realtime.rollout(101)
    with pytest.raises(ConfigError, match="'ada' is on both lists"):
        site.realtime.rollout(20, deny=["ada"])
    assert site.realtime.rollout().percent == 10
    assert site.process.broker.standing() is not None


# While the broker is away.


@pytest.mark.parametrize("make_site", ["memory"], indirect=True)
def test_while_the_broker_is_away_it_stays_as_it_was(make_site: Callable[..., Site]) -> None:
    """A change is refused: nobody would know when it comes to count."""
    site = make_site()
    site.realtime.rollout(0)
    with cut(site.app):
        with pytest.raises(BrokerUnavailable):
            site.realtime.rollout(100)
        assert not site.told("ada")
    assert not site.told("ada")


@pytest.mark.parametrize("make_site", ["memory"], indirect=True)
def test_a_broker_that_lost_its_data_has_the_configuration_count(
    make_site: Callable[..., Site],
) -> None:
    """It is all there is then."""
    site = make_site(ROLLOUT=100)
    site.realtime.rollout(0)
    assert not site.told("ada")
    with cut(site.app, lost=True):
        pass
    assert site.told("ada")


def test_no_request_asks_redis_for_the_rollout(make_site: Callable[..., Site]) -> None:
    """Each worker knows it."""
    site = make_site(ROLLOUT=0)
    assert not site.told("ada")
    redis = site.process.broker._client  # type: ignore[attr-defined]
    before = redis.info("commandstats")
    for _ in range(5):
        site.told("ada")
        site.get("stream", "ada")
        site.get("config", "ada")
    after = redis.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert {name for name, more in calls.items() if more} <= {"cmdstat_info", "cmdstat_ping"}


# What brokers and hubs do for it.


def test_what_stands_begins_every_history(broker: Broker) -> None:
    """Also one that has long forgotten when it was published; the newest one stands."""
    assert broker.standing() is None
    broker.stand(record_of(Rollout(5)), key())
    broker.stand(record_of(Rollout(6)), key())
    for first in range(0, 3 * HISTORY, 500):
        broker.publish_all([(record(n), key()) for n in range(first, first + 500)], again=False)
    assert broker.standing() == record_of(Rollout(6))
    sink = RecordingSink()
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    first, *rest = sink.entries
    assert first == Entry.from_record(sink.restarts[0], record_of(Rollout(6)))
    assert {entry.rule.type for entry in rest} == {"log.added"}
    hub = Hub(MemoryBroker(10, 1000), HubOptions())
    hub.restart(sink.restarts[0], sink.entries)
    assert hub.rollout == Rollout(6)
    assert b"stream.reset" not in hub.open(sink.restarts[0]).preamble


def test_what_stands_is_delivered_in_order_with_events(broker: Broker) -> None:
    """It has a position as they have."""
    sink = RecordingSink()
    broker.start(sink)
    sink.wait_for(lambda: bool(sink.restarts), "the history")
    broker.publish(record(0), key())
    position = broker.stand(record_of(Rollout(5)), key())
    broker.publish(record(1), key())
    sink.wait_for(lambda: len(sink.entries) == 3, "all of them")
    assert [entry.rule.type for entry in sink.entries] == ["log.added", ROLLOUT, "log.added"]
    assert sink.entries[1].position == position


def entries(*records: bytes) -> list[Entry]:
    """Return entries of a log, each at a position of its own."""
    return [Entry.from_record(f"p-{next(_positions)}", each) for each in records]


def test_the_newest_rollout_of_the_log_counts() -> None:
    """Whether it comes with the history or later; a history without one has none."""
    configured = Rollout(1)
    hub = Hub(MemoryBroker(10, 1000), HubOptions(rollout=configured))
    assert hub.rollout is configured
    five, six = record_of(Rollout(5)), record_of(Rollout(6))
    hub.restart("p-0", entries(five, record(0), six, record(1)))
    assert hub.rollout == Rollout(6)
    hub.deliver(entries(record(2)))
    assert hub.rollout == Rollout(6)
    hub.deliver(entries(six, five))
    assert hub.rollout == Rollout(5)
    hub.deliver(entries(record_of(None)))
    assert hub.rollout is configured
    hub.deliver(entries(five))
    hub.restart("q-0", entries(record(0)))
    assert hub.rollout is configured


def test_what_is_no_rollout_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """The one before counts, and the log tells of it."""
    hub = Hub(MemoryBroker(10, 1000), HubOptions())
    with caplog.at_level(logging.ERROR, "flask_noc_realtime"):
        hub.restart("p-0", entries(record_of(Rollout(5)), notice(ROLLOUT, json.dumps([5]))))
    assert hub.rollout == Rollout(5)
    assert f"Passed over {hub.position} in the event log: Not a rollout" in caplog.text
