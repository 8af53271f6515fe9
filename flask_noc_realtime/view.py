"""Coalesced views: what of a request is in the key, and how each gets its response."""

from __future__ import annotations

import hashlib
import itertools
import logging
import weakref
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qsl

from flask import Flask, Request, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from .answer import Answer, NotShareable, dropped, now
from .flight import How, Kept, Landed, first
from .generation import Unknown
from .key import digest
from .policy import Policy
from .shelf import Codec, Shelf
from .store import Store, is_reference, store_of
from .witness import PAGE, Witness, unconditional

if TYPE_CHECKING:
    from .coalesce import Coalesced
    from .extension import State
    from .process import Process

_RESPONSE_OVERHEAD = 1024
_KEYS = 512
_FOREIGN = 5
_logger = logging.getLogger("flask_noc_realtime")

_APART = object()
"""Stands for the response of a view that each caller is to run alone."""


class Before(NamedTuple):
    """What held before it was looked up who shares, for which a transaction may have begun.

    :ivar clean: whether none was open.
    """

    generations: Hashable
    clean: bool


class Raised:
    """An error that belongs to the caller who ran into it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class CoalescedView:
    """What a coalesced function is beyond that where it is a view."""

    def __init__(self, coalesced: Coalesced) -> None:
        self.coalesced = coalesced
        self.policy: Policy = coalesced.policy
        self.function = coalesced.function
        self._held = self.policy.held_of_view | PAGE
        self._refreshes = self.policy.refreshes
        self._key = lru_cache(_KEYS)(self._new_key)
        self._environ_names = [
            f"HTTP_{name.upper().replace('-', '_')}" for name in self.policy.vary
        ]
        self._codecs: weakref.WeakKeyDictionary[Any, Codec[Answer] | None]
        self._codecs = weakref.WeakKeyDictionary()

    def __call__(
        self,
        state: State,
        asked: Request,
        scope: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: Before | None = None,
    ) -> Any:
        process = state.process()
        key = self._key_of(state, asked, scope)
        own = self.coalesced.own_of_view(asked.view_args)
        due = self.policy.due(self.coalesced.ttl(state)) if self._refreshes else 0.0
        flights = process.flights
        if before is None:
            # All who come meanwhile wait for the work, and the work for this.
            seen = self.coalesced.generations(process, own, at_once=flights.idle(key))
        else:
            seen = before.generations
        now = flights.clock()
        kept = flights.results.get(key, seen, now)
        if kept is not None and isinstance(kept.value, bytes):
            answer = self.opened(state, process, key, kept.value)
            kept = None if answer is None else replace(kept, value=answer)
        if kept is not None:
            left = kept.until - now
            if left > due:
                flights.metrics.shared("kept")
                return self.show_kept(asked, kept.value, left)
        clean = before is not None and before.clean
        return _ViewCall(self, state, process, asked, key, own, args, kwargs).answer(
            seen, kept, due, clean
        )

    def _key_of(self, state: State, asked: Request, scope: Any) -> bytes:
        get = asked.environ.get
        headers = tuple(map(get, self._environ_names)) if self._environ_names else ()
        host = get("HTTP_HOST")
        if host is None:
            host = get("SERVER_NAME"), get("SERVER_PORT")
        where = host, get("wsgi.url_scheme"), get("SCRIPT_NAME"), get("PATH_INFO")
        return self._key(state.name, asked.endpoint, headers, scope, where, get("QUERY_STRING"))

    def _new_key(
        self,
        app: str,
        endpoint: str | None,
        headers: Any,
        scope: Any,
        where: Any,
        query: str | None,
    ) -> bytes:
        """Return the key of the current request, which those alike in everything given share."""
        return digest(
            (
                "view",
                app,
                endpoint,
                request.scheme,
                request.host,
                request.root_path,
                request.path,
                _sorted_query(query) if query else (),
                headers,
                scope,
            )
        )

    def opened(self, state: State, process: Process, key: bytes, value: bytes) -> Answer | None:
        """Return the answer that is kept in Flask-Caching, or None where it was thrown away."""
        codec = self.codec(state, shared=False)
        answer = None if codec is None else codec.unseal(value, key)
        if answer is None:
            process.flights.forget(key)
        return answer

    def show_kept(self, asked: Request, answer: Answer, left: float) -> Response:
        """Return the response of an answer that is given out for *left* seconds more."""
        # RFC 9211 counts below zero once a result is stale.
        status = f"hit; ttl={int((left if left > 0 else 0) - self.policy.stale)}"
        return self.show(asked, answer, status, now() - answer.at)

    def show(
        self, asked: Request, answer: Answer, status: str, age: float | None = None
    ) -> Response:
        """Return the response of an answer."""
        g._get_current_object()._noc_realtime_position = answer.position
        return answer.respond(asked, status, age)

    def execute(
        self,
        state: State,
        process: Process,
        generations: Hashable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Landed[Any]:
        """Run the view, and take from its response what everybody gets."""
        policy = self.policy
        process.flights.metrics.worked()
        at = now()
        position = g.get("_noc_realtime_position") or process.position()
        with unconditional():
            response, shared = self.coalesced.observe(
                Witness(self._held),
                lambda: self._respond(args, kwargs),
                "other requests with the same key need not have. Use scope='user', or name headers "
                "in vary=[...]",
            )
        if isinstance(response, Raised) or not shared:
            return Landed(response, shared=False)
        response.vary.update(policy.vary)
        try:
            answer = Answer.of(
                response,
                allowed=policy.headers,
                varies=policy.varies,
                max_bytes=policy.max_bytes,
                private=policy.scope != "public",
                position=position,
                at=at,
            )
        except NotShareable as reason:
            _logger.debug("The response of %s is not shared: %s.", self.coalesced.name, reason)
            return Landed(response, shared=False)
        self._warn_of_dropped(response)
        keep = answer.status == 200 and not isinstance(generations, Unknown)
        ttl = self.coalesced.ttl(state) + policy.stale if keep else 0.0
        return Landed(answer, ttl, weight=len(answer.body) + _RESPONSE_OVERHEAD)

    def _respond(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Response:
        try:
            return current_app.make_response(self.function(*args, **kwargs))
        except HTTPException as error:
            # One response object cannot be sent to several.
            if error.response is None:
                raise
            return cast(Response, error.response)

    def _warn_of_dropped(self, response: Response) -> None:
        left_out = dropped(response, self.policy.headers)
        if left_out:
            self.coalesced.warn(
                f"{self.coalesced.name} is shared without its headers "
                f"{', '.join(sorted(left_out))}; name those that all should get in headers=[...] "
                "of @coalesce."
            )

    def codec(self, state: State, *, shared: bool) -> Codec[Answer] | None:
        """Return how answers are sealed where they leave the process's own store.

        It is None where they need not leave it, or there is no secret to seal them with.
        """
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        if app not in self._codecs:
            store = None
            if state.config.coalesce_store == "auto":
                store = store_of(app, shared=shared)
            self._codecs[app] = self._new_codec(app, store) if shared or store else None
        return self._codecs[app]

    def _new_codec(self, app: Flask, store: Store | None) -> Codec[Answer] | None:
        secret = app.secret_key
        if not secret:
            self.coalesced.warn(
                f"{self.coalesced.name} is shared within each worker only: set SECRET_KEY, "
                "with which workers tell each other's results from what others put there."
            )
            return None
        secret = secret.encode() if isinstance(secret, str) else secret
        own = hashlib.blake2b(secret, digest_size=32, person=b"noc-answer").digest()
        foreign = itertools.count(1)

        def seal(answer: Answer, key: bytes, seconds: float) -> bytes:
            data = answer.seal(own, key)
            return data if store is None else store.put(data, key, seconds) or data

        def unseal(data: bytes, key: bytes) -> Answer | None:
            found: bytes | None = data
            if is_reference(data):
                found = None if store is None else store.get(data, key)
            answer = None if found is None else Answer.unseal(found, own, key)
            if found is not None and answer is None and next(foreign) == _FOREIGN:
                self.coalesced.warn(
                    f"{self.coalesced.name} was found {_FOREIGN} times as others had left it, not "
                    "signed with this worker's SECRET_KEY: give all workers the same, or they "
                    "work each page out for themselves."
                )
            return answer

        return Codec(seal, unseal)


class _ViewCall:
    """One request."""

    def __init__(
        self,
        view: CoalescedView,
        state: State,
        process: Process,
        asked: Request,
        key: bytes,
        own: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._view = view
        self._state = state
        self._process = process
        self._flights = process.flights
        self._asked = asked
        self._key = key
        self._own = own
        self._args = args
        self._kwargs = kwargs
        self._strict = bool(view.policy.invalidate_on)
        self._patterns = view.coalesced.patterns[own]
        self._due = 0.0
        self._spare: Kept[Any] | None = None
        self._seen: Hashable = None
        self._codec: Codec[Answer] | None = None
        self._shelf: Shelf | None = None
        self._how = How.LED
        self._stored = False
        self._bound = False

    def answer(self, seen: Hashable, spare: Kept[Any] | None, due: float, clean: bool) -> Any:
        """Return the response, as the work of this caller or of another.

        :param seen: the generations that held when the request came.
        :param spare: what is kept, and due to be worked out anew.
        :param due: how many seconds before its end a result is.
        :param clean: whether no transaction was open before *seen* was read.
        """
        self._seen, self._spare, self._due = seen, spare, due
        self._codec = self._view.codec(self._state, shared=self._process.shelf is not None)
        self._shelf = self._process.shelf if self._codec is not None else None
        self._bound = self._strict and self._state.in_transaction()
        if self._bound and not clean:
            self._view.coalesced.warn_of_transaction()
            return self._alone() if self._spare is None else self._show_spare()
        return self._fly()

    def _fly(self) -> Any:
        # What was seen first is still before anything this caller reads.
        capture = self._capture if self._seen is None else first(self._seen, self._capture)
        if not self._bound:
            self._seen = None
        try:
            flown = self._flights.fly(
                self._key, capture, self._work, self._alone, self._spare, self._bound
            )
        except Exception:
            if self._spare is None:
                raise
            self._view.coalesced.log_refresh()
            return self._show_spare()
        value = flown.value
        if isinstance(value, Raised):
            raise value.error
        if value is _APART:
            return self._alone()
        if self._spare is not None and value is self._spare.value:
            return self._show_spare()
        if isinstance(value, bytes):
            opened = self._view.opened(self._state, self._process, self._key, value)
            # Who throws away what is kept gets it worked out anew.
            return self._fly() if opened is None else self._show_kept(opened, flown.until)
        if not isinstance(value, Answer):
            return value
        if flown.how is How.KEPT:
            return self._show_kept(value, flown.until)
        if flown.how is How.JOINED:
            self._flights.metrics.shared("joined")
            return self._show(value, "fwd=uri-miss; collapsed")
        if self._how is How.KEPT:
            return self._show(value, "hit", now() - value.at)
        return self._show(value, "fwd=uri-miss; stored" if self._stored else "fwd=uri-miss")

    def _show_spare(self) -> Response:
        assert self._spare is not None
        return self._show_kept(self._spare.value, self._spare.until)

    def _show_kept(self, answer: Answer, until: float) -> Response:
        self._flights.metrics.shared("kept")
        return self._view.show_kept(self._asked, answer, until - self._flights.clock())

    def _show(self, answer: Answer, status: str, age: float | None = None) -> Response:
        return self._view.show(self._asked, answer, status, age)

    def _alone(self) -> Any:
        self._flights.metrics.worked()
        return self._view.function(*self._args, **self._kwargs)

    def _capture(self) -> Hashable:
        return self._view.coalesced.generations(self._process, self._own)

    def _work(self, generations: Hashable) -> Landed[Any]:
        if self._shelf is None or self._codec is None or isinstance(generations, Unknown):
            return self._keep(self._execute(generations))
        self._how, found = self._shelf.obtain(
            self._key,
            self._patterns,
            self._codec,
            self._execute,
            strict=self._strict,
            due=self._due if self._spare is not None else 0.0,
            since=generations if self._bound else None,
        )
        landed = Landed(_APART, shared=False) if found is None else found
        self._stored = landed.ttl > 0
        return landed

    def _keep(self, landed: Landed[Any]) -> Landed[Any]:
        """Have what the process keeps for itself kept in the app's Flask-Caching, if it may."""
        self._stored = landed.ttl > 0
        if not self._stored or self._codec is None or self._shelf is not None:
            return landed
        sealed = self._codec.seal(landed.value, self._key, landed.ttl)
        if not is_reference(sealed):
            return landed
        return replace(landed, stored=sealed, weight=_RESPONSE_OVERHEAD)

    def _execute(self, generations: Hashable) -> Landed[Any]:
        return self._view.execute(self._state, self._process, generations, self._args, self._kwargs)


def _sorted_query(query: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs sorted by name; values of one name stay in order, as views see them."""
    pairs = parse_qsl(query, keep_blank_values=True, encoding="latin-1")
    return tuple(sorted(pairs, key=lambda pair: pair[0]))
