"""Places of streams: what every broker grants, and how a process holds them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from flask_noc_realtime.broker import Broker, Claim, Leased, Terms
from flask_noc_realtime.errors import BrokerUnavailable
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.processes import wait_until
from tests.redis_server import RedisServer

TIMEOUT = 20.0
TERMS = Terms("w", 30.0, 3)


def claims(*leases: str, user_id: str = "ada") -> list[Claim]:
    """Return claims of one user."""
    return [Claim(user_id, lease) for lease in leases]


def run_all(calls: Sequence[Callable[[], object]]) -> None:
    """Make each call in a thread of its own, all at once, and wait for them."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        ready.wait(TIMEOUT)
        call()

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a call hangs"


# What every broker does.


def test_a_user_has_as_many_leases_as_the_limit_and_no_more(broker: Broker) -> None:
    """One too many in a call is refused, and so is each later one; other users have their own."""
    assert broker.lease(TERMS, claims("w:1", "w:2", "w:3", "w:4")).refused == {"w:4"}
    assert broker.lease(TERMS, claims("w:5")).refused == {"w:5"}
    assert broker.lease(TERMS, claims("w:6", "w:7", "w:8", user_id="bob")).refused == frozenset()


def test_the_limit_is_that_of_all_workers_together(broker: Broker) -> None:
    """Whoever comes first, on whichever worker."""
    assert not broker.lease(TERMS, claims("w:1", "w:2")).refused
    other = TERMS._replace(worker="v")
    assert broker.lease(other, claims("v:1", "v:2")).refused == {"v:2"}
    assert broker.lease(TERMS, claims("w:3")).refused == {"w:3"}


def test_of_many_claims_at_once_as_many_as_the_limit_are_granted(broker: Broker) -> None:
    """In calls of several threads."""
    refused: list[frozenset[str]] = []
    run_all(
        [
            lambda n=n: refused.append(  # type: ignore[misc]
                broker.lease(TERMS._replace(worker=f"w{n}"), claims(f"w{n}:1")).refused
            )
            for n in range(20)
        ]
    )
    assert Counter(map(len, refused)) == {0: 3, 1: 17}


def test_a_claim_that_is_held_is_granted_again_and_counts_once(broker: Broker) -> None:
    """After a Redis that was away, a worker claims all it has, whether Redis lost it or not."""
    held = claims("w:1", "w:2", "w:3")
    for _ in range(3):
        assert broker.lease(TERMS, held).refused == frozenset()
    assert broker.lease(TERMS, claims("w:4", "w:1")).refused == {"w:4"}
    evicting = TERMS._replace(evict=True)
    assert broker.lease(evicting, held) == Leased(True, frozenset(), ())


def test_what_is_released_is_free_for_a_claim_of_the_same_call(broker: Broker) -> None:
    """And releasing what is not held frees nothing."""
    broker.lease(TERMS, claims("w:1", "w:2", "w:3"))
    leased = broker.lease(TERMS, claims("w:4", "w:5"), released=claims("w:2", "w:2", "w:9"))
    assert leased.refused == {"w:5"}
    broker.lease(TERMS, released=claims("w:1", "w:3", "w:4", user_id="bob"))
    assert broker.lease(TERMS, claims("w:6")).refused == {"w:6"}
    broker.lease(TERMS, released=claims("w:1", "w:3", "w:4"))
    assert broker.lease(TERMS, claims("w:6", "w:7", "w:8", "w:9")).refused == {"w:9"}


def test_a_released_lease_of_another_worker_is_free_too(broker: Broker) -> None:
    """A lease is named in full; whoever releases it."""
    broker.lease(TERMS, claims("w:1", "w:2", "w:3"))
    other = TERMS._replace(worker="v")
    assert not broker.lease(other, claims("v:1"), released=claims("w:1")).refused


def test_evicting_lets_the_new_in_and_gives_up_the_oldest(broker: Broker) -> None:
    """One for each that is too many, oldest first, whichever worker has it."""
    for lease in ("w:1", "v:2", "w:3"):
        broker.lease(TERMS._replace(worker=lease[0]), claims(lease))
    evicting = TERMS._replace(evict=True)
    assert broker.lease(evicting, claims("w:4")) == Leased(True, frozenset(), ("w:1",))
    assert broker.lease(evicting, claims("w:5", "w:6")).evicted == ("v:2", "w:3")
    assert broker.lease(TERMS, claims("w:1")).refused == {"w:1"}
    assert broker.lease(TERMS, claims("w:4", "w:5", "w:6")).refused == frozenset()


def test_evicting_gives_up_none_while_there_is_room(broker: Broker) -> None:
    """And room is what the releases of the same call leave."""
    evicting = TERMS._replace(evict=True)
    assert broker.lease(evicting, claims("w:1", "w:2", "w:3")).evicted == ()
    assert broker.lease(evicting, claims("w:4"), released=claims("w:2")).evicted == ()
    assert broker.lease(evicting, claims("w:5")).evicted == ("w:1",)


def test_a_user_may_have_any_name(broker: Broker) -> None:
    """Braces, colons, spaces and line ends are a name's, and two names are two users."""
    names = ["a", "a:b", "{a}", "}{", "a b", "a\r\nDEL", "ä", "*", "a" * 1000]
    for name in names:
        assert not broker.lease(TERMS, claims("w:1", "w:2", "w:3", user_id=name)).refused
    for name in names:
        assert broker.lease(TERMS, claims("w:4", user_id=name)).refused == {"w:4"}


def test_a_page_of_claims_and_releases_is_one_call(broker: Broker) -> None:
    """As many as a herd brings at once."""
    many = [Claim(f"user-{n}", f"w:{n}") for n in range(500)]
    assert not broker.lease(TERMS._replace(limit=1), many).refused
    again = [Claim(claim.user_id, claim.lease + "b") for claim in many]
    assert len(broker.lease(TERMS._replace(limit=1), again).refused) == 500
    assert not broker.lease(TERMS._replace(limit=1), again, released=many).refused


# What lapses: leases on Redis outlive the process that holds them.


def test_a_worker_that_does_not_renew_loses_its_leases(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """Not before their time is up; and it is told, so that it claims them anew."""
    broker = connect(redis.url, namespace="lapse")
    short, other = Terms("w", 1.0, 3), TERMS._replace(worker="v")
    begun = time.monotonic()
    broker.lease(short, claims("w:1", "w:2", "w:3"))

    def granted() -> bool:
        return not broker.lease(other, claims("v:1")).refused

    assert not granted()
    wait_until(granted, TIMEOUT, "the killed worker's leases lapse")
    assert time.monotonic() - begun >= 0.99
    leased = broker.lease(short, claims("w:1", "w:2", "w:3"))
    assert leased == Leased(False, frozenset({"w:3"}), ())


def test_renewing_one_entry_keeps_all_leases_of_a_worker(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """Through several of the terms they were granted for, by a call that names none of them."""
    broker = connect(redis.url, namespace="renewed")
    short, other = Terms("w", 0.5, 3), TERMS._replace(worker="v")
    assert not broker.lease(short, claims("w:1", "w:2", "w:3")).renewed
    end = time.monotonic() + 1.5

    def kept_long_enough() -> bool:
        assert broker.lease(short).renewed
        assert broker.lease(other, claims("v:1")).refused == {"v:1"}
        return time.monotonic() >= end

    wait_until(kept_long_enough, TIMEOUT, "three terms")


def test_no_seconds_void_a_workers_leases_at_once(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """And those of no other worker."""
    broker = connect(redis.url, namespace="void")
    other = TERMS._replace(worker="v")
    broker.lease(other, claims("v:1"))
    broker.lease(TERMS, claims("w:1", "w:2"))
    broker.lease(TERMS._replace(seconds=0.0))
    assert broker.lease(other, claims("v:2", "v:3", "v:4")).refused == {"v:4"}


def test_lapsed_leases_are_the_first_to_go_when_evicting(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """No living stream ends to make room for a dead worker's."""
    broker = connect(redis.url, namespace="dead")
    broker.lease(TERMS, claims("w:1"))
    other = TERMS._replace(worker="v", evict=True)
    broker.lease(other, claims("v:1", "v:2"))
    broker.lease(TERMS._replace(seconds=0.0))
    assert broker.lease(other, claims("v:3")).evicted == ()
    assert broker.lease(other, claims("v:4")).evicted == ("v:1",)


def test_a_redis_restarted_empty_says_that_it_knows_no_lease(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """So that the worker claims them anew, before others have taken the places."""
    server = redis_server()
    broker = connect(server.url)
    held = claims("w:1", "w:2", "w:3")
    broker.lease(TERMS, held)
    assert broker.lease(TERMS).renewed
    server.restart(empty=True)
    assert not broker.lease(TERMS).renewed
    assert not broker.lease(TERMS, held).refused
    assert broker.lease(TERMS, claims("w:4")).refused == {"w:4"}


def test_a_redis_that_is_away_is_said_to_be(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Within its timeout, also when it hangs."""
    server = redis_server()
    broker = connect(server.url, timeout=0.2)
    broker.lease(TERMS)
    server.pause()
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        broker.lease(TERMS)
    server.resume()
    server.kill9()
    with pytest.raises(BrokerUnavailable, match="NOC_REALTIME_URL"):
        broker.lease(TERMS, claims("w:1"))


def test_what_is_stored_ends_by_itself(redis: RedisServer, connect: BrokerFactory) -> None:
    """Users come and go; a released user leaves nothing, and a dead worker's are collected."""
    broker = connect(redis.url, namespace="stored")
    client = redis.client()
    broker.lease(TERMS, claims("w:1"))
    assert 0 < client.ttl("{stored}:streams:ada") <= 7200
    broker.lease(TERMS, released=claims("w:1"))
    assert client.keys("{stored}:streams:*") == []
    broker.lease(TERMS._replace(worker="dead", seconds=0.0))
    broker.lease(TERMS)
    assert client.hkeys("{stored}:workers") == [b"w"]


def test_every_key_is_on_the_slot_of_its_namespace(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """A script takes keys of one slot only, and a user's name may hold braces."""
    server = redis_server()
    broker = connect(server.url, namespace="team")
    broker.lease(TERMS, [Claim("{7}", "w:1"), Claim("}{", "w:2"), Claim("x", "w:3")])
    broker.put("{k}", b"v", 30.0)
    keys = server.client(decode_responses=True).keys("*")
    assert len(keys) == 5
    assert all(key.startswith("{team}:") for key in keys)
