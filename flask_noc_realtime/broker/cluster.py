"""The node of a Redis Cluster that has the events, and connections that find it.

All keys of a namespace are in one slot, so that one node has them all. A connection asks who that
is before it connects, as one through Sentinel asks for the master. There is no map of the cluster
that could be out of date: whatever became of a node, the next connection asks anew.
"""

from __future__ import annotations

import time
from typing import Any

import redis
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.crc import key_slot
from redis.exceptions import MovedError

from .command import AWAY, ONCE

Node = tuple[str, int]


class Owner:
    """Asks the nodes of a cluster which of them owns the slot of a key.

    It goes on asking the one that answered, until what that said is in doubt.

    :param seeds: nodes to begin with.
    :param options: how to connect to each node.
    """

    def __init__(self, seeds: list[Node], key: str, options: dict[str, Any]) -> None:
        self._seeds = seeds
        self._slot = key_slot(key.encode())
        self._options = options
        self._nodes = seeds
        self._asked: Node | None = None

    def locate(self) -> Node:
        """Return the owner.

        It gives up when nodes that do not answer have taken as long as one may.

        :raises redis.RedisError: when it cannot be known.
        """
        until = time.monotonic() + self._options["socket_timeout"]
        failures = []
        for node in self._nodes:
            try:
                owner = self._ask(node)
            except AWAY as error:
                failures.append(str(error))
                self._ask_last(node)
            else:
                self._asked = node
                return owner
            if time.monotonic() >= until:
                break
        raise redis.ConnectionError(f"no node says which one has the events: {'; '.join(failures)}")

    def doubt(self) -> None:
        """Ask another node next time: one that is cut off from the rest knows of no failover."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._ask_last(asked)

    def _ask_last(self, node: Node) -> None:
        self._nodes = [*(each for each in self._nodes if each != node), node]

    def _ask(self, node: Node) -> Node:
        host, port = node
        pool = ConnectionPool(host=host, port=port, retry=ONCE, **self._options)
        with redis.Redis.from_pool(pool) as client:
            ranges: Any = client.execute_command("CLUSTER SLOTS")
        owner = None
        found = list(self._seeds)
        for first, last, *nodes in ranges:
            # One that does not know its own name leaves it out.
            named = [(each[0].decode() if each[0] else host, each[1]) for each in nodes]
            found += named
            if first <= self._slot <= last:
                owner = named[0]
        self._nodes = [each for each in dict.fromkeys([*self._nodes, *found]) if each in found]
        if owner is None:
            raise redis.ConnectionError(f"{host}:{port} knows of none")
        return owner


class OwnerConnection(Connection):
    """Connects to the owner, whoever that is by then."""

    def __init__(self, owner: Owner, **options: Any) -> None:
        self._owner = owner
        super().__init__(**options)  # type: ignore[no-untyped-call]  # as all of redis-py's

    def _connect(self) -> Any:
        self.host, self.port = self._owner.locate()
        try:
            return super()._connect()  # type: ignore[no-untyped-call]
        except OSError:
            self._owner.doubt()
            raise

    def disconnect(self, *args: Any, **options: Any) -> None:
        self._owner.doubt()
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except MovedError as error:
            self.disconnect()
            raise redis.ConnectionError("the events have moved to another node") from error


class OwnerTLSConnection(OwnerConnection, SSLConnection):
    """Connects to the owner with TLS."""
