"""`@coalesce`: one execution for all who ask for the same, and nothing from before an event."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast
from urllib.parse import parse_qsl

from flask import Response, current_app, g, has_app_context, has_request_context, request
from werkzeug.exceptions import HTTPException

from .answer import Answer, NotShareable, dropped, now
from .audience import TypeFilter
from .blueprint import EXTENSION
from .errors import ConfigError, IdentityError, ParameterError
from .flight import Flights, How, Kept, Landed
from .generation import Unknown
from .key import digest
from .shelf import Codec
from .witness import Witness

if TYPE_CHECKING:
    from .extension import State
    from .process import Process

P = ParamSpec("P")
R = TypeVar("R")

Scope = str | Callable[[], Any]

SCOPES = ("public", "role", "permissions", "user")
_OWN_READS = {"user": frozenset({"session", "authorization", "g.user"})}
_MAX_BYTES = 1024 * 1024
_RESPONSE_OVERHEAD = 1024
_DEFAULT_TTL = 5.0

_logger = logging.getLogger("flask_noc_realtime")
_numbers = itertools.count(1)


class _Nobody:
    """The scope of a request that shares with nobody."""


_NOBODY = _Nobody()


_APART = object()
"""Stands for the response of a view that each caller is to run alone."""


class _Raised:
    """An error that belongs to the caller who ran into it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class Policy:
    """Who shares a result, for how long, and what ends it.

    :ivar scope: see `coalesce`, as are the others.
    """

    scope: Scope
    ttl: float | None = None
    invalidate_on: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    headers: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    max_bytes: int = _MAX_BYTES
    key: Callable[..., Any] | None = None
    view: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.scope) and self.scope not in SCOPES:
            raise ConfigError(
                f"@coalesce needs a scope, and {self.scope!r} is none: say who may share a result "
                f"with scope={', '.join(map(repr, SCOPES))}, or a function that returns what the "
                "requests that share have in common. Without it one user's page would be another's."
            )
        if self.ttl is not None and not 0 <= self.ttl < float("inf"):
            raise ConfigError(f"ttl is {self.ttl!r}; use seconds, or 0 to keep nothing.")
        for pattern in self.invalidate_on:
            _check_pattern(pattern)

    @property
    def covered(self) -> frozenset[str]:
        """What a view may read, being in the key or declared not to matter."""
        own = (
            _OWN_READS.get(self.scope, frozenset()) if isinstance(self.scope, str) else frozenset()
        )
        names = self.varies
        cookies = {"cookies", "session"} if "cookie" in names else set()
        return self.reads | own | cookies | names

    @property
    def varies(self) -> frozenset[str]:
        """The request headers in the key, in lower case."""
        return frozenset(name.lower() for name in self.vary)


def coalesce(
    function: None = None,
    /,
    *,
    scope: Scope | None = None,
    ttl: float | None = None,
    invalidate_on: Collection[str] = (),
    vary: Collection[str] = (),
    headers: Collection[str] = (),
    reads: Collection[str] = (),
    max_bytes: int = _MAX_BYTES,
    key: Callable[..., Any] | None = None,
    view: bool | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let callers who ask for the same share one execution of a view, or of a function.

    Put it under the route and above nothing that must run for each request: what is below it
    runs once for all.

    A view answers GET and HEAD from what others were given, if it is the same page for the same
    people: endpoint, host, path, query, the headers in *vary*, and *scope*. A function returns
    the very object to all who pass equal arguments, in this process; treat it as read-only.

    :param scope: who shares: ``"public"`` everybody, ``"role"``, ``"permissions"`` or
        ``"user"`` those whose identity has the same, or a function that returns a value; who
        has no identity, or None for a value, shares with nobody.
    :param ttl: seconds a result is given out; by default ``NOC_REALTIME_COALESCE_TTL``.
    :param invalidate_on: event types and patterns such as ``incident.*``: whoever asks after
        one was emitted is never given a result from before it.
    :param vary: request headers the view reads.
    :param headers: further response headers that everybody gets.
    :param reads: what the view reads and its result does not depend on: names of headers,
        ``session``, ``cookies``, ``authorization`` or ``g.user``.
    :param max_bytes: larger responses are not shared.
    :param key: for a function: takes its arguments and returns what identifies them.
    :param view: whether it is a view; found out by default.
    :raises ConfigError: without a scope, or where the function cannot be shared.
    """
    policy = Policy(
        cast(Scope, scope if function is None else None),
        ttl,
        _names("invalidate_on", invalidate_on),
        tuple(sorted(_names("vary", vary), key=str.lower)),
        frozenset(name.lower() for name in _names("headers", headers)),
        frozenset(name.lower() for name in _names("reads", reads)),
        max_bytes,
        key,
        view,
    )

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_unfit(function)
        shared = _Shared(function, policy)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            return cast(R, shared(args, kwargs))

        shared.wrapper = wrapper
        return wrapper

    return decorate


class _Shared:
    """A decorated function."""

    def __init__(self, function: Callable[..., Any], policy: Policy) -> None:
        self.wrapper: Callable[..., Any] | None = None
        self.function = function
        self.policy = policy
        self._name = getattr(function, "__qualname__", repr(function))
        self._number = next(_numbers)
        self._covered = policy.covered
        self._environ_names = [f"HTTP_{name.upper().replace('-', '_')}" for name in policy.vary]
        self._views: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._checked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._own: tuple[int, Flights[Any]] | None = None
        self._lock = threading.Lock()
        self._unsound = False
        self._warned: set[str] = set()
        self._codecs: weakref.WeakKeyDictionary[Any, Codec[Answer]] = weakref.WeakKeyDictionary()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._unsound:
            return self.function(*args, **kwargs)
        if has_request_context() and self._is_view():
            return self._view(args, kwargs)
        return self._call(args, kwargs)

    # A view, or a function that a view calls?

    def _is_view(self) -> bool:
        if self.policy.view is not None:
            return self.policy.view
        view = current_app.view_functions.get(request.endpoint or "")
        if view is None:
            return False
        known = self._views.get(view)
        if known is None:
            known = self._views[view] = self._serves(view)
        return known

    def _serves(self, view: Any) -> bool:
        assert self.wrapper is not None
        kind = getattr(view, "view_class", None)
        methods = [getattr(kind, name, None) for name in ("get", "head", "dispatch_request")]
        for outer in (view, *methods):
            inner = outer
            while inner is not None:
                if inner is self.wrapper:
                    return True
                last, inner = inner, getattr(inner, "__wrapped__", getattr(inner, "func", None))
            if outer is not None and _hides(last, self.wrapper):
                raise ConfigError(
                    f"It is unclear whether {self._name} is the view of {request.endpoint!r}, or "
                    "a function the view calls: a decorator above @coalesce lacks "
                    "functools.wraps. Add it, or say view=True or view=False to @coalesce."
                )
        return False

    # Views.

    def _view(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if request.method not in ("GET", "HEAD"):
            return self.function(*args, **kwargs)
        state = _state(self._name)
        process = state.process()
        self._check_types(state)
        scope = self._scope(state)
        if scope is _NOBODY:
            return self.function(*args, **kwargs)
        key = self._view_key(scope)
        flights = process.flights
        kept = self._kept(flights, key)
        if kept is None:
            call = _ViewCall(self, state, process, key, args, kwargs)
            return call.answer()
        return self._show(kept.value, _hit(kept.until - flights.clock()), now() - kept.value.at)

    def _show(self, answer: Answer, status: str, age: float | None = None) -> Response:
        g._noc_realtime_position = answer.position
        return answer.respond(request, status, age)

    def _kept(self, flights: Flights[Any], key: bytes) -> Kept[Any] | None:
        """Look into the store by the shortest way, where no event can have ended what is there."""
        if self.policy.invalidate_on:
            return None
        return flights.results.get(key, (), flights.clock())

    def _view_key(self, scope: Any) -> bytes:
        environ = request.environ
        query = environ.get("QUERY_STRING", "")
        return digest(
            (
                "view",
                current_app.import_name,
                request.endpoint,
                request.scheme,
                request.host,
                request.root_path,
                request.path,
                _sorted_query(query) if query else (),
                tuple([environ.get(name) for name in self._environ_names]),
                scope,
            )
        )

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
        at = now()
        position = g.get("_noc_realtime_position") or process.position()
        witness = Witness(self._covered)
        try:
            with witness:
                response = self._respond(args, kwargs)
        except Exception as error:
            if not self._sound(witness):
                return Landed(_Raised(error), shared=False)
            raise
        if not self._sound(witness) or witness.changed:
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
            _logger.debug("The response of %s is not shared: %s.", self._name, reason)
            return Landed(response, shared=False)
        self._warn_of_dropped(response)
        keep = answer.status == 200 and not isinstance(generations, Unknown)
        ttl = self._ttl(state.config.coalesce_ttl) if keep else 0.0
        return Landed(answer, ttl, weight=len(answer.body) + _RESPONSE_OVERHEAD)

    def _respond(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Response:
        try:
            return current_app.make_response(self.function(*args, **kwargs))
        except HTTPException as error:
            # One response object cannot be sent to several.
            if error.response is None:
                raise
            return cast(Response, error.response)

    def _sound(self, witness: Witness) -> bool:
        """Tell whether what the view read is in its key.

        :raises ConfigError: in debug and tests, where somebody can mend it.
        """
        uncovered = witness.uncovered
        if not uncovered:
            return True
        message = (
            f"{self._name} is shared with scope={self.policy.scope!r} and read "
            f"{', '.join(uncovered)}, which other requests with the same key need not have. "
            "Use scope='user', or name headers in vary=[...]; if the result does not depend on "
            f"it, say so with reads={uncovered!r}."
        )
        if current_app.debug or current_app.testing:
            raise ConfigError(message)
        with self._lock:
            first, self._unsound = not self._unsound, True
        if first:
            _logger.warning("%s Its results are no longer shared.", message)
        return False

    def _warn_of_dropped(self, response: Response) -> None:
        names = dropped(response, self.policy.headers)
        if names:
            self._warn(
                f"{self._name} is shared without its headers {', '.join(sorted(names))}; name "
                "those that all should get in headers=[...] of @coalesce."
            )

    def warn_of_transaction(self) -> None:
        """Say, once, that results are neither kept nor shared, and what to do."""
        self._warn(
            f"A database transaction is open when {self._name} begins, and what it reads may be "
            "from before an event: it is neither kept nor shared. End the transaction first, for "
            "example with db.session.rollback(). If every statement sees the newest data (READ "
            "COMMITTED), register that: realtime.transaction_probe(lambda: False)."
        )

    def _warn(self, message: str) -> None:
        with self._lock:
            if message in self._warned:
                return
            self._warned.add(message)
        _logger.warning(message)

    def codec(self) -> Codec[Answer] | None:
        """Return how answers are sealed for other workers, or None without a secret to do it."""
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        codec = self._codecs.get(app)
        if codec is not None:
            return codec
        secret = app.secret_key
        if not secret:
            self._warn(
                f"{self._name} is shared within each worker only: set SECRET_KEY, "
                "with which workers tell each other's results from what others put into Redis."
            )
            return None
        secret = secret.encode() if isinstance(secret, str) else secret
        own = hashlib.blake2b(secret, digest_size=32, person=b"noc-answer").digest()
        codec = self._codecs[app] = Codec(
            lambda answer, key: answer.seal(own, key),
            lambda data, key: Answer.unseal(data, own, key),
        )
        return codec

    # Functions.

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        policy = self.policy
        state: State | None = None
        if has_app_context():
            state = current_app.extensions.get(EXTENSION)
        scope = self._scope(state)
        if scope is _NOBODY:
            return self.function(*args, **kwargs)
        key = self._call_key(args, kwargs, scope)
        if not policy.invalidate_on:
            flights = self._own_flights() if state is None else state.process().flights
            kept = flights.results.get(key, (), flights.clock())
            if kept is not None:
                return kept.value
            capture: Callable[[], Hashable] = tuple
        else:
            state = state or _state(self._name)
            self._check_types(state)
            if state.in_transaction():
                self.warn_of_transaction()
                return self.function(*args, **kwargs)
            process = state.process()
            flights = process.flights

            def capture() -> Hashable:
                return process.generations.read(policy.invalidate_on)

        ttl = self._ttl(_DEFAULT_TTL if state is None else state.config.coalesce_ttl)

        def work(generations: Hashable) -> Landed[Any]:
            value = self.function(*args, **kwargs)
            if isinstance(value, (Iterator, Awaitable, Response)):
                # It can be used up once only.
                return Landed(value, shared=False)
            return Landed(value, 0.0 if isinstance(generations, Unknown) else ttl)

        return flights.fly(key, capture, work).value

    def _call_key(self, args: tuple[Any, ...], kwargs: dict[str, Any], scope: Any) -> bytes:
        if self.policy.key is not None:
            return digest((self._number, self.policy.key(*args, **kwargs), scope))
        if kwargs:
            bound = inspect.signature(self.function).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        return digest((self._number, args, kwargs, scope))

    def _own_flights(self) -> Flights[Any]:
        """Return the flights of calls outside of any app; made anew after a fork."""
        own = self._own
        if own is None or own[0] != os.getpid():
            with self._lock:
                if self._own is None or self._own[0] != os.getpid():
                    self._own = os.getpid(), Flights()
                own = self._own
        return own[1]

    # Both.

    def _ttl(self, default: float) -> float:
        return default if self.policy.ttl is None else self.policy.ttl

    def _scope(self, state: State | None) -> Any:
        """Return what those who share have in common, or _NOBODY."""
        scope = self.policy.scope
        if scope == "public":
            return None
        if not isinstance(scope, str):
            value = scope()
            return _NOBODY if value is None else ("callable", value)
        if state is None or not has_request_context():
            raise ConfigError(
                f"{self._name} is shared by {scope}, and there is no request of an app with "
                "NocRealtime to tell whose. Use scope='public' or a function."
            )
        try:
            identity = state.identity(request)
        except IdentityError:
            return _NOBODY
        if identity is None:
            return _NOBODY
        if identity.expires_at is not None and identity.expires_at <= datetime.now(timezone.utc):
            return _NOBODY
        if scope == "role":
            return ("role", identity.role)
        if scope == "permissions":
            return ("permissions", identity.permissions)
        return _NOBODY if identity.user_id is None else ("user", identity.user_id)

    def _check_types(self, state: State) -> None:
        """Refuse patterns no event can match: a slip there would never be noticed."""
        if not self.policy.invalidate_on or not state.catalogue.strict or state in self._checked:
            return
        types = state.catalogue.types()
        for pattern in self.policy.invalidate_on:
            if not any(map(TypeFilter.parse(pattern).matches, types)):
                raise ConfigError(
                    f"invalidate_on of {self._name} has {pattern!r}, which no known event "
                    f"matches. Known types: {', '.join(types)}."
                )
        self._checked.add(state)


class _ViewCall:
    """One request that was not answered from the memory of its process."""

    def __init__(
        self,
        shared: _Shared,
        state: State,
        process: Process,
        key: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._shared = shared
        self._state = state
        self._process = process
        self._key = key
        self._args = args
        self._kwargs = kwargs
        self._patterns = shared.policy.invalidate_on
        self._codec = shared.codec() if process.shelf is not None else None
        self._shelf = process.shelf if self._codec is not None else None
        self._seen: Hashable = None
        self._how = How.LED
        self._stored = False

    def answer(self) -> Any:
        """Return the response, as the work of this caller or of another."""
        if self._shelf is not None and self._patterns:
            look = self._shelf.look(self._key, self._patterns)
            self._seen = Unknown() if look is None else look.names
            if look is not None and look.state == "alone":
                return self._alone()
            if look is not None and look.value is not None and self._codec is not None:
                answer = self._codec.unseal(look.value, self._key)
                if answer is not None:
                    return self._show(answer, _hit(look.seconds), now() - answer.at)
        if self._patterns and self._state.in_transaction():
            self._shared.warn_of_transaction()
            return self._alone()
        flights = self._process.flights
        flown = flights.fly(self._key, self._capture, self._work, self._alone)
        value = flown.value
        if isinstance(value, _Raised):
            raise value.error
        if value is _APART:
            return self._alone()
        if not isinstance(value, Answer):
            return value
        if flown.how is How.KEPT:
            return self._show(value, _hit(flown.until - flights.clock()), now() - value.at)
        if flown.how is How.JOINED:
            return self._show(value, "fwd=uri-miss; collapsed")
        if self._how is How.KEPT:
            return self._show(value, "hit", now() - value.at)
        return self._show(value, "fwd=uri-miss; stored" if self._stored else "fwd=uri-miss")

    def _show(self, answer: Answer, status: str, age: float | None = None) -> Response:
        return self._shared._show(answer, status, age)

    def _alone(self) -> Any:
        return self._shared.function(*self._args, **self._kwargs)

    def _capture(self) -> Hashable:
        # What the first look saw is still before anything this caller reads.
        seen, self._seen = self._seen, None
        return self._process.generations.read(self._patterns) if seen is None else seen

    def _work(self, generations: Hashable) -> Landed[Any]:
        if self._shelf is None or self._codec is None or isinstance(generations, Unknown):
            landed = self._execute(generations)
        else:
            self._how, found = self._shelf.obtain(
                self._key, self._patterns, self._codec, self._execute
            )
            landed = Landed(_APART, shared=False) if found is None else found
        self._stored = landed.ttl > 0
        if self._shelf is not None and self._patterns:
            # Everybody asks Redis first: it would never be looked for here.
            return replace(landed, ttl=0.0)
        return landed

    def _execute(self, generations: Hashable) -> Landed[Any]:
        return self._shared.execute(
            self._state, self._process, generations, self._args, self._kwargs
        )


def _hit(left: float) -> str:
    return f"hit; ttl={max(0, int(left))}"


def _state(name: str) -> State:
    state: State | None = None
    if has_app_context():
        state = current_app.extensions.get(EXTENSION)
    if state is None:
        raise ConfigError(
            f"{name} is coalesced and there is no app with NocRealtime here. Call "
            "realtime.init_app(app); outside of requests, wrap it in `with app.app_context():`."
        )
    return state


def _refuse_unfit(function: Any) -> None:
    if not callable(function) or isinstance(function, (staticmethod, classmethod)):
        _refuse(function, "is no function; put @coalesce below @staticmethod and @classmethod")
    if inspect.isclass(function):
        _refuse(function, "is a class; decorate its get method, or list it in its decorators")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        _refuse(function, "is asynchronous, and waiting for others would block its event loop")
    if inspect.isgeneratorfunction(function):
        _refuse(function, "is a generator, which can be used up once only; return a list")


def _refuse(function: Any, reason: str) -> NoReturn:
    raise ConfigError(f"@coalesce: {getattr(function, '__qualname__', function)!s} {reason}.")


def _names(name: str, value: Collection[str]) -> tuple[str, ...]:
    # A str is a collection as well: of letters.
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{name} of @coalesce is {value!r}; pass a list of str.")
    return tuple(value)


def _check_pattern(pattern: str) -> None:
    try:
        TypeFilter.parse(pattern)
        if "," in pattern:
            raise ParameterError("it names several")
    except ParameterError as error:
        raise ConfigError(
            f"invalidate_on has {pattern!r}; use types and patterns such as 'incident.*' ({error})."
        ) from None


def _sorted_query(query: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs sorted by name; values of one name stay in order, as views see them."""
    pairs = parse_qsl(query, keep_blank_values=True, encoding="latin-1")
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def _hides(outer: Any, wanted: Any, depth: int = 4) -> bool:
    """Tell whether *wanted* is within a decorator that does not show what it wraps."""
    if not depth:
        return False
    cells = getattr(outer, "__closure__", None) or ()
    held = [_contents(cell) for cell in cells]
    if not inspect.isfunction(outer) and not inspect.isclass(outer):
        held += getattr(outer, "__dict__", {}).values()
    held = [item for item in held if callable(item) and not inspect.isclass(item)]
    return any(item is wanted or _hides(item, wanted, depth - 1) for item in held)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
