"""How many streams a user may have: places that lapse with the worker that holds them."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import NamedTuple

from .broker import Broker, Claim, Leased, Terms
from .combine import Combine
from .errors import BrokerUnavailable, LimitError

_PAGE = 500
_CLAIM_ANEW = 3600.0

_logger = logging.getLogger("flask_noc_realtime")


class LeaseOptions(NamedTuple):
    """How many streams there may be.

    :ivar per_user: streams of one user on all workers; 0 is any number.
    :ivar per_worker: streams of one worker; 0 is any number.
    :ivar evict: end the user's oldest stream instead of refusing the new one.
    :ivar seconds: how long a killed worker's places stay taken.
    """

    per_user: int = 3
    per_worker: int = 0
    evict: bool = False
    seconds: float = 10.0


class Leases:
    """Holds the leases of one process's streams.

    What many requests ask at once goes to the broker in one call. While the broker is away the
    limit holds in this process alone, and its leases are claimed anew when it is back.

    :param evict: called with a lease that is void; it ends the stream, wherever it is.
    """

    def __init__(
        self, broker: Broker, options: LeaseOptions, evict: Callable[[str], object]
    ) -> None:
        self._broker = broker
        self._options = options
        self._evict = evict
        self._worker = secrets.token_hex(6)
        self._terms = Terms(self._worker, options.seconds, options.per_user, options.evict)
        self._numbers = count(1)
        # False sends only what was released, and True renews as well what the broker forgot.
        self._ask: Combine[Claim | bool, bool] = Combine(self._answer, _PAGE)
        self._lock = threading.RLock()
        self._users: dict[str, str | None] = {}
        self._held: dict[str, dict[str, None]] = {}
        self._released: list[Claim] = []
        self._abandoned: deque[str] = deque()
        self._renewing = False
        self._known = False
        self._away_until = 0.0
        self._claimed_at = -math.inf
        self._closing = threading.Event()

    def acquire(self, user_id: str | None) -> str:
        """Return a lease for one more stream of the user; nobody's are only counted.

        :raises LimitError: when the user or this worker has as many as may be.
        """
        lease = f"{self._worker}:{next(self._numbers)}"
        options = self._options
        self._collect()
        with self._lock:
            if options.per_worker and len(self._users) >= options.per_worker:
                raise LimitError(
                    f"This worker serves {options.per_worker} streams, as many as it may; "
                    "come again soon.",
                    everybody=True,
                )
            self._users[lease] = user_id
        if user_id is None or not options.per_user:
            return lease
        try:
            granted = self._ask(Claim(user_id, lease))
        except BaseException:
            self.release([lease])
            raise
        if not granted:
            with self._lock:
                self._users.pop(lease, None)
            raise LimitError(
                f"You have {options.per_user} streams, as many as a user may; close one first.",
                everybody=False,
            )
        return lease

    def release(self, leases: Iterable[str]) -> None:
        """Give leases back; those that were given back before are passed over."""
        with self._lock:
            for lease in leases:
                user_id = self._users.pop(lease, None)
                if user_id is None or not self._options.per_user:
                    continue
                self._forget(user_id, lease)
                self._released.append(Claim(user_id, lease))
        while self._released and self._ask(False):
            pass

    def abandon(self, lease: str) -> None:
        """Give a lease back later; from anywhere, a garbage collection included."""
        self._abandoned.append(lease)

    def close(self) -> None:
        """Void every lease of this process; those given back later bring none back."""
        self._closing.set()
        if self._known and self._broker.shared:
            self._ask(False)

    def _answer(self, questions: Sequence[Claim | bool]) -> list[bool]:
        """Ask the broker once; tell which claims are granted, and whether it answered at all."""
        claims = [each for each in questions if not isinstance(each, bool)]
        with self._lock:
            released, self._released = self._released[:_PAGE], self._released[_PAGE:]
        leased = None
        try:
            leased = self._lease(claims, released)
        finally:
            if leased is None:
                with self._lock:
                    self._released = released + self._released
        with self._lock:
            answers = [
                leased is not None if isinstance(each, bool) else self._settle(each, leased)
                for each in questions
            ]
            self._keep_renewing()
        if leased is not None:
            self._evict_all(leased.evicted)
            if True in questions:
                self._claim_anew()
        return answers

    def _lease(self, claims: list[Claim], released: list[Claim]) -> Leased | None:
        """Return what became of the claims, or None while the broker is away."""
        now = time.monotonic()
        if now < self._away_until:
            return None
        terms = self._terms
        if self._closing.is_set():
            terms = terms._replace(seconds=0.0)
        try:
            leased = self._broker.lease(terms, claims, released)
        except BrokerUnavailable as error:
            if not self._away_until and not self._closing.is_set():
                _logger.error("Streams are counted by each worker alone: %s.", error)
            self._away_until = now + self._options.seconds / 3
            return None
        if self._away_until or not leased.renewed:
            # Redis may have lost them, or given them to others while it was out of reach.
            self._claimed_at = -math.inf
        self._known = True
        self._away_until = 0.0
        return leased

    def _settle(self, claim: Claim, leased: Leased | None) -> bool:
        user_id, lease = claim
        if lease not in self._users:
            # Its request was cut short, and may have given it back before it was claimed.
            self._released.append(claim)
            return False
        held = self._held.get(user_id, {})
        if leased is None:
            granted = len(held) < self._options.per_user
        else:
            granted = lease not in leased.refused
        if granted:
            self._held.setdefault(user_id, held)[lease] = None
        elif leased is None:
            # The broker may have granted it, and only its answer was lost.
            self._released.append(claim)
        return granted

    def _forget(self, user_id: str, lease: str) -> None:
        held = self._held.get(user_id, {})
        held.pop(lease, None)
        if not held:
            self._held.pop(user_id, None)

    def _evict_all(self, leases: Iterable[str]) -> None:
        for lease in leases:
            try:
                self._evict(lease)
            except BrokerUnavailable as error:
                _logger.error("A stream that was evicted goes on: %s.", error)

    def _collect(self) -> None:
        leases = []
        with suppress(IndexError):  # Another thread may take the last one first.
            while self._abandoned:
                leases.append(self._abandoned.popleft())
        if leases:
            self.release(leases)

    # Renewal.

    def _keep_renewing(self) -> None:
        if self._held and self._broker.shared and not self._renewing:
            thread = threading.Thread(target=self._renew, name="noc-realtime-leases", daemon=True)
            with suppress(RuntimeError):  # No more threads: who asks next tries again.
                thread.start()
                self._renewing = True

    def _renew(self) -> None:
        while not self._closing.wait(self._options.seconds / 3):
            with self._lock:
                if not self._held and not self._released:
                    self._renewing = False
                    return
            try:
                self._renew_once()
            except Exception:
                _logger.exception("Renewing leases stumbled; it goes on.")

    def _renew_once(self) -> None:
        self._collect()
        self._ask(True)

    def _claim_anew(self) -> None:
        """Claim what is held already: Redis may have lost it, or void it when it is old.

        Nobody else asks meanwhile: a stream that ends is given back after its claim, not before.
        """
        begun = time.monotonic()
        if self._closing.is_set() or begun - self._claimed_at <= _CLAIM_ANEW:
            return
        terms = self._terms._replace(evict=False)
        with self._lock:
            claims = [Claim(user, lease) for user, held in self._held.items() for lease in held]
        for first in range(0, len(claims), _PAGE):
            try:
                leased = self._broker.lease(terms, claims[first : first + _PAGE])
            except BrokerUnavailable:
                return
            self._evict_all(leased.refused)
            if not leased.renewed:
                return  # It lost what was claimed so far.
        self._claimed_at = begun
