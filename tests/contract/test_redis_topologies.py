"""Redis Sentinel and Redis Cluster, started for real on the loopback."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from flask_noc_realtime.broker import Change
from flask_noc_realtime.broker.redis import RedisBroker
from flask_noc_realtime.errors import BrokerUnavailable
from tests.certificate import Certificate
from tests.conftest import RedisFactory, require
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, key, record
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer

pytestmark = pytest.mark.slow

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


def _replicas(client: Any) -> int:
    state: Any = client.execute_command("SENTINEL", "MASTER", "noc")
    # redis-py 6.0 leaves it a list.
    state = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
    return int(state["num-slaves"])


@pytest.fixture
def sentinel(redis_server: RedisFactory, watch: Sentinel) -> tuple[int, RedisServer]:
    """Return the port of a sentinel, and the master it watches beside a replica."""
    master = redis_server()
    replica = redis_server(args=["--replicaof", "127.0.0.1", str(master.port)])
    wait_until(
        lambda: replica.client().info("replication")["master_link_status"] == "up",
        20,
        "the replica follows",
    )
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
    assert master.client().wait(1, 5000) == 1
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


@pytest.fixture
def cluster(redis_server: RedisFactory) -> Iterator[list[RedisServer]]:
    """Return three masters that share the slots; their bus is 10,000 ports higher."""
    nodes = [
        redis_server(
            port=next(port for port in iter(free_port, None) if port < 55_000),
            appendonly=True,
            args=["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"],
        )
        for _ in range(3)
    ]
    clients = [node.client() for node in nodes]
    bounds = [0, 5461, 10923, 16384]
    for index, client in enumerate(clients):
        client.execute_command("CLUSTER ADDSLOTS", *range(bounds[index], bounds[index + 1]))
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)

    def joined() -> bool:
        infos = [client.execute_command("CLUSTER INFO") for client in clients]
        return all(
            str(info["cluster_state"]) == "ok" and int(info["cluster_known_nodes"]) == 3
            for info in infos
        )

    wait_until(joined, 30, "the cluster is formed")
    yield nodes
    # What redis-py's cluster client drops unclosed is collected while its warning is expected.
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_cluster_is_followed_through_the_restart_of_the_node_that_owns_the_log(
    cluster: list[RedisServer], connect: BrokerFactory
) -> None:
    """All keys hash to one slot, and the subscription is where the script publishes."""
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    sink = RecordingSink()
    connect(url).start(sink)
    publisher = connect(url)
    for number in range(18):
        publish(publisher, number)
    changes = [Change(f"subject-{number}", None, b"said", record(number)) for number in (18, 19)]
    assert all(publisher.publish_changes(changes, 60.0))
    assert publisher.recall(["subject-18", "subject-19", "other"]) == [b"said", b"said", None]
    sink.wait_for_number(19)
    (owner,) = [node for node in cluster if node.client().execute_command("DBSIZE")]
    owner.kill9()
    owner.start()
    for number in range(20, 40):
        publish(publisher, number)
    sink.wait_for_number(39)
    assert sink.numbers == list(range(40))
    assert len(sink.restarts) == 1
