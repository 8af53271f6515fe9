"""Tabs of a real browser, the server they are connected to, and the way between."""

from __future__ import annotations

import json
from typing import Any

from tests.faults import FaultProxy
from tests.server.client import Site

TIMEOUT = 20.0
ENV = {
    "NOC_REALTIME_HEARTBEAT": "0.4",
    "NOC_REALTIME_RETRY": "0.2",
    "NOC_REALTIME_POLL_INTERVAL": "0.1",
}

NOT_FOR_AN_HOUR = b"HTTP/1.1 401 Unauthorized\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"
"""Whoever heeds this comes back only when there is a reason."""

NAME = "noc.test"
"""The browser finds 127.0.0.1 under this name, where plain http is no secure context."""

CONNECT = """async (options) => {
  const { connect } = await import("/api/v1/events/client.js");
  window.numbers = [];
  window.states = [];
  window.reasons = [];
  window.lost = [];
  window.attempts = [];
  for (const name of ["ticket", "token"]) {
    if (options[name]) options[name] = (0, eval)(options[name]);
  }
  window.stream = connect({
    openTimeout: 1000,
    maxDelay: 400,
    ...options,
    onState: ({ name, reason }) => {
      states.push(name);
      reasons.push(reason);
    },
    onGap: ({ reason }) => lost.push(reason),
  });
  stream.on("log.added", ({ n }) => numbers.push(n));
  window.positions = [];
  stream.subscribe(() => positions.push(stream.snapshot().position));
}"""


class Tab:
    """A page with a stream."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def connect(self, share: Any = False, **options: Any) -> None:
        """Open a stream; `token` and `ticket` are JavaScript."""
        self.page.evaluate(CONNECT, {"share": share, **options})

    def answer(self, path: str, **how: Any) -> None:
        """Answer the page's requests for *path* instead of the server."""
        self.page.route(path, lambda route: route.fulfill(**how))

    def wait_for_state(self, *names: str) -> None:
        """Wait until the page shows one of the states."""
        self.page.wait_for_function(
            "(names) => names.includes(stream.snapshot().name)", arg=list(names)
        )

    def wait_for(self, numbers: list[int]) -> None:
        """Wait until as many events have come, and see that they are these, once and in order."""
        self.page.wait_for_function("(count) => numbers.length >= count", arg=len(numbers))
        assert self.page.evaluate("numbers") == numbers

    @property
    def snapshot(self) -> dict[str, Any]:
        """What the page may know."""
        found: dict[str, Any] = self.page.evaluate("stream.snapshot()")
        return found

    @property
    def lost(self) -> list[str]:
        """The reasons of the gaps the page was told of."""
        reasons: list[str] = self.page.evaluate("lost")
        return reasons

    @property
    def states(self) -> list[str]:
        """The states the page showed, one after the other."""
        seen: list[str] = self.page.evaluate("states")
        return [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]


class Network(Tab):
    """A server, the way to it, and a browser's page that was loaded over that way."""

    def __init__(self, page: Any, site: Site, proxy: FaultProxy) -> None:
        super().__init__(page)
        self.site = site
        self.proxy = proxy
        self.emitted = 0

    def tabs(self, count: int, host: str = "127.0.0.1") -> list[Tab]:
        """Return more pages of the same browser, without streams so far."""
        pages = [self.page.context.new_page() for _ in range(count)]
        for page in pages:
            page.goto(f"http://{host}:{self.proxy.address[1]}/snapshot")
        return [Tab(page) for page in pages]

    def emit(self, count: int = 5) -> None:
        """Emit numbered events, not through the proxy."""
        self.site.ask("GET", f"/emit?first={self.emitted}&count={count}")
        self.emitted += count

    def wait_for_all(self) -> None:
        """Wait until the page has every event, and see each there once, in order."""
        self.wait_for(list(range(self.emitted)))

    @property
    def position(self) -> str:
        """The newest position."""
        found: str = self.site.ask("GET", "/snapshot").headers["X-Noc-Position"]
        return found

    @property
    def streams(self) -> int:
        """How many streams the server has."""
        answer: Any = self.site.ask("GET", "/streams")
        return int(json.loads(answer.text)["detached"])
