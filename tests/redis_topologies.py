"""Redis Sentinel and Redis Cluster on the loopback, for tests and benchmarks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from tests.certificate import Certificate
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer
from tests.requirements import find

AT_ONCE = ["--repl-diskless-sync-delay", "0"]
"""A replica need not wait five seconds for others that come."""
_TLS = """\
port 0
tls-port {port}
tls-auth-clients no
tls-replication yes
tls-cert-file {it.certificate}
tls-key-file {it.key}
tls-ca-cert-file {it.authority}
"""
_CONFIG = """\
dir {directory}
sentinel monitor noc 127.0.0.1 {master} 1
sentinel down-after-milliseconds noc 500
sentinel failover-timeout noc 3000
"""


class Sentinel:
    """A sentinel that watches *master*, by the name of noc; it alone decides.

    :param tls: the certificate of both.
    """

    def __init__(
        self, directory: Path, master: RedisServer, tls: Certificate | None = None
    ) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        config = directory / "sentinel.conf"
        own = _TLS.format(port=self.port, it=tls) if tls else f"port {self.port}\n"
        config.write_text(own + _CONFIG.format(directory=directory, master=master.port))
        executable = find("redis-server")
        assert executable is not None
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [executable, str(config), "--sentinel"], stdout=log, stderr=log
            )
        options = {"ssl": True, "ssl_ca_certs": str(tls.authority)} if tls else {}
        self.client: Any = redis.Redis(port=self.port, decode_responses=True, **options)
        try:
            wait_until(self._answers, 20, "the sentinel answers")
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """What to set as ``NOC_REALTIME_URL``, without TLS."""
        return f"redis+sentinel://127.0.0.1:{self.port}/noc/0"

    def replicas(self) -> int:
        """Return how many replicas it knows."""
        state: Any = self.client.execute_command("SENTINEL", "MASTER", "noc")
        # redis-py 6.0 leaves it a list.
        if not isinstance(state, dict):
            state = dict(zip(state[::2], state[1::2], strict=True))
        return int(state["num-slaves"])

    def close(self) -> None:
        """End it."""
        self.client.close()
        self._process.terminate()
        self._process.wait(20)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


def follows(replica: RedisServer) -> bool:
    """Tell whether *replica* has what its master has, and hears what is new."""
    return replica.client().info("replication").get("master_link_status") == "up"


class Cluster:
    """Nodes of a Redis Cluster; their bus is 10,000 ports higher."""

    def __init__(self, start: Callable[..., RedisServer]) -> None:
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
        wait_until(lambda: follows(node), 20, "it follows")
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
