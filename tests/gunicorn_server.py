"""A real gunicorn for a test, in a session of its own so that nothing it started can hide."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.certificate import Certificate
from tests.processes import children, free_port, group_members, wait_until

ROOT = Path(__file__).resolve().parent.parent

# A worker is ready when its app is loaded: connecting proves less, since the arbiter listens
# before its workers start. The control socket of new gunicorns has one path for all servers
# of a user.
_CONFIG = """
control_socket_disable = True


def post_worker_init(worker):
    open({ready!r} + str(worker.pid), "w").close()
"""


class GunicornServer:
    """One ``python -m gunicorn`` process tree.

    :param app: what to serve, for example ``"tests.server.apps:factory()"``.
    :param directory: holds its log and its configuration; made when missing.
    :param worker_class: as for ``gunicorn -k``.
    :param workers: how many worker processes.
    :param args: further options, for example ``["--max-requests", "10"]``.
    :param env: added to the environment.
    :param tls: serve HTTPS with this certificate.
    :param unix: path of a Unix socket to listen on instead of a port.
    :param config: more lines for its configuration file, such as hooks.
    :param python: the interpreter, for another gunicorn than the installed one.
    """

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        worker_class: str = "gevent",
        workers: int = 1,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        tls: Certificate | None = None,
        unix: str | None = None,
        config: str = "",
        python: str = sys.executable,
    ) -> None:
        self.app = app
        self.directory = directory
        self.workers = workers
        self.tls = tls
        self.port = 0 if unix else (port or free_port())
        self.address: tuple[str, int] | str = unix or ("127.0.0.1", self.port)
        self._worker_class = worker_class
        self._args = list(args)
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._config = config
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        assert self.port, "a Unix socket has no URL"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the arbiter."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    def start(self, timeout: float = 20.0) -> GunicornServer:
        """Start it and return once every worker has loaded the app.

        :raises RuntimeError: with its log, when it ends instead.
        """
        assert self._process is None, "the server was started before"
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "gunicorn.log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._ready, timeout, f"{self.workers} gunicorn workers are ready")
        except BaseException:
            self._kill()
            raise
        return self

    def worker_pids(self) -> list[int]:
        """Return the workers that are alive and have loaded the app."""
        ready = {path.name.partition("-")[2] for path in self.directory.glob("ready-*")}
        return [pid for pid in children(self.pid) if str(pid) in ready]

    def send_signal(self, number: int) -> None:
        """Send a signal to the arbiter, for example SIGHUP."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return the exit code.

        :raises AssertionError: when a process it started outlives it.
        """
        assert self._process is not None, "the server is not started"
        code = self._process.wait(timeout)
        left = group_members(self._process.pid)
        if left:
            self._kill()
        assert not left, f"gunicorn left {left} behind:\n{self.log()}"
        return code

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """End it with a signal, by default in gunicorn's graceful way; return the exit code.

        :raises subprocess.TimeoutExpired: when it does not end; everything is killed then.
        :raises AssertionError: when a process it started outlives it.
        """
        assert self._process is not None, "the server is not started"
        if self._process.poll() is None:
            self.send_signal(number)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            raise

    def close(self) -> None:
        """Stop it if it runs."""
        if self._process is not None and self._process.returncode is None:
            self.stop()

    def log(self) -> str:
        """Return what it and its workers wrote so far, to stdout and to stderr."""
        return (self.directory / "gunicorn.log").read_text(errors="replace")

    def _command(self) -> list[str]:
        config = self.directory / "gunicorn.conf.py"
        ready = str(self.directory.resolve() / "ready-")
        config.write_text(_CONFIG.format(ready=ready) + self._config)
        bind = f"127.0.0.1:{self.port}" if self.port else f"unix:{self.address}"
        command = [self._python, "-m", "gunicorn", "-c", str(config), "-b", bind]
        command += ["-k", self._worker_class, "-w", str(self.workers)]
        if self.tls is not None:
            command += ["--certfile", str(self.tls.certificate), "--keyfile", str(self.tls.key)]
        return [*command, *self._args, self.app]

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"gunicorn ended with {self._process.returncode}:\n{self.log()}")
        return len(self.worker_pids()) >= self.workers

    def _kill(self) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10.0)
