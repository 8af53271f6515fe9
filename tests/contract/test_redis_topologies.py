"""Redis Sentinel and Redis Cluster, started for real on the loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from flask import Flask

from flask_noc_realtime import Identity, NocRealtime
from flask_noc_realtime.broker import Change
from flask_noc_realtime.broker.cluster import Owner
from flask_noc_realtime.broker.redis import RedisBroker
from flask_noc_realtime.errors import BrokerUnavailable
from flask_noc_realtime.event import ROLLOUT
from flask_noc_realtime.rollout import Rollout, record_of
from tests.certificate import Certificate
from tests.conftest import RedisFactory, require
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, key, record
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer
from tests.redis_topologies import AT_ONCE, Cluster, Sentinel, follows

pytestmark = pytest.mark.slow


Watch = Callable[[RedisServer], Sentinel]


@pytest.fixture
def watch(tmp_path: Path, certificate: Certificate) -> Iterator[Watch]:
    """Return what starts sentinels, with TLS where their master has it."""
    require("redis-server")
    started: list[Sentinel] = []

    def start(master: RedisServer) -> Sentinel:
        tls = certificate if master.url.startswith("rediss") else None
        started.append(Sentinel(tmp_path / f"sentinel-{len(started)}", master, tls))
        return started[-1]

    yield start
    for sentinel in started:
        sentinel.close()


def publish(broker: RedisBroker, number: int) -> None:
    """Publish until it is acknowledged, as the emitter's courier does."""
    name = key()
    again = False

    def published() -> bool:
        nonlocal again
        try:
            broker.publish_all([(record(number), name)], again=again)
        except BrokerUnavailable:
            again = True
            return False
        return True

    wait_until(published, 30, f"event {number} is published")


def replicate(master: RedisServer) -> None:
    """Wait until the replica has everything: WAIT is about what its own connection wrote."""
    client = master.client(single_connection_client=True)
    client.set("{noc}:last", "")
    assert client.wait(1, 10_000) == 1


@pytest.fixture
def sentinel(redis_server: RedisFactory, watch: Watch) -> tuple[Sentinel, RedisServer]:
    """Return a sentinel, and the master it watches beside a replica."""
    master = redis_server(args=AT_ONCE)
    replica = redis_server(args=["--replicaof", "127.0.0.1", str(master.port)])
    wait_until(lambda: follows(replica), 20, "the replica follows")
    sentinel = watch(master)
    wait_until(sentinel.replicas, 30, "the sentinel knows the replica")
    return sentinel, master


def test_a_failover_of_sentinel_is_followed(
    sentinel: tuple[Sentinel, RedisServer], connect: BrokerFactory
) -> None:
    """Publishing and the subscription move to the new master, and go on in order."""
    watching, master = sentinel
    url = watching.url
    sink = RecordingSink()
    connect(url).start(sink)
    publisher = connect(url)
    for number in range(20):
        publish(publisher, number)
    sink.wait_for_number(19)
    replicate(master)
    master.kill9()
    for number in range(20, 40):
        publish(publisher, number)
    sink.wait_for_number(39)
    assert sink.numbers == list(range(40))
    assert len(sink.restarts) == 1


def test_sentinels_are_asked_with_tls_where_redis_is(
    redis_server: RedisFactory, watch: Watch, certificate: Certificate, connect: BrokerFactory
) -> None:
    """With the CA that the URL names, for both."""
    port = watch(redis_server(tls=certificate)).port
    broker = connect(f"rediss+sentinel://127.0.0.1:{port}/noc?ssl_ca_certs={certificate.authority}")
    assert broker.publish(record(0), key())


@pytest.fixture
def cluster(redis_server: RedisFactory) -> Cluster:
    """Return three masters that share the slots."""
    cluster = Cluster(redis_server)
    for _ in range(3):
        cluster.add()
    cluster.share_slots()
    cluster.meet()
    return cluster


def test_a_cluster_is_followed_through_the_restart_of_the_node_that_has_the_log(
    cluster: Cluster, connect: BrokerFactory
) -> None:
    """All keys hash to one slot, and the subscription is where the script publishes."""
    url = f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}"
    sink = RecordingSink()
    connect(url).start(sink)
    publisher = connect(url)
    for number in range(18):
        publish(publisher, number)
    changes = [Change(f"subject-{number}", None, b"said", record(number)) for number in (18, 19)]
    assert all(publisher.publish_changes(changes, 60.0))
    assert publisher.recall(["subject-18", "subject-19", "other"]) == [b"said", b"said", None]
    sink.wait_for_number(19)
    (owner,) = cluster.owners()
    owner.kill9()
    owner.start()
    for number in range(20, 40):
        publish(publisher, number)
    sink.wait_for_number(39)
    assert sink.numbers == list(range(40))
    assert len(sink.restarts) == 1
    publisher.stand(record_of(Rollout(5)), key())
    sink.wait_for(lambda: sink.entries[-1].rule.type == ROLLOUT, "what stands")
    late = RecordingSink()
    connect(url).start(late)
    late.wait_for(lambda: bool(late.restarts), "the history")
    assert late.entries[0].rule.type == ROLLOUT


def test_a_cluster_is_followed_from_node_to_node(cluster: Cluster, connect: BrokerFactory) -> None:
    """Away from one that dies, the only one that the URL names, and back once it takes over."""
    (old,) = cluster.owners()
    new = cluster.add_replica(old)
    url = f"redis+cluster://127.0.0.1:{old.port}"
    sink = RecordingSink()
    connect(url).start(sink)
    publisher = connect(url)
    for number in range(20):
        publish(publisher, number)
    sink.wait_for_number(19)
    replicate(old)
    old.kill9()
    cluster.take_over(new)
    for number in range(20, 40):
        publish(publisher, number)
    sink.wait_for_number(39)
    old.start()
    wait_until(lambda: follows(old), 20, "it follows the one that took over")
    replicate(new)
    cluster.take_over(old)
    for number in range(40, 60):
        publish(publisher, number)
    sink.wait_for_number(59)
    assert sink.numbers == list(range(60))
    assert len(sink.restarts) == 1


def test_a_cluster_is_followed_with_tls(
    redis_server: RedisFactory, certificate: Certificate, connect: BrokerFactory
) -> None:
    """Here of a single node, which leaves its name out when it says who has what."""
    cluster = Cluster(redis_server)
    node = cluster.add(tls=certificate, args=["--tls-cluster", "yes"])
    cluster.share_slots()
    url = f"rediss+cluster://127.0.0.1:{node.port}?ssl_ca_certs={certificate.authority}"
    connect(url).ping()


@pytest.mark.parametrize("form", ["redis+cluster://{0},{0}", "redis+sentinel://{0},{0}/noc"])
def test_an_app_serves_on_without_a_way_to_redis(form: str) -> None:
    """Pages, and streams that are reset when it comes, of users who have a limit of them."""
    app = Flask(__name__)
    app.config["NOC_REALTIME_URL"] = form.format(f"127.0.0.1:{free_port()}")
    realtime = NocRealtime(app)
    realtime.identity_loader(lambda request: Identity("7"))
    app.add_url_rule("/", "page", lambda: "page")
    client = app.test_client()
    assert client.get("/").text == "page"
    with client.get("/api/v1/events/stream", buffered=False) as response:
        assert response.status_code == 200
        assert b"event: stream.open\n" in next(response.iter_encoded())
    app.extensions["noc_realtime"].process().close()


def test_a_node_that_does_not_answer_is_asked_last(redis_server: RedisFactory) -> None:
    """It takes its time once, not with every connection."""
    cluster = Cluster(redis_server)
    node = cluster.add()
    cluster.share_slots()
    hung = redis_server()
    hung.pause()
    seeds = [("127.0.0.1", each.port) for each in (hung, node)]
    owner = Owner(seeds, "{noc}:log", {"socket_timeout": 0.2, "socket_connect_timeout": 0.2})
    for in_doubt in (False, True):
        if in_doubt:
            owner.doubt()
        with pytest.raises(redis.ConnectionError, match="no node says"):
            owner.locate()
        assert [owner.locate() for _ in range(3)] == [("127.0.0.1", node.port)] * 3


def test_a_server_that_is_no_cluster_is_told_so(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Beside what is wrong with the other nodes of the URL."""
    ports = [redis_server().port, free_port()]
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    with pytest.raises(BrokerUnavailable, match=r"cluster support disabled.*refused"):
        connect(url).ping()
