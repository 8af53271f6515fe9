"""A TCP proxy that fails the way networks, balancers and login pages do."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from types import TracebackType

_SIZE = 65536
_LOOK = 0.25


class FaultProxy:
    """Stands between clients and one server; the test says how it behaves.

    A change of `behave` holds for new connections, and ends those there are, except for
    "freeze".

    :param server: ``(host, port)`` of what it stands before.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._how = "pass"
        self._answer = b""
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._held: list[socket.socket] = []
        self._mute: set[socket.socket] = set()
        self._closing = False
        self.lifetime: float | None = None
        """Seconds after which a connection is ended, as balancers do; None is for ever."""
        self.asked = 0
        """How many connections were made."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> FaultProxy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def behave(self, how: str = "pass", answer: bytes = b"") -> None:
        """Do from now on what *how* says.

        :param how: "pass"; "refuse" ends each new connection at once; "hang" accepts and stays
            silent; "freeze" is "hang", and what there is passes no byte more; "answer" gives
            *answer* to every request.
        """
        with self._lock:
            self._how, self._answer = how, answer
        if how != "freeze":
            self.cut()

    def lead(self, server: tuple[str, int]) -> None:
        """Stand before another server from now on."""
        self._server = server
        self.cut()

    def mute(self) -> None:
        """Let what there is pass no byte more, and end none of it; new connections pass."""
        with self._lock:
            self._mute |= set(self._pairs)

    def cut(self) -> None:
        """End every connection there is."""
        with self._lock:
            pairs, held = list(self._pairs), self._held
            self._held = []
        for sock in (*pairs, *held):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            if sock in held:
                sock.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.asked += 1
            with self._lock:
                how = self._how
                if how in ("hang", "freeze"):
                    self._held.append(client)
                    continue
            if how == "refuse":
                client.close()
                continue
            serve = self._pass if how == "pass" else self._reply
            thread = threading.Thread(target=serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _reply(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(_SIZE)
                if not part:
                    return
                head += part
            client.sendall(self._answer)
            client.shutdown(socket.SHUT_WR)
            while client.recv(_SIZE):
                pass

    def _pass(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server, timeout=10)
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs |= {client: server, server: client}
        with selectors.DefaultSelector() as selector, client, server:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            made = time.monotonic()
            with contextlib.suppress(OSError):
                while self._move(selector) and not self._expired(made):
                    pass
        with self._lock:
            del self._pairs[client], self._pairs[server]

    def _expired(self, made: float) -> bool:
        return self.lifetime is not None and time.monotonic() - made > self.lifetime

    def _move(self, selector: selectors.BaseSelector) -> bool:
        """Pass on what there is; return False at the end of either side."""
        for key, _ in selector.select(_LOOK):
            part = key.fileobj.recv(_SIZE)  # type: ignore[union-attr]
            if not part:
                return False
            if self._how != "freeze" and key.fileobj not in self._mute:
                key.data.sendall(part)
        return True
