"""Hold both brokers to one contract for what is kept until it is taken once."""

from __future__ import annotations

import threading
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_noc_realtime.broker import Broker
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.processes import wait_until

TIMEOUT = 10.0


def test_what_is_put_is_taken_once(broker: Broker) -> None:
    """Several keys at a time, in their order; unknown ones are None."""
    broker.put("one", b"1", 30.0)
    broker.put("two", b"2", 30.0)
    assert broker.take(["two", "none", "one"]) == [b"2", None, b"1"]
    assert broker.take(["one", "two"]) == [None, None]


def test_a_key_asked_for_twice_at_once_is_given_once_at_most(broker: Broker) -> None:
    """Two requests with one ticket may come together."""
    for number in range(20):
        broker.put(f"key-{number}", b"v", 30.0)
        assert sorted(map(str, race(broker, f"key-{number}"))) == ["None"] * 9 + ["b'v'"]


def race(broker: Broker, key: str) -> list[bytes | None]:
    """Return what ten threads take that ask for one key at once."""
    taken: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: taken.extend(broker.take([key]))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    return taken


def test_what_nobody_takes_is_gone_in_time(broker: Broker) -> None:
    """Not before, and soon after."""
    begun = time.monotonic()
    broker.put("short", b"v", 0.3)
    broker.put("long", b"v", 30.0)
    wait_until(lambda: time.monotonic() > begun + 0.35, TIMEOUT, "its time is over")
    assert broker.take(["short", "long"]) == [None, b"v"]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.text(st.characters(codec="utf-8"), min_size=1), value=st.binary(min_size=1))
def test_keys_and_values_are_kept_as_they_are(broker: Broker, key: str, value: bytes) -> None:
    """Whatever bytes there are in them."""
    broker.put(key, value, 30.0)
    assert broker.take([key]) == [value]


def test_apps_that_share_a_redis_do_not_share_keys(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Each has its namespace; workers of one app do share."""
    server = redis_server()
    one, twin = connect(server.url, namespace="one"), connect(server.url, namespace="one")
    other = connect(server.url, namespace="other")
    one.put("key", b"v", 30.0)
    assert other.take(["key"]) == [None]
    assert twin.take(["key"]) == [b"v"]
