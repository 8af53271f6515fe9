"""`@coalesce`: one execution for all who ask for the same, and nothing from before an event."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

from flask import Flask, Response, current_app, has_app_context, has_request_context, request

from .audience import TypeFilter
from .blueprint import EXTENSION
from .errors import ConfigError, IdentityError
from .event import INVALIDATE, patterns_of
from .flight import Flights, Kept, Landed, first
from .generation import Unknown
from .key import canonical, digest
from .metrics import Metrics
from .policy import MAX_BYTES, Policy, Scope, check_pattern, names
from .view import Before, CoalescedView, Raised
from .weight import weigh
from .witness import Witness, aside, watched

if TYPE_CHECKING:
    from .extension import State
    from .process import Process

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_DEFAULT_TTL = 5.0
_CLASSES = 32

_logger = logging.getLogger("flask_noc_realtime")
_numbers = itertools.count(1)
_coalesced: weakref.WeakKeyDictionary[Any, Coalesced] = weakref.WeakKeyDictionary()


class _Nobody:
    """The scope of a request that shares with nobody."""


_NOBODY = _Nobody()


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
    max_bytes: int = MAX_BYTES,
    key: Callable[..., Any] | None = None,
    view: bool | None = None,
    stale_while_revalidate: float = 0.0,
    refresh_early: bool = False,
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
    :param reads: what is read though the result does not depend on it: names of headers,
        ``session``, ``cookies``, ``authorization``, ``g.user``, and others that the error names.
    :param max_bytes: larger responses are not shared.
    :param key: for a function: takes its arguments and returns what identifies them.
    :param view: whether it is a view; found out by default.
    :param stale_while_revalidate: seconds beyond *ttl* that a result is still given out while
        one caller works out the next (RFC 5861); an event ends it all the same.
    :param refresh_early: have one caller work out the next already in the last fifth of *ttl*,
        so that nobody waits for it.
    :raises ConfigError: without a scope, or where the function cannot be shared.
    """
    policy = Policy(
        cast(Scope, scope if function is None else None),
        ttl,
        names("invalidate_on", invalidate_on),
        tuple(sorted(names("vary", vary), key=str.lower)),
        frozenset(name.lower() for name in names("headers", headers)),
        frozenset(name.lower() for name in names("reads", reads)),
        max_bytes,
        key,
        view,
        stale_while_revalidate,
        refresh_early,
    )

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_unfit(function)
        coalesced = Coalesced(function, policy)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            return cast(R, coalesced(args, kwargs))

        coalesced.wrapper = wrapper
        _coalesced[wrapper] = coalesced
        return wrapper

    return decorate


class Coalesced:
    """A decorated function.

    Its results fall into classes by their arguments, and each class has a generation of its
    own in the broker, with which `invalidate` ends what is kept.
    """

    def __init__(self, function: Callable[..., Any], policy: Policy) -> None:
        self.wrapper: Callable[..., Any] | None = None
        self.function = function
        self.policy = policy
        self.name = getattr(function, "__qualname__", repr(function))
        path = f"{getattr(function, '__module__', '')}.{self.name}".replace(" ", "_")
        self.own = tuple(f"{path}#{number}" for number in range(_CLASSES))
        self.patterns = {own: (*policy.invalidate_on, own) for own in self.own}
        self._number = next(_numbers)
        self._views: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._checked: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._outside: tuple[int, Flights[Any]] | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._held = policy.held
        self._strict = bool(policy.invalidate_on)
        self._refreshes = policy.refreshes
        self._looks_up = self._strict and policy.scope != "public"
        self._view = CoalescedView(self)
        self._signature, self._plain = _signature(function)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not has_request_context():
            return self._call(args, kwargs)
        # Each look through a proxy costs as much as the look into the store.
        asked = request._get_current_object()  # type: ignore[attr-defined]
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        if not self._is_view(app, asked.endpoint):
            return self._call(args, kwargs)
        if asked.method not in ("GET", "HEAD"):
            return self.function(*args, **kwargs)
        state = app.extensions.get(EXTENSION) or _state(self.name)
        if self._strict:
            self._check(state)
        before = None
        if self._looks_up:
            before = self._before(state, self.own_of_view(asked.view_args))
        scope = self._scope(state)
        if scope is _NOBODY:
            return self.function(*args, **kwargs)
        return self._view(state, asked, scope, args, kwargs, before)

    def ttl(self, state: State | None) -> float:
        """Return the seconds a result is given out."""
        if self.policy.ttl is not None:
            return self.policy.ttl
        return _DEFAULT_TTL if state is None else state.config.coalesce_ttl

    def generations(self, process: Process, own: str, *, at_once: bool = False) -> Hashable:
        """Return what ends results: the newest events, or that it was done by hand."""
        if self._strict:
            return process.generations.read(self.patterns[own], at_once=at_once)
        return process.hub.invalidations.of(own)

    def _before(self, state: State, own: str) -> Before:
        """Return what holds before it is looked up who shares."""
        clean = not state.in_transaction()
        return Before(self.generations(state.process(), own), clean)

    def own_of_view(self, view_args: dict[str, Any] | None) -> str:
        """Return the generation of what the URL's values in *view_args* lead to."""
        return self.own[digest((view_args,))[0] % _CLASSES] if view_args else self.own[0]

    def own_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the generations that end what was worked out for these arguments.

        :raises ConfigError: when neither the function nor a view can have them.
        """
        if not args and not kwargs:
            return self.own
        own = () if args else (self.own_of_view(kwargs),)
        try:
            return (*own, self.own[self._digest(args, kwargs)[0] % _CLASSES])
        except (TypeError, ConfigError) as error:
            if own:
                return own
            raise ConfigError(f"{self.name} cannot have these arguments: {error}.") from error

    def forget_outside(self) -> None:
        """Forget what was worked out outside of any app."""
        with self._lock:
            self._outside = None

    # A view, or a function that a view calls?

    def _is_view(self, app: Flask, endpoint: str | None) -> bool:
        if self.policy.view is not None:
            return self.policy.view
        view = app.view_functions.get(endpoint or "")
        if view is None or view is self.wrapper:
            return view is not None
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
                    f"It is unclear whether {self.name} is the view of {request.endpoint!r}, or "
                    "a function the view calls: a decorator above @coalesce lacks "
                    "functools.wraps. Add it, or say view=True or view=False to @coalesce."
                )
        return False

    # Functions.

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state: State | None = None
        if has_app_context():
            state = current_app.extensions.get(EXTENSION)
        arguments = self._digest(args, kwargs)
        own = self.own[arguments[0] % _CLASSES]
        if self._strict:
            state = state or _state(self.name)
            self._check(state)
            if state.in_transaction():
                self.warn_of_transaction()
                return self.function(*args, **kwargs)
        capture: Callable[[], Hashable] = _always
        if state is None:
            flights = self._flights_outside()
        else:
            process = state.process()
            flights = process.flights
            capture = functools.partial(self.generations, process, own)
        # Whoever looks up who shares may begin a transaction, and see nothing newer from then on.
        seen = capture() if self._looks_up else None
        scope = self._scope(state)
        if scope is _NOBODY:
            return self.function(*args, **kwargs)
        bound = self._looks_up and state is not None and state.in_transaction()
        key: Hashable = self._number, arguments, None if scope is None else canonical(scope)
        ttl = self.ttl(state)
        spare: Kept[Any] | None = None
        if self._refreshes or not self._strict:
            seen = capture() if seen is None else seen
            now = flights.clock()
            kept = flights.results.get(key, seen, now)
            if kept is not None:
                if not self._refreshes or kept.until - now > self.policy.due(ttl):
                    flights.metrics.shared("kept")
                    return kept.value
                spare = kept
        if seen is not None:
            capture = first(seen, capture)
        work = functools.partial(self._work, flights.metrics, args, kwargs, ttl)
        try:
            flown = flights.fly(key, capture, work, spare=spare, bound=bound)
        except Exception:
            if spare is None:
                raise
            self.log_refresh()
            flights.metrics.shared("kept")
            return spare.value
        flights.metrics.shared(flown.how.value)
        value = flown.value
        if isinstance(value, Raised):
            raise value.error
        return value

    def _work(
        self,
        metrics: Metrics,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ttl: float,
        generations: Hashable,
    ) -> Landed[Any]:
        metrics.worked()
        value, shared = self._execute(args, kwargs)
        if not shared or isinstance(value, (Iterator, Awaitable, Response)):
            # The latter can be used up once only.
            return Landed(value, shared=False)
        if isinstance(generations, Unknown):
            return Landed(value)
        return Landed(value, ttl + self.policy.stale, weight=weigh(value))

    def _execute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """Return what the function returns, and whether others may have it."""
        if not has_request_context():
            return self.function(*args, **kwargs), True
        return self.observe(
            Witness(self._held),
            lambda: self.function(*args, **kwargs),
            "other calls with the same arguments need not have. Pass what it takes from there as "
            "arguments, or use scope='user'",
        )

    def _digest(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return what identifies the arguments, whichever way they are passed."""
        if self.policy.key is not None:
            return digest((self.policy.key(*args, **kwargs),))
        if (kwargs or len(args) != self._plain) and self._signature is not None:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        return digest((args, kwargs) if kwargs else (args,))

    def _flights_outside(self) -> Flights[Any]:
        """Return the flights of calls outside of any app; made anew after a fork."""
        held = self._outside
        if held is None or held[0] != os.getpid():
            with self._lock:
                if self._outside is None or self._outside[0] != os.getpid():
                    self._outside = os.getpid(), Flights()
                held = self._outside
        return held[1]

    # Both.

    def observe(
        self, witness: Witness, call: Callable[[], T], advice: str
    ) -> tuple[T | Raised, bool]:
        """Return what *call* returns, and whether others may have it.

        An error that others need not run into is returned as `Raised`.

        :param advice: for when it reads what is outside the key: who lacks that, what to do.
        :raises ConfigError: then, in debug and tests, where somebody can do it.
        """
        try:
            with witness:
                value = call()
        except Exception as error:
            if self._sound(witness, advice):
                raise
            return Raised(error), False
        return value, self._sound(witness, advice) and not witness.changed

    def _sound(self, witness: Witness, advice: str) -> bool:
        uncovered = witness.uncovered
        if not uncovered:
            return True
        message = (
            f"{self.name} is shared with scope={self.policy.scope!r} and read "
            f"{', '.join(uncovered)}, which {advice}; if the result does not depend on it, say so "
            f"with reads={uncovered!r}."
        )
        if current_app.debug or current_app.testing:
            raise ConfigError(message)
        self.warn(f"{message} Such a result is given to its caller only.", "unsound")
        return False

    def warn_of_transaction(self) -> None:
        """Say, once, that results are neither kept nor shared, and what to do."""
        self.warn(
            f"A database transaction is open when {self.name} begins, and what it reads may be "
            "from before an event: it is neither kept nor shared. End the transaction first, for "
            "example with db.session.rollback(). If every statement sees the newest data (READ "
            "COMMITTED), register that: realtime.transaction_probe(lambda: False)."
        )

    def warn(self, message: str, about: str = "") -> None:
        """Log a warning once, or the first one about something."""
        with self._lock:
            if (about or message) in self._warned:
                return
            self._warned.add(about or message)
        _logger.warning(message)

    def log_refresh(self) -> None:
        """Log the error that is being handled, of a result that is given out all the same."""
        _logger.exception(
            "Working out %s anew failed; what is kept is given out until its time ends.", self.name
        )

    def _scope(self, state: State | None) -> Any:
        """Return what those who share have in common, or _NOBODY."""
        if self.policy.scope == "public":
            return None
        if not watched():
            return self._shared_by(state)
        with aside(self.policy.shared_by):
            return self._shared_by(state)

    def _shared_by(self, state: State | None) -> Any:
        scope = self.policy.scope
        if not isinstance(scope, str):
            value = scope()
            # As its own type and content: True would meet 1 where the key is looked up.
            return _NOBODY if value is None else ("callable", canonical(value))
        if state is None or not has_request_context():
            raise ConfigError(
                f"{self.name} is shared by {scope}, and there is no request of an app with "
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

    def _check(self, state: State) -> None:
        """Refuse, or warn of, what would leave results stale and never be noticed."""
        if self._checked.get(state):
            return
        served = has_request_context()
        if state.catalogue.strict and state not in self._checked:
            self._check_types(state.catalogue.types())
        if served:
            state.process().check_workers(
                request.environ, "ends results in the worker that emitted it, and not in the others"
            )
        state.endings.update(self.policy.invalidate_on)
        self._checked[state] = served

    def _check_types(self, types: Collection[str]) -> None:
        """Refuse patterns no event can match."""
        for pattern in self.policy.invalidate_on:
            if not any(map(TypeFilter.parse(pattern).matches, types)):
                raise ConfigError(
                    f"invalidate_on of {self.name} has {pattern!r}, which no known event "
                    f"matches. Known types: {', '.join(types)}."
                )


class Coalescing:
    """`NocRealtime.coalesce`: the decorator, and what ends its results by hand."""

    __call__ = staticmethod(coalesce)

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def invalidate(
        self, what: str | Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> str | None:
        """End results as an event would: whoever asks afterwards is given none from before.

        Call it after the commit. It returns as `NocRealtime.emit` does. A result that only time
        ends is gone in this worker at once, and in the others when the call reaches them.

        :param what: an event type or a pattern such as ``incident.*`` for all that name it, or
            one it matches, in *invalidate_on*; or a coalesced function or view.
        :param args: with *kwargs*, what the function was called with, or the values in the URL
            of the view (by keyword); without any, all of its results end.
        :raises ConfigError: when *what* is neither, or cannot have these arguments.
        """
        state = self._state()
        process = state.process()
        if isinstance(what, str):
            if args or kwargs:
                raise ConfigError("A pattern takes no arguments; pass a coalesced function.")
            ended = _generations_of(what, state)
        else:
            coalesced = coalesced_of(what)
            coalesced.forget_outside()
            ended = coalesced.own_of(args, kwargs)
        process.hub.invalidations.count(ended)
        return process.emitter.give_notice(INVALIDATE, " ".join(ended))


def coalesced_of(function: Any) -> Coalesced:
    """Return what `coalesce` made of *function*, looking beneath decorators above it.

    :raises ConfigError: when it is not coalesced.
    """
    inner = function
    while inner is not None:
        # A method that is bound is another object each time.
        inner = getattr(inner, "__func__", inner)
        try:
            return _coalesced[inner]
        except (KeyError, TypeError):
            inner = getattr(inner, "__wrapped__", None)
    raise ConfigError(f"{function!r} is not coalesced; pass a function or view with @coalesce.")


def _generations_of(pattern: str, state: State) -> tuple[str, ...]:
    """Return the pattern, and those of the known types it matches."""
    check_pattern("invalidate", pattern)
    matches = TypeFilter.parse(pattern).matches
    types = [type for type in state.catalogue.types() if matches(type)]
    if not types and "*" not in pattern:
        types = [pattern]
    ended = {pattern: None}
    for type in types:
        ended.update(dict.fromkeys(patterns_of(type)))
    return tuple(ended)


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


def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature | None, int]:
    """Return the signature, and how many arguments are always passed by position, or -1."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None, -1
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    plain = kinds <= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return signature, len(signature.parameters) if plain else -1


def _always() -> int:
    return 0


def _hides(outer: Any, wanted: Any, depth: int = 4) -> bool:
    """Tell whether *wanted* is within a decorator that does not show what it wraps."""
    if not depth:
        return False
    cells = zip(_free_names(outer), getattr(outer, "__closure__", None) or (), strict=False)
    held = [_contents(cell) for name, cell in cells if name != getattr(wanted, "__name__", "")]
    if not inspect.isfunction(outer) and not inspect.isclass(outer):
        held += getattr(outer, "__dict__", {}).values()
    held = [item for item in held if callable(item) and not inspect.isclass(item)]
    return any(item is wanted or _hides(item, wanted, depth - 1) for item in held)


def _free_names(function: Any) -> tuple[str, ...]:
    """Return the names of what *function* encloses; none by name where it passes on anything.

    A view that calls its neighbour in an app factory encloses it by its name, and takes what its
    URL holds; a decorator takes whatever there is.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return ()
    passes_on = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return ("",) * len(code.co_freevars) if passes_on else code.co_freevars


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
