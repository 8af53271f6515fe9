"""Redis Sentinel and Redis Cluster, started for real on the loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

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

pytestmark = pytest.mark.slow

AT_ONCE = ["--repl-diskless-sync-delay", "0"]
"""A replica need not wait five seconds for others that come."""
TLS = """\
port 0
tls-port {port}
tls-auth-clients no
tls-replication yes
tls-cert-file {it.certificate}
tls-key-file {it.key}
tls-ca-cert-file {it.authority}
"""
SENTINEL = """\
dir {directory}
sentinel monitor noc 127.0.0.1 {master} 1
sentinel down-after-milliseconds noc 500
sentinel failover-timeout noc 3000
"""


class Sentinel(Protocol):
    """Starts a sentinel that watches a master; returns its port, and the client that asks it."""

    def __call__(self, master: RedisServer) -> tuple[int, Any]: ...


@pytest.fixture
def watch(tmp_path: Path, certificate: Certificate) -> Iterator[Sentinel]:
    """Return what starts sentinels, with TLS where their master has it."""
    started: list[tuple[subprocess.Popen[bytes], Any]] = []

    def start(master: RedisServer) -> tuple[int, Any]:
        port = free_port()
        directory = tmp_path / f"sentinel-{len(started)}"
        directory.mkdir()
        config = directory / "sentinel.conf"
        tls = master.url.startswith("rediss")
        own = TLS.format(port=port, it=certificate) if tls else f"port {port}\n"
        config.write_text(own + SENTINEL.format(directory=directory, master=master.port))
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [require("redis-server"), str(config), "--sentinel"], stdout=log, stderr=log
            )
        options = {"ssl": True, "ssl_ca_certs": str(certificate.authority)} if tls else {}
        client = redis.Redis(port=port, decode_responses=True, **options)
        started.append((process, client))
        wait_until(lambda: _answers(client), 20, "the sentinel answers")
        return port, client

    yield start
    for process, client in started:
        client.close()
        process.terminate()
        process.wait(20)


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


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def replicate(master: RedisServer) -> None:
    """Wait until the replica has everything: WAIT is about what its own connection wrote."""
    client = master.client(single_connection_client=True)
    client.set("{noc}:last", "")
    assert client.wait(1, 10_000) == 1


def _follows(replica: RedisServer) -> bool:
    return replica.client().info("replication").get("master_link_status") == "up"


def _replicas(client: Any) -> int:
    state: Any = client.execute_command("SENTINEL", "MASTER", "noc")
    # redis-py 6.0 leaves it a list.
    state = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
    return int(state["num-slaves"])


@pytest.fixture
def sentinel(redis_server: RedisFactory, watch: Sentinel) -> tuple[int, RedisServer]:
    """Return the port of a sentinel, and the master it watches beside a replica."""
    master = redis_server(args=AT_ONCE)
    replica = redis_server(args=["--replicaof", "127.0.0.1", str(master.port)])
    wait_until(lambda: _follows(replica), 20, "the replica follows")
    port, client = watch(master)
    wait_until(lambda: _replicas(client), 30, "the sentinel knows the replica")
    return port, master


def test_a_failover_of_sentinel_is_followed(
    sentinel: tuple[int, RedisServer], connect: BrokerFactory
) -> None:
    """Publishing and the subscription move to the new master, and go on in order."""
    port, master = sentinel
    url = f"redis+sentinel://127.0.0.1:{port}/noc/0"
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
    redis_server: RedisFactory, watch: Sentinel, certificate: Certificate, connect: BrokerFactory
) -> None:
    """With the CA that the URL names, for both."""
    port, _ = watch(redis_server(tls=certificate))
    broker = connect(f"rediss+sentinel://127.0.0.1:{port}/noc?ssl_ca_certs={certificate.authority}")
    assert broker.publish(record(0), key())


class Cluster:
    """Nodes of a Redis Cluster; their bus is 10,000 ports higher."""

    def __init__(self, start: RedisFactory) -> None:
        self._start = start
        self.nodes: list[RedisServer] = []

    def add(self, **options: Any) -> RedisServer:
        """Start one more node, which knows no other yet."""
        options.setdefault("args", [])
        options["args"] += ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *AT_ONCE]
        port = next(port for port in iter(free_port, None) if port < 55_000)
        node = self._start(port=port, appendonly=True, **options)
        self.nodes.append(node)
        return node

    def share_slots(self) -> None:
        """Give each node as many slots."""
        for index, node in enumerate(self.nodes):
            bounds = [16384 * each // len(self.nodes) for each in (index, index + 1)]
            node.client().execute_command("CLUSTER ADDSLOTS", *range(*bounds))
            node.client().execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)

    def meet(self) -> None:
        """Introduce the nodes to each other."""
        for node in self.nodes:
            node.client().execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(lambda: all(map(self._knows_all, self.nodes)), 30, "the cluster is formed")

    def add_replica(self, master: RedisServer) -> RedisServer:
        """Start a node that has what *master* has."""
        node = self.add()
        self.meet()
        name = master.client().execute_command("CLUSTER MYID").decode()
        node.client().execute_command("CLUSTER REPLICATE", name)
        wait_until(lambda: _follows(node), 20, "it follows")
        return node

    def owners(self) -> list[RedisServer]:
        """Return the nodes that take themselves for the one that has the log; others say whose."""
        found = []
        for node in self.nodes:
            with suppress(redis.ResponseError, redis.ConnectionError):
                node.client().exists("{noc}:log")
                found.append(node)
        return found

    def take_over(self, replica: RedisServer) -> None:
        """Make *replica* the owner, without a vote, whether its master is gone or not."""
        replica.client().execute_command("CLUSTER FAILOVER", "TAKEOVER")
        # Until it hears of that, the old one takes events that nobody will ever see.
        wait_until(lambda: self.owners() == [replica], 20, "the slots are taken over")

    def _knows_all(self, node: RedisServer) -> bool:
        info: Any = node.client().execute_command("CLUSTER INFO")
        if isinstance(info, bytes):
            info = dict(line.split(":") for line in info.decode().split())
        return (info["cluster_state"], int(info["cluster_known_nodes"])) == ("ok", len(self.nodes))


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
    wait_until(lambda: _follows(old), 20, "it follows the one that took over")
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
