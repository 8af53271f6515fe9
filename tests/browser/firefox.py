"""Debian's Firefox, driven through its own protocol, Marionette."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.browser.network import NAME, TIMEOUT
from tests.processes import free_port, wait_until

_PREFERENCES = {
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    # Names it resolves to 127.0.0.1.
    "network.dns.localDomains": NAME,
}


class Firefox:
    """A headless Firefox with a profile of its own.

    :param executable: what to run.
    :param profile: a directory for it, that is there.
    """

    def __init__(self, executable: str, profile: Path) -> None:
        self._port = free_port()
        self._number = 0
        preferences = {**_PREFERENCES, "marionette.port": self._port}
        lines = [
            f"user_pref({json.dumps(name)}, {json.dumps(value)});"
            for name, value in preferences.items()
        ]
        (profile / "user.js").write_text("\n".join(lines))
        command = [executable, "--headless", "--no-remote", "--marionette", "--profile", profile]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Firefox:
        try:
            self._socket = wait_until(self._connect, 60, "Firefox listens")
        except BaseException:
            self._process.kill()
            raise
        self._file = self._socket.makefile("rb")
        self._receive()
        self.ask("WebDriver:NewSession", capabilities={})
        self._first = FirefoxPage(self, self.ask("WebDriver:GetWindowHandle")["value"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def ask(self, command: str, **parameters: Any) -> Any:
        """Return the answer to a command."""
        self._number += 1
        message = json.dumps([0, self._number, command, parameters]).encode()
        self._socket.sendall(b"%d:%b" % (len(message), message))
        _, _, error, answer = self._receive()
        assert error is None, error
        return answer

    def open(self, url: str) -> FirefoxPage:
        """Return a new tab."""
        page = FirefoxPage(self, self._first.ask("WebDriver:NewWindow", type="tab")["handle"])
        page.ask("WebDriver:Navigate", url=url)
        return page

    def _connect(self) -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", self._port), timeout=60)
        except OSError:
            return None

    def _receive(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            length += self._file.read(1)
        return json.loads(self._file.read(int(length[:-1])))


class FirefoxPage:
    """A tab, with as much of Playwright's `Page` as the tests need."""

    def __init__(self, firefox: Firefox, handle: str) -> None:
        self._firefox = firefox
        self._handle = handle

    def ask(self, command: str, **parameters: Any) -> Any:
        """Return the answer of this tab to a command."""
        self._firefox.ask("WebDriver:SwitchToWindow", handle=self._handle, focus=False)
        return self._firefox.ask(command, **parameters)

    def evaluate(self, expression: str, arg: Any = None) -> Any:
        """Return what an expression is, or what the function it is returns or resolves to."""
        script = f"""
          const [argument, done] = arguments;
          const found = ({expression});
          Promise.resolve(typeof found === "function" ? found(argument) : found).then(done);
        """
        script = {"script": script, "args": [arg], "sandbox": None, "newSandbox": False}
        return self.ask("WebDriver:ExecuteAsyncScript", **script)["value"]

    def wait_for_function(self, expression: str, arg: Any = None) -> None:
        """Wait until it returns something true."""
        wait_until(lambda: self.evaluate(expression, arg), TIMEOUT, expression)

    def close(self) -> None:
        """Close it."""
        self.ask("WebDriver:CloseWindow")
