"""The shelf: results that all workers share, fetched from Redis or worked out for all of them."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Generic, TypeVar

from .broker.pages import ALONE, FAILED, LANDED, Look, Pages, Waiter
from .errors import BrokerUnavailable
from .flight import ALONE_SECONDS, How, Landed
from .generation import Generations, Unknown
from .metrics import OFF, Metrics

T = TypeVar("T")

LEASE = 3.0
"""Seconds after which a leader that died is replaced."""

_MARGIN = 0.02
_ATTEMPTS = 20


class Keeper:
    """Renews the leases of flights that take long, from one thread.

    The thread starts with the first lease and sleeps while there is none to renew.
    """

    def __init__(self, pages: Pages, lease: float) -> None:
        self._pages = pages
        self._lease = lease
        self._held: dict[str, tuple[str, float]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._closing = False

    def hold(self, name: str, token: str) -> None:
        """Renew a lease from now on."""
        with self._changed:
            self._held[token] = name, time.monotonic() + self._lease / 3
            if self._thread is None and not self._closing:
                thread = threading.Thread(
                    target=self._renew, name="noc-realtime-flights", daemon=True
                )
                with suppress(RuntimeError):  # No more threads: the next lease tries again.
                    thread.start()
                    self._thread = thread
            elif len(self._held) == 1:
                self._changed.notify()

    def let_go(self, token: str) -> None:
        """Renew it no more."""
        with self._changed:
            self._held.pop(token, None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._held.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._lease)

    def _renew(self) -> None:
        while True:
            due = self._wait()
            if due is None:
                return
            try:
                held = self._pages.renew([(name, token) for token, name in due], self._lease)
            except BrokerUnavailable:
                continue
            for (token, _), still in zip(due, held, strict=True):
                if not still:
                    self.let_go(token)

    def _wait(self) -> list[tuple[str, str]] | None:
        """Return the tokens and names that are due, or None at the end."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                due = [(token, name) for token, (name, at) in self._held.items() if at <= now]
                if due:
                    for token, name in due:
                        self._held[token] = name, now + self._lease / 3
                    return due
                soonest = min((at for _, at in self._held.values()), default=None)
                self._changed.wait(None if soonest is None else soonest - now)
            return None


class Codec(Generic[T]):
    """How a value is written for the shelf, and read from it.

    :param seal: encodes a value for a key, to be read for some seconds.
    :param unseal: decodes it; None is for what was not written by one of us.
    """

    def __init__(
        self, seal: Callable[[T, bytes, float], bytes], unseal: Callable[[bytes, bytes], T | None]
    ) -> None:
        self.seal = seal
        self.unseal = unseal


class Shelf:
    """Belongs to one process; all methods are thread-safe.

    :param generations: says when the broker is left in peace.
    """

    def __init__(
        self,
        pages: Pages,
        generations: Generations,
        lease: float = LEASE,
        metrics: Metrics = OFF,
    ) -> None:
        self._metrics = metrics
        self._pages = pages
        self._generations = generations
        self._lease = lease
        self._keeper = Keeper(pages, lease)

    def obtain(
        self,
        key: bytes,
        patterns: Sequence[str],
        codec: Codec[T],
        execute: Callable[[Hashable], Landed[T]],
        *,
        strict: bool = True,
        due: float = 0.0,
        since: Hashable | None = None,
    ) -> tuple[How, Landed[T] | None]:
        """Return what another worker brings, or *execute* in place of all of them.

        Nothing is returned where callers are not to wait for each other.

        :param execute: takes the generations that held before it began.
        :param strict: whether nothing may be kept of which it is not known that it still holds.
        :param due: how many seconds before its end a result is worked out anew, by one.
        :param since: the generations that held when a transaction began in which *execute* reads;
            once they hold no more, its result is kept for nobody.
        """
        name = key.hex()
        token = self._pages.token()
        waiter = self._pages.expect(name)
        waited, lapsed = False, False
        try:
            for _ in range(_ATTEMPTS):
                if not self._generations.readable:
                    break
                look_up = functools.partial(
                    self._pages.look_up, name, patterns, token, self._lease, due
                )
                look = self._generations.attempt(look_up)
                if look is None:
                    break
                if look.state == "alone":
                    return How.ALONE, None
                if look.value is not None:
                    value = codec.unseal(look.value, key)
                    if value is not None:
                        self._metrics.shared("joined" if waited else "kept")
                        return How.KEPT, Landed(value, look.seconds)
                    self._generations.attempt(functools.partial(self._pages.drop, name))
                elif look.state == "lead":
                    if since is not None and look.names != since:
                        self._give_back(name, token, look, patterns)
                        break
                    if lapsed:
                        self._metrics.took_over()
                    landed, kept = self._lead(key, token, look, patterns, codec, execute)
                    return How.LED, landed if kept or not strict else replace(landed, ttl=0.0)
                else:
                    outcome = self._wait(waiter, look)
                    waited, lapsed = True, not outcome
                    if outcome == ALONE:
                        return How.ALONE, None
                    if outcome == FAILED:
                        # One after the other, the last would wait for all failures.
                        break
        finally:
            waiter.close()
        return How.LED, execute(Unknown() if strict else ())

    def close(self) -> None:
        """Renew nothing more."""
        self._keeper.close()

    def _wait(self, waiter: Waiter, look: Look) -> str:
        """Wait for the leader in another process, and until its lease lapses at most."""
        rest = look.seconds + _MARGIN + random.uniform(0, _MARGIN)
        return waiter.wait(min(self._lease / 2, rest))

    def _give_back(self, name: str, token: str, look: Look, patterns: Sequence[str]) -> None:
        """Let another lead, of those who wait by now as well."""
        commit = functools.partial(self._pages.commit, name, token, LANDED, look, patterns)
        self._generations.attempt(commit)

    def _lead(
        self,
        key: bytes,
        token: str,
        look: Look,
        patterns: Sequence[str],
        codec: Codec[T],
        execute: Callable[[Hashable], Landed[T]],
    ) -> tuple[Landed[T], bool]:
        """Return what *execute* brings, and whether it is kept."""
        name = key.hex()
        outcome, value, ttl = LANDED, b"", 0.0
        self._keeper.hold(name, token)
        try:
            landed = execute(look.names)
            if not landed.shared:
                outcome, ttl = ALONE, ALONE_SECONDS
            elif landed.ttl > 0:
                value, ttl = codec.seal(landed.value, key, landed.ttl), landed.ttl
            else:
                outcome = FAILED
        except Exception:
            outcome = FAILED
            raise
        finally:
            self._keeper.let_go(token)
            commit = functools.partial(
                self._pages.commit, name, token, outcome, look, patterns, value, ttl
            )
            kept = self._generations.attempt(commit)
        return landed, bool(kept)
