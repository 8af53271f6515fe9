"""A real Redis for a test, on a port or socket of its own, with its data in a directory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.certificate import Certificate
from tests.processes import free_port, wait_until
from tests.requirements import find

_UNIX_PATH_LIMIT = 100


class RedisServer:
    """One redis-server process. `restart` keeps its address and, with AOF, its data.

    :param directory: holds its data and its log; made when missing.
    :param port: the TCP port; a free one by default.
    :param unix: listen on a Unix socket only.
    :param tls: listen with TLS only, showing this certificate.
    :param appendonly: keep an AOF, synced on every write; otherwise data dies with it.
    :param args: further options, for example ``["--maxmemory", "1mb"]``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        unix: bool = False,
        tls: Certificate | None = None,
        appendonly: bool = False,
        args: Sequence[str] = (),
        executable: str | None = None,
    ) -> None:
        found = executable or find("redis-server")
        if found is None:
            raise FileNotFoundError("missing redis-server")
        self.directory = directory
        self.port = 0 if unix else (port or free_port())
        self.socket_path = _socket_path(directory) if unix else None
        self._executable = found
        self._tls = tls
        self._appendonly = appendonly
        self._args = list(args)
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[Any] = []

    @property
    def url(self) -> str:
        """What to set as ``NOC_REALTIME_URL``."""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        if self._tls is not None:
            return f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self._tls.authority}"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 10.0) -> RedisServer:
        """Start it and return once it answers PING.

        :raises RuntimeError: with its log, when it ends instead.
        """
        assert not self.running, "the server runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "redis.log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(self._answers, timeout, "redis-server answers PING")
        except BaseException:
            self.kill9()
            raise
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End it in an orderly way; does nothing when it is not running."""
        self._end(signal.SIGTERM, timeout)

    def kill9(self) -> None:
        """End it as a crash would, and return when it is gone."""
        self._end(signal.SIGKILL, 10.0)

    def restart(self, *, empty: bool = False) -> None:
        """Start it again at the same address; with *empty*, as if its disk had been lost."""
        self.stop()
        if empty:
            shutil.rmtree(self.directory / "data", ignore_errors=True)
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """Return a redis-py client of this server; `close` closes it."""
        import redis

        client = redis.Redis.from_url(self.url, **options)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """End it and close its clients."""
        self.stop()
        for client in self._clients:
            client.close()

    def log(self) -> str:
        """Return what it logged so far."""
        return (self.directory / "redis.log").read_text(errors="replace")

    def _command(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        command = [self._executable, "--dir", str(data), "--save", "", "--bind", "127.0.0.1"]
        if self.socket_path is not None:
            command += ["--port", "0", "--unixsocket", self.socket_path]
        elif self._tls is not None:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self._tls.certificate)]
            command += ["--tls-key-file", str(self._tls.key)]
            command += ["--tls-ca-cert-file", str(self._tls.authority)]
        else:
            command += ["--port", str(self.port)]
        if self._appendonly:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        return command + self._args

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"redis-server ended at once:\n{self.log()}")
        try:
            with self._connect() as sock:
                sock.sendall(b"PING\r\n")
                # With a password set the answer is -NOAUTH, which is an answer.
                return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _connect(self) -> socket.socket:
        if self.socket_path is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(1.0)
            try:
                sock.connect(self.socket_path)
            except OSError:
                sock.close()
                raise
            return sock
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=1.0)
        if self._tls is None:
            return sock
        try:
            return self._tls.client_context().wrap_socket(sock, server_hostname="127.0.0.1")
        except (OSError, ssl.SSLError):
            sock.close()
            raise

    def _end(self, number: signal.Signals, timeout: float) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
            # A paused process takes no signal but SIGKILL until it goes on.
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
            raise
        finally:
            self._process = None


def _socket_path(directory: Path) -> str:
    path = str(directory / "redis.sock")
    if len(path) <= _UNIX_PATH_LIMIT:
        return path
    # sun_path holds 108 bytes, and a test's directory is often longer.
    return str(Path(tempfile.mkdtemp(prefix="noc-")) / "redis.sock")
