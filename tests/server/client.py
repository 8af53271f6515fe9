"""Asking a server of the tests for things."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from tests.sse_client import SSEClient

OPERATOR = {"X-User": "7", "X-Permissions": "incidents.read"}


class Site:
    """A running app of `tests.server.transport_apps`.

    :param address: ``(host, port)``, or the path of a Unix socket.
    :param tls: the context for HTTPS.
    """

    def __init__(self, address: tuple[str, int] | str, tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.tls = tls

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Return the answer to a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", timeout=20)
        if isinstance(self.address, str):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(20)
            connection.sock.connect(self.address)
        else:
            connection.sock = socket.create_connection(self.address, timeout=20)
        if self.tls is not None:
            connection.sock = self.tls.wrap_socket(connection.sock, server_hostname="127.0.0.1")
        sent = {"Connection": "close", "Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        answer.text = answer.read()  # type: ignore[attr-defined]
        connection.close()
        return answer

    def post(self, path: str, body: Any) -> Any:
        """Return the decoded answer to a POST."""
        answer: Any = self.ask("POST", path, body)
        assert answer.status == 200, answer.text
        return json.loads(answer.text)

    def emit(self, type: str, data: Any = None, **options: Any) -> str:
        """Emit an event in the server; return its position."""
        position: str = self.post("/emit", {"type": type, "data": data, **options})["position"]
        return position

    def burst(self, type: str, first: int, count: int, size: int = 0) -> list[str]:
        """Emit numbered events in the server; return their positions."""
        wanted = {"type": type, "first": first, "count": count, "size": size}
        positions: list[str] = self.post("/burst", wanted)["positions"]
        return positions

    def state(self) -> Any:
        """Return what the worker that answers holds."""
        answer: Any = self.ask("GET", "/state")
        return json.loads(answer.text)

    def stream(self, query: str = "", **options: Any) -> SSEClient:
        """Open a stream as an operator."""
        options.setdefault("headers", OPERATOR)
        path = "/api/v1/events/stream" + query
        return SSEClient(self.address, path, tls=self.tls, **options)


def numbers(events: list[Any], type: str) -> list[int]:
    """Return the numbers of a burst as they arrived."""
    return [event.json["data"]["n"] for event in events if event.type == type]
