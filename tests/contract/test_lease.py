"""Places of streams: what every broker grants, and how a process holds them."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from flask_noc_realtime.broker import Broker, Claim, Leased, Terms
from flask_noc_realtime.errors import BrokerUnavailable, LimitError
from flask_noc_realtime.lease import LeaseOptions, Leases
from tests.conftest import RedisFactory, require
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
            lambda n=n: refused.append(
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


# How a process holds them.


class Tap:
    """Passes leases on to a broker; keeps the calls, and lets a test act amid one."""

    def __init__(self, broker: Broker) -> None:
        self.shared = broker.shared
        self.calls: list[tuple[Terms, Sequence[Claim], Sequence[Claim]]] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None
        self._broker = broker

    def lease(
        self, terms: Terms, claims: Sequence[Claim] = (), released: Sequence[Claim] = ()
    ) -> Leased:
        """Do as the broker does."""
        self.calls.append((terms, claims, released))
        self.before()
        leased = self._broker.lease(terms, claims, released)
        self.after()
        return leased


MakeLeases = Callable[..., Leases]


@pytest.fixture
def hold() -> Iterator[MakeLeases]:
    """Return a factory of `Leases`, closed when the test is over."""
    made: list[Leases] = []

    def make(
        broker: object, tell: Callable[[str], object] = lambda lease: None, **options: object
    ) -> Leases:
        made.append(Leases(broker, LeaseOptions(**options), tell))
        return made[-1]

    yield make
    for leases in made:
        leases.close()


def renewals() -> list[threading.Thread]:
    """Return the threads that renew."""
    return [thread for thread in threading.enumerate() if thread.name == "noc-realtime-leases"]


def taken(server: RedisServer, namespace: str = "noc") -> dict[str, list[str]]:
    """Return the leases that Redis knows, by user."""
    client = server.client(decode_responses=True)
    prefix = f"{{{namespace}}}:streams:"
    users = client.scan_iter(f"{prefix}*")
    return {user.removeprefix(prefix): client.hkeys(user) for user in users}


def test_the_stream_after_the_last_is_refused_until_one_ends(
    broker: Broker, hold: MakeLeases
) -> None:
    """The error says how many there are and what to do; a lease is released once."""
    leases = hold(broker, per_user=2)
    held = [leases.acquire("ada"), leases.acquire("ada")]
    with pytest.raises(LimitError, match=r"You have 2 streams.*close one first") as refused:
        leases.acquire("ada")
    assert not refused.value.everybody
    leases.release([held[0], held[0]])
    leases.release([held[0]])
    leases.acquire("ada")
    with pytest.raises(LimitError):
        leases.acquire("ada")


def test_a_worker_serves_as_many_streams_as_it_may(broker: Broker, hold: MakeLeases) -> None:
    """Whoever's they are, nobody's included; a refused one takes no room."""
    leases = hold(broker, per_user=1, per_worker=3)
    leases.acquire("ada")
    for _ in range(5):
        with pytest.raises(LimitError, match="close one first"):
            leases.acquire("ada")
    anonymous = [leases.acquire(None), leases.acquire(None)]
    with pytest.raises(LimitError, match="This worker serves 3 streams") as refused:
        leases.acquire("bob")
    assert refused.value.everybody
    leases.release(anonymous[:1])
    leases.acquire("bob")


def test_without_a_limit_the_broker_is_not_asked(broker: Broker, hold: MakeLeases) -> None:
    """Nor for streams of nobody."""
    tap = Tap(broker)
    unlimited, limited = hold(tap, per_user=0), hold(tap)
    unlimited.release([unlimited.acquire("ada") for _ in range(20)])
    limited.release([limited.acquire(None) for _ in range(20)])
    assert tap.calls == []


def test_an_evicted_lease_is_told_and_the_new_one_holds(broker: Broker, hold: MakeLeases) -> None:
    """The oldest, each time."""
    evicted: list[str] = []
    leases = hold(broker, evicted.append, per_user=2, evict=True)
    held = [leases.acquire("ada") for _ in range(5)]
    assert evicted == held[:3]


def test_an_eviction_that_cannot_be_told_lets_the_new_stream_in(
    broker: Broker, hold: MakeLeases, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged: the old one goes on."""

    def fail(lease: str) -> None:
        raise BrokerUnavailable("it is away")

    leases = hold(broker, fail, per_user=1, evict=True)
    leases.acquire("ada")
    leases.acquire("ada")
    assert caplog.messages == ["A stream that was evicted goes on: it is away."]


def test_an_abandoned_lease_is_free_for_the_next_stream(broker: Broker, hold: MakeLeases) -> None:
    """Many of them are given back together."""
    tap = Tap(broker)
    leases = hold(tap, per_user=50)
    for lease in [leases.acquire("ada") for _ in range(50)]:
        leases.abandon(lease)
    calls = len(tap.calls)
    leases.acquire("ada")
    assert len(tap.calls) <= calls + 2


def test_many_claims_at_once_cost_few_calls(broker: Broker, hold: MakeLeases) -> None:
    """Each is answered for itself: of two streams that a user may have one of, one is refused."""
    tap = Tap(broker)
    tap.before = lambda: time.sleep(0.02)  # The way to a Redis and back.
    leases = hold(tap, per_user=1)
    outcomes: list[str] = []

    def claim(user_id: str) -> None:
        try:
            leases.acquire(user_id)
            outcomes.append(user_id)
        except LimitError:
            outcomes.append("refused")

    run_all([lambda n=n: claim(f"user-{n % 100}") for n in range(200)])
    assert Counter(outcomes) == {"refused": 100, **{f"user-{n}": 1 for n in range(100)}}
    assert len(tap.calls) <= 20
    assert sum(len(claims) for _, claims, _ in tap.calls) == 200


def test_of_random_streams_on_two_workers_never_more_than_the_limit_are_held(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """By an oracle that counts what was granted; and nothing is held when all is released."""
    server = redis_server()
    workers = [hold(connect(server.url), per_user=3, seconds=1.0) for _ in range(2)]
    lock = threading.Lock()
    held: Counter[str] = Counter()
    most: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        leases = workers[seed % 2]
        mine: list[tuple[str, str]] = []
        for _ in range(150):
            user = chance.choice("abc")
            if mine and chance.random() < 0.5:
                user, lease = mine.pop(chance.randrange(len(mine)))
                with lock:
                    held[user] -= 1
                leases.release([lease])
                continue
            try:
                lease = leases.acquire(user)
            except LimitError:
                outcomes["refused"] += 1
                continue
            outcomes["granted"] += 1
            mine.append((user, lease))
            with lock:
                held[user] += 1
                most[user] = max(most[user], held[user])
        with lock:
            held.subtract(user for user, _ in mine)
        leases.release([lease for _, lease in mine])

    run_all([lambda seed=seed: churn(seed) for seed in range(8)])
    assert most == {"a": 3, "b": 3, "c": 3}
    assert outcomes["refused"] > 50 < outcomes["granted"]
    assert held.total() == 0
    assert taken(server) == {}
    wait_until(lambda: not renewals(), TIMEOUT, "the renewals end")
    assert [len(leases._users) + len(leases._held) for leases in workers] == [0, 0]
    for user in "abc":
        for leases in (*workers, workers[0]):
            leases.acquire(user)
        with pytest.raises(LimitError):
            workers[1].acquire(user)


def test_leases_hold_while_their_worker_lives_and_lapse_when_it_closes(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """Its thread renews them; streams that end after the closing bring none back."""
    server = redis_server()
    tap = Tap(connect(server.url))
    leases, other = hold(tap, per_user=3, seconds=0.6), hold(connect(server.url), per_user=3)
    held = [leases.acquire("ada") for _ in range(3)]
    wait_until(lambda: len(tap.calls) > 12, TIMEOUT, "the worker renews for more than a term")
    with pytest.raises(LimitError):
        other.acquire("ada")
    assert len(renewals()) == 1
    leases.close()
    leases.release(held[:1])
    for _ in range(3):
        other.acquire("ada")
    wait_until(lambda: len(renewals()) == 1, TIMEOUT, "only the other worker renews")


def test_what_a_redis_lost_is_claimed_anew(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """Within a third of a term, streams held before count again."""
    server = redis_server()
    leases = hold(connect(server.url), per_user=3, seconds=0.6)
    held = [leases.acquire("ada") for _ in range(2)]
    server.restart(empty=True)
    wait_until(lambda: taken(server) == {"ada": held}, TIMEOUT, "both are claimed anew")


def test_while_redis_is_away_each_worker_counts_alone_and_then_the_truth_returns(
    redis_server: RedisFactory,
    connect: BrokerFactory,
    hold: MakeLeases,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line is logged; when it is back, the streams that are too many are told to end."""
    server = redis_server()
    evicted: list[str] = []
    workers = [hold(connect(server.url), evicted.append, per_user=2, seconds=0.6) for _ in range(2)]
    workers[0].acquire("ada")
    server.stop()
    workers[0].acquire("ada")
    for lease in [workers[1].acquire("ada") for _ in range(2)][:1]:
        workers[1].release([lease])
    workers[1].acquire("ada")
    for leases in workers:
        with pytest.raises(LimitError):
            leases.acquire("ada")
    errors = [message for message in caplog.messages if "counted by each worker" in message]
    assert len(errors) == len(caplog.messages) == 2
    assert "Redis at redis://127.0.0.1" in errors[0]
    server.start()
    wait_until(lambda: len(set(evicted)) == 2, TIMEOUT, "two of the four are told to end")
    (known,) = taken(server).values()
    everyone = {lease for leases in workers for lease in leases._users}
    assert len(everyone) == 4
    assert set(known) == everyone - set(evicted)
    for leases in workers:
        leases.release(evicted)
        with pytest.raises(LimitError):
            leases.acquire("ada")
    for leases in workers:
        leases.release(known)
    assert taken(server) == {}
    wait_until(lambda: not renewals(), TIMEOUT, "the renewals end")


def test_a_hanging_redis_holds_requests_up_once_and_not_each(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """All that come at once wait for one timeout; those after for none, until the next try."""
    server = redis_server()
    tap = Tap(connect(server.url, timeout=0.3))
    leases = hold(tap, seconds=30.0)
    leases.acquire("eve")
    server.pause()
    begun = time.monotonic()
    run_all([lambda n=n: leases.acquire(f"user-{n}") for n in range(50)])
    assert time.monotonic() - begun < 3
    assert len(tap.calls) == 2
    server.resume()


def test_what_was_released_while_redis_was_away_is_free_when_it_is_back(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """Also when no stream is left to renew for."""
    server = redis_server(appendonly=True)
    leases = hold(connect(server.url), per_user=3, seconds=0.6)
    held = [leases.acquire("ada") for _ in range(3)]
    server.stop()
    leases.release(held)
    server.start()
    wait_until(lambda: taken(server) == {}, TIMEOUT, "they are free")
    wait_until(lambda: not renewals(), TIMEOUT, "the renewal ends")


def test_a_stream_that_ends_while_all_are_claimed_anew_stays_ended(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """Its place would be taken for as long as the worker lives."""
    server = redis_server()
    tap = Tap(connect(server.url))
    leases = hold(tap, seconds=0.6)
    lease = leases.acquire("ada")
    amid = threading.Event()

    def release() -> None:
        if tap.calls[-1][1]:
            tap.before = lambda: None
            thread = threading.Thread(target=leases.release, args=([lease],))
            thread.start()
            thread.join(1.0)
            amid.set()

    tap.before = release
    assert amid.wait(TIMEOUT)
    wait_until(lambda: not renewals(), TIMEOUT, "the renewal ends")
    assert taken(server) == {}


def test_a_redis_that_loses_all_amid_the_claiming_is_claimed_from_the_start(
    redis_server: RedisFactory,
    connect: BrokerFactory,
    hold: MakeLeases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the first page claimed is lost as well."""
    monkeypatch.setattr("flask_noc_realtime.lease._PAGE", 2)
    server = redis_server()
    tap = Tap(connect(server.url))
    leases = hold(tap, seconds=0.6)
    users = {user: [leases.acquire(user)] for user in "abcd"}
    restarted = threading.Event()

    def restart() -> None:
        if len(tap.calls[-1][1]) == len(tap.calls[-2][1]) == 2:
            tap.before = lambda: None
            server.restart(empty=True)
            restarted.set()

    tap.before = restart
    assert restarted.wait(TIMEOUT)
    wait_until(lambda: taken(server) == users, TIMEOUT, "all are claimed anew")


def test_a_claim_whose_answer_was_lost_and_that_was_refused_is_given_back(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """Redis may have granted it; nobody else would ever give it back."""
    server = redis_server()
    tap = Tap(connect(server.url))
    leases = hold(tap, per_user=1, evict=True, seconds=0.6)
    first = leases.acquire("ada")

    def lose() -> None:
        tap.after = lambda: None
        raise BrokerUnavailable("the answer was lost")

    tap.after = lose
    with pytest.raises(LimitError):
        leases.acquire("ada")
    wait_until(lambda: taken(server) == {"ada": [first]}, TIMEOUT, "the first has its place again")
    leases.release([first])
    assert taken(server) == {}


def test_a_claim_that_nobody_waits_for_is_given_back(
    redis_server: RedisFactory, connect: BrokerFactory, hold: MakeLeases
) -> None:
    """Its request was cut short just as it was asked for, and has released it before."""
    server = redis_server()
    leases = hold(connect(server.url))
    assert not leases._ask(Claim("ada", "w:1"))
    leases.release([leases.acquire("bob")])
    assert taken(server) == {}


CUT_SHORT = """
import gevent.monkey
gevent.monkey.patch_all()
import sys
import gevent
from gevent.event import Event
from flask_noc_realtime.broker.redis import RedisBroker, RedisOptions
from flask_noc_realtime.lease import LeaseOptions, Leases
from tests.contract.test_lease import Tap

url, asked, *victims = sys.argv[1:]
broker = RedisBroker(url, RedisOptions())
tap = Tap(broker)
leases = Leases(tap, LeaseOptions(), lambda lease: None)
ended = leases.acquire("eve")


def pause():
    amid, gate = Event(), Event()

    def wait():
        tap.before = lambda: None
        amid.set()
        assert gate.wait(10)

    tap.before = wait
    return amid, gate


amid, gate = pause()
callers = [gevent.spawn(leases.acquire, "ada")]
assert amid.wait(10)
callers += [gevent.spawn(leases.acquire, user) for user in ("bob", "cyd", "dan")]
ending = gevent.spawn(leases.release, [ended])
gevent.sleep(0)
if asked == "asked":
    amid, following = pause()
    gate.set()
    assert amid.wait(10)
    gate = following
    assert len(tap.calls[-1][1]) == 3 and len(tap.calls[-1][2]) == 1, tap.calls[-1]
victims = [callers[int(number)] for number in victims]
for victim in victims:
    victim.kill(block=False)
    gevent.sleep(0)
gate.set()
gevent.joinall([*callers, ending], timeout=10)
held = [caller.value for caller in callers if caller not in victims]
assert all(isinstance(lease, str) for lease in held), callers
assert all(isinstance(victim.value, gevent.GreenletExit) for victim in victims), victims
leases.release(held)
assert not leases._users and not leases._held
print(broker._client.keys("{noc}:streams:*"))
leases.close()
broker.close()
"""


@pytest.mark.parametrize("which", ["waiting 2", "asked 2", "asked 1", "asked 3 1"])
def test_a_request_cut_short_holds_up_no_other_and_leaves_no_lease(
    which: str, redis_server: RedisFactory
) -> None:
    """While it waits for its turn, while it is asked for, and while it asks for all, as 1 does."""
    require("gevent")
    command = [sys.executable, "-c", CUT_SHORT, redis_server().url, *which.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
