"""Redis Sentinel and Redis Cluster, started for real on the loopback."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from flask_noc_realtime.broker import Change
from flask_noc_realtime.broker.redis import RedisBroker
from flask_noc_realtime.errors import BrokerUnavailable
from flask_noc_realtime.event import ROLLOUT
from flask_noc_realtime.rollout import Rollout, record_of
from tests.conftest import RedisFactory, require
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, key, record
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer

pytestmark = pytest.mark.slow

SENTINEL = """\
port {port}
dir {directory}
sentinel monitor noc 127.0.0.1 {master} 1
sentinel down-after-milliseconds noc 500
sentinel failover-timeout noc 3000
"""


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


@pytest.fixture
def sentinel(tmp_path: Path, redis_server: RedisFactory) -> Iterator[tuple[int, RedisServer]]:
    """Return the port of a sentinel, and the master it watches beside a replica."""
    master = redis_server()
    replica = redis_server(args=["--replicaof", "127.0.0.1", str(master.port)])
    wait_until(
        lambda: replica.client().info("replication")["master_link_status"] == "up",
        20,
        "the replica follows",
    )
    port = free_port()
    directory = tmp_path / "sentinel"
    directory.mkdir()
    config = directory / "sentinel.conf"
    config.write_text(SENTINEL.format(port=port, directory=directory, master=master.port))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [require("redis-server"), str(config), "--sentinel"], stdout=log, stderr=log
        )
    watch = redis.Redis(port=port, decode_responses=True)
    try:

        def ready() -> bool:
            try:
                state: Any = watch.execute_command("SENTINEL", "MASTER", "noc")
            except redis.ConnectionError:
                return False
            return bool(state["num-slaves"])

        wait_until(ready, 30, "the sentinel knows the replica")
        yield port, master
    finally:
        watch.close()
        process.terminate()
        process.wait(20)


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
    publisher.stand(record_of(Rollout(5)), key())
    sink.wait_for(lambda: sink.entries[-1].rule.type == ROLLOUT, "what stands")
    late = RecordingSink()
    connect(url).start(late)
    late.wait_for(lambda: bool(late.restarts), "the history")
    assert late.entries[0].rule.type == ROLLOUT
