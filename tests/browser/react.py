"""Pages with React on which tests render what they like."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests import npm
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.server.client import Site

TIMEOUT = 20.0

_VENDOR = """
export {
  Activity, createContext, createElement, StrictMode, useCallback, useContext, useEffect,
  useInsertionEffect, useRef, useState, useSyncExternalStore,
} from "react";
export { createRoot } from "react-dom/client";
export { renderToString } from "react-dom/server.browser";
export { QueryClient, QueryClientProvider, useQuery } from "@tanstack/react-query";
"""
# Or React recommends its tools on the console.
_BANNER = "--banner:js=globalThis.__REACT_DEVTOOLS_GLOBAL_HOOK__ = { isDisabled: true };"

_PREPARE = """async () => {
  for (const name of ["/vendor.js", "flask-noc-realtime", "flask-noc-realtime/react"])
    Object.assign(window, await import(name));
  window.h = createElement;
  window.strict = (...children) => h(StrictMode, null, ...children);
  window.place = document.querySelector("main");
  window.Log = function Log() {
    useNocEvents(useNocStream(), "log.added", ({ n }) => seen.push(n));
    return null;
  };
  window.State = function State() {
    return useNocState(useNocStream()).name;
  };
}"""
_BEGIN = """(position) => {
  window.position = position;
  window.seen = [];
  window.stream = null;
  window.root = createRoot(place);
}"""


@cache
def vendor(packages: Path, react: str) -> str:
    """Return React, of which there is no ES module, and TanStack Query as one."""
    return npm.bundle(packages, _VENDOR, *aliases(react), _BANNER, "--minify")


def aliases(react: str) -> tuple[str, str]:
    """Return the options of esbuild that choose a React."""
    return f"--alias:react=react-{react}", f"--alias:react-dom=react-dom-{react}"


class ReactPage:
    """A page of `tests.server.pages` with the names of React and ours as globals.

    A test renders into ``root``; ``seen`` is its own, and so is ``stream``.

    :param page: of Playwright, that collects what goes wrong in `problems`.
    :param react: what `vendor` returned.
    """

    def __init__(self, page: Any, server: GunicornServer, react: str) -> None:
        self.page = page
        self._site = Site(server.address)
        self._logs = 0
        page.route(
            server.url + "/vendor.js",
            lambda route: route.fulfill(body=react, content_type="text/javascript"),
        )
        page.goto(server.url + "/react")
        page.evaluate(_PREPARE)

    def begin(self) -> None:
        """Forget the test before, but not the page."""
        self._logs = 0
        self.page.evaluate(_BEGIN, self.emit("notification.sent"))

    def end(self) -> None:
        """Unmount what the test rendered; no stream may be left, and nothing have gone wrong."""
        self.run("root.unmount(); stream?.close()")
        wait_until(lambda: self.streams == 0, TIMEOUT, "no stream is left")
        problems, self.page.problems[:] = list(self.page.problems), []
        assert problems == []

    def run(self, statements: str) -> None:
        """Run statements in the page."""
        self.page.evaluate(f"async () => {{ {statements} }}")

    def value(self, expression: str) -> Any:
        """Return the value of an expression."""
        return self.page.evaluate(expression)

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; Playwright's own way needs 'unsafe-eval'."""
        wait_until(lambda: self.value(expression), TIMEOUT, expression)

    def emit(self, type: str, data: Any = None) -> str:
        """Emit an event in the server; return its position."""
        return self._site.emit(type, data)

    def emit_all(self, type: str, data: list[Any]) -> None:
        """Emit events at once."""
        self._site.post("/emit-all", [{"type": type, "data": each} for each in data])

    def emit_logs(self, count: int) -> None:
        """Emit events that are numbered within the test."""
        self.emit_all("log.added", [{"n": n} for n in range(self._logs, self._logs + count)])
        self._logs += count

    @property
    def streams(self) -> int:
        """How many streams the server has."""
        return int(self._site.state()["detached"])
