"""What coalesced pages do when Redis is no longer what it was: slower, and nothing stale."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from flask_noc_realtime import coalesce
from flask_noc_realtime.errors import BrokerUnavailable
from tests.coalesced import Worker, cache_status, workers
from tests.conftest import RedisFactory
from tests.processes import wait_until
from tests.redis_server import RedisServer

TIMEOUT = 20.0
AT_ONCE = ["--repl-diskless-sync-delay", "0"]
"""Whoever replicates need not wait for others who may want to."""


class Data:
    """What pages show."""

    version = 0


@pytest.fixture(autouse=True)
def data() -> Iterator[None]:
    """Begin with the first version."""
    Data.version = 0
    yield


def prepare(worker: Worker) -> None:
    """Serve the data in pages of each kind."""

    @worker.app.get("/strict")
    @coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
    def strict() -> str:
        worker.runs.append("strict")
        return str(Data.version)

    @worker.app.get("/other/<name>")
    @coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
    def other(name: str) -> str:
        worker.runs.append(name)
        return str(Data.version)

    @worker.app.get("/timed")
    @coalesce(scope="public", ttl=60)
    def timed() -> str:
        worker.runs.append("timed")
        return str(Data.version)


def emit(worker: Worker) -> str | None:
    """Commit, and emit what ends strict pages; return the position."""
    Data.version += 1
    with worker.app.app_context():
        return worker.realtime.emit("incident.updated", {"version": Data.version})


def replicate(server: RedisServer, primary: RedisServer) -> None:
    """Make a server the replica of another, and return when it has caught up."""
    client = server.client()
    client.replicaof("127.0.0.1", primary.port)
    wait_until(
        lambda: client.info("replication").get("master_link_status") == "up", TIMEOUT, "it follows"
    )


def test_a_node_that_was_demoted_and_lost_its_link_gives_out_nothing(
    redis_server: RedisFactory,
) -> None:
    """It answers readers with what was before the events that went to its successor."""
    old, new = redis_server(args=AT_ONCE), redis_server(args=AT_ONCE)
    with (
        workers(1, prepare, NOC_REALTIME_URL=old.url) as (one,),
        workers(1, prepare, NOC_REALTIME_URL=new.url) as (other,),
    ):
        assert one.text("/strict") == one.text("/strict") == "0"
        assert one.runs == ["strict"]
        replicate(new, old)
        new.client().replicaof("NO", "ONE")
        replicate(old, new)
        old.client().replicaof("127.0.0.1", 1)
        assert emit(other) is not None
        assert [one.text("/strict") for _ in range(3)] == ["1"] * 3
        assert one.runs == ["strict"] * 4
        old.client().replicaof("NO", "ONE")
        generations = one.process.generations
        wait_until(lambda: generations.readable, TIMEOUT, "it is asked again")
        emit(one)
        assert one.text("/strict") == one.text("/strict") == "2"
        assert len(one.runs) == 5


def test_behind_a_read_only_replica_pages_are_served_and_not_kept(
    redis_server: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody wrote its address into the configuration; it is said once."""
    primary, replica = redis_server(args=AT_ONCE), redis_server()
    replicate(replica, primary)
    with workers(1, prepare, NOC_REALTIME_URL=replica.url) as (worker,):
        assert [worker.text("/strict") for _ in range(3)] == ["0"] * 3
        assert worker.runs == ["strict"] * 3
        assert [worker.text("/timed") for _ in range(3)] == ["0"] * 3
        with pytest.raises(BrokerUnavailable, match="ReadOnlyError"):
            worker.process.broker.pages.look_up("a page", ["incident.*"])  # type: ignore[attr-defined]
    assert caplog.text.count("Results that events invalidate are not kept") == 1
    assert "read only replica" in caplog.text


def test_a_primary_without_its_replicas_gives_out_nothing(redis_server: RedisFactory) -> None:
    """Cut off from them, it may have been replaced by one of them, and does not know."""
    server = redis_server()
    with workers(1, prepare, NOC_REALTIME_URL=server.url) as (worker,):
        assert worker.text("/strict") == worker.text("/strict") == "0"
        assert worker.runs == ["strict"]
        server.client().config_set("min-replicas-to-write", 1)
        Data.version = 1
        assert worker.text("/strict") == worker.text("/strict") == "1"


def test_a_redis_that_takes_two_seconds_costs_few_callers_a_second(
    redis_server: RedisFactory,
) -> None:
    """The others find that it is left in peace, and no late reply is taken for another's."""
    server = redis_server()
    client = server.client()
    with workers(2, prepare, NOC_REALTIME_URL=server.url) as (one, other):
        for worker in (one, other):
            assert worker.text("/strict") == "0"
            worker.text("/other/a")
        before = len(one.runs)
        client.client_pause(2000, all=True)
        until, asked, slow = time.monotonic() + 1.8, 0, 0
        while time.monotonic() < until:
            begun = time.monotonic()
            assert one.text(f"/other/{asked % 3}") == one.text("/strict") == "0"
            asked += 1
            slow += time.monotonic() - begun > 0.5
        assert asked > 10
        assert slow <= 3
        assert len(one.runs) - before > 10
        wait_until(lambda: one.process.generations.readable, TIMEOUT, "it is asked again")
        assert emit(one) is not None
        for path in ("/strict", "/other/a", "/strict"):
            assert one.text(path) == other.text(path) == "1"


def test_a_redis_that_throws_keys_away_gives_out_nothing_old(redis_server: RedisFactory) -> None:
    """Whatever goes to make room: pages, leases, generations, or the log of events."""
    server = redis_server(args=["--maxmemory", "2mb", "--maxmemory-policy", "allkeys-lru"])
    client = server.client()
    chance = random.Random(7)
    with workers(2, prepare, NOC_REALTIME_URL=server.url) as pair:
        announced = asked = 0
        while asked < 200 or client.info("stats")["evicted_keys"] < 50:
            client.set(f"others:{asked}", bytes(chance.randrange(60_000)))
            worker = chance.choice(pair)
            if chance.random() < 0.1 and emit(worker) is not None:
                announced = Data.version
            path = f"/other/{chance.randrange(20)}"
            assert int(worker.text(path)) >= announced
            asked += 1
            assert asked < 5000
        assert sum(len(worker.runs) for worker in pair) < asked


@pytest.mark.parametrize("kind", ["page", "flight"])
def test_a_value_of_another_type_in_a_pages_place_goes(
    redis_server: RedisFactory, kind: str
) -> None:
    """It is no reason to think that Redis were away, for this page or for others."""
    server = redis_server()
    client = server.client()
    with workers(2, prepare, NOC_REALTIME_URL=server.url) as (one, other):
        one.text("/strict")
        (key,) = client.keys("{noc}:page:*")
        key = key.replace(b":page:", b":%s:" % kind.encode())
        client.delete(key)
        client.set(key, "planted")
        if kind == "flight":
            emit(one)
        assert [other.text("/strict") for _ in range(3)] == [str(Data.version)] * 3
        assert other.runs == ["strict"]
        assert client.type(key) != b"string"
        other.text("/other/7")
        assert cache_status(other.get("/other/7")).startswith("hit")


@pytest.mark.parametrize("planted", [b"\xff\xfe", b"two words", b""])
def test_a_generation_that_is_none_is_as_one_that_was_lost(
    redis_server: RedisFactory, planted: bytes
) -> None:
    """It gets a name that it never had."""
    server = redis_server()
    client = server.client()
    with workers(2, prepare, NOC_REALTIME_URL=server.url) as (one, other):
        one.text("/strict")
        client.hset("{noc}:generations", "incident.*", planted)
        Data.version = 1
        assert [each.text("/strict") for each in (one, other, one, other)] == ["1"] * 4
        assert len(one.runs) + len(other.runs) == 2


def test_generations_of_another_type_are_lost_as_a_whole(redis_server: RedisFactory) -> None:
    """Pages end, once."""
    server = redis_server()
    client = server.client()
    with workers(2, prepare, NOC_REALTIME_URL=server.url) as (one, other):
        one.text("/strict")
        client.delete("{noc}:generations")
        client.set("{noc}:generations", "planted")
        Data.version = 1
        assert [each.text("/strict") for each in (one, other, one, other)] == ["1"] * 4
        assert len(one.runs) + len(other.runs) == 2
        assert emit(one) is not None
        assert [each.text("/strict") for each in (one, other)] == ["2"] * 2


def test_workers_with_keys_of_their_own_are_told_so(
    redis_server: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Each throws away what the other has signed, and nobody would know why it is slow."""
    with workers(2, prepare, NOC_REALTIME_URL=redis_server().url) as (one, other):
        other.app.secret_key = "another"
        for number in range(6):
            for worker in (one, other):
                assert worker.text(f"/other/{number}") == "0"
        assert len(one.runs) + len(other.runs) == 12
    assert caplog.text.count("give all workers the same") == 1
