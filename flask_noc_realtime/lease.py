"""How many streams a user may have: places that lapse with the worker that holds them."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from .broker import Broker, Claim, Leased, Terms
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


class _Waiting:
    """A claim on its way to the broker."""

    __slots__ = ("claim", "leads", "refused", "turn")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.leads = False
        self.refused = False
        self.turn = threading.Event()


class Leases:
    """Holds the leases of one process's streams.

    What many requests ask at once goes to the broker in one call: whoever comes first asks for
    all that wait by then, and the next in line for those that came meanwhile. While the
    broker is away the limit holds in this process, and its leases are claimed when it is back.

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
        self._lock = threading.RLock()
        self._users: dict[str, str | None] = {}
        self._held: dict[str, dict[str, None]] = {}
        self._waiting: list[_Waiting] = []
        self._released: list[Claim] = []
        self._asking = False
        self._renewing = False
        self._away_until = 0.0
        self._claimed_at = -math.inf
        self._known = False
        self._closing = threading.Event()

    def acquire(self, user_id: str | None) -> str:
        """Return a lease for one more stream of the user; nobody's are only counted.

        :raises LimitError: when the user or this worker has as many as may be.
        """
        lease = f"{self._worker}:{next(self._numbers)}"
        options = self._options
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
            granted = self._granted(Claim(user_id, lease))
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
        self._send_released()

    def close(self) -> None:
        """Void every lease of this process."""
        self._closing.set()
        if self._known and self._broker.shared:
            try:
                self._broker.lease(self._terms._replace(seconds=0.0))
            except BrokerUnavailable:
                pass  # They lapse by themselves.

    def _granted(self, claim: Claim) -> bool:
        waiting = _Waiting(claim)
        with self._lock:
            self._waiting.append(waiting)
            waiting.leads = self._take_lead()
        if not waiting.leads:
            try:
                waiting.turn.wait()
            except BaseException:
                self._desert(waiting)
                raise
        if waiting.leads:
            self._ask()
        return not waiting.refused

    def _desert(self, waiting: _Waiting) -> None:
        """Leave the line; a request cut short would otherwise hold up all behind it."""
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            if waiting.leads:
                self._pass_on()

    def _take_lead(self) -> bool:
        """Become the one who asks the broker, unless somebody is."""
        leads, self._asking = not self._asking, True
        return leads

    def _ask(self) -> Leased | None:
        """Ask the broker for all that wait, then make the next in line ask."""
        with self._lock:
            waiting, self._waiting = self._waiting[:_PAGE], self._waiting[_PAGE:]
            released, self._released = self._released[:_PAGE], self._released[_PAGE:]
        leased = None
        try:
            leased = self._lease([each.claim for each in waiting], released)
        finally:
            with self._lock:
                if leased is None:
                    self._released = released + self._released
                self._settle(waiting, leased)
                self._pass_on()
        if leased is not None:
            for lease in leased.evicted:
                self._evict(lease)
        return leased

    def _lease(self, claims: list[Claim], released: list[Claim]) -> Leased | None:
        """Return what became of the claims, or None while the broker is away."""
        now = time.monotonic()
        if now < self._away_until:
            return None
        try:
            leased = self._broker.lease(self._terms, claims, released)
        except BrokerUnavailable as error:
            if not self._away_until:
                _logger.error("Streams are counted by each worker alone: %s.", error)
            self._away_until = now + self._options.seconds / 3
            return None
        if self._away_until or not leased.renewed:
            # Redis may have lost them, or given them to others while it was out of reach.
            self._claimed_at = -math.inf
        self._known = True
        self._away_until = 0.0
        return leased

    def _send_released(self) -> None:
        asked = True
        while asked:
            with self._lock:
                leads = bool(self._released) and self._take_lead()
            asked = leads and self._ask() is not None

    def _settle(self, waiting: list[_Waiting], leased: Leased | None) -> None:
        for each in waiting:
            user_id, lease = each.claim
            held = self._held.setdefault(user_id, {})
            if leased is None:
                each.refused = len(held) >= self._options.per_user
            else:
                each.refused = lease in leased.refused
            if not each.refused:
                held[lease] = None
            elif not held:
                del self._held[user_id]
            each.turn.set()
        if self._held and self._broker.shared and not self._renewing:
            self._renewing = True
            threading.Thread(target=self._renew, name="noc-realtime-leases", daemon=True).start()

    def _pass_on(self) -> None:
        self._asking = False
        if self._waiting:
            self._asking = self._waiting[0].leads = True
            self._waiting[0].turn.set()

    def _forget(self, user_id: str, lease: str) -> None:
        held = self._held.get(user_id, {})
        held.pop(lease, None)
        if not held:
            self._held.pop(user_id, None)

    # Renewal.

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
        with self._lock:
            leads = self._take_lead()
        if leads:
            self._ask()
        if not self._away_until and time.monotonic() - self._claimed_at > _CLAIM_ANEW:
            self._claim_all()

    def _claim_all(self) -> None:
        """Claim what is held already: Redis may have lost it, or void it when it is old."""
        terms = self._terms._replace(evict=False)
        with self._lock:
            claims = [Claim(user, lease) for user, held in self._held.items() for lease in held]
        begun = time.monotonic()
        try:
            for first in range(0, len(claims), _PAGE):
                page = claims[first : first + _PAGE]
                for lease in self._broker.lease(terms, page).refused:
                    self._evict(lease)
        except BrokerUnavailable:
            return
        self._claimed_at = begun
