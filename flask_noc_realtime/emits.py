"""`@emits` and `emitting`: an event once a function, or a block, has succeeded."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from flask import Flask, current_app

from .blueprint import EXTENSION
from .errors import ConfigError
from .event import check_type
from .recipe import Data, Permissions, Recipe, User

if TYPE_CHECKING:
    from .extension import State

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger("flask_noc_realtime")


def emits(
    type: str,
    *,
    data: Data = "result",
    permissions: Permissions | None = None,
    user_id: User | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Emit an event whenever the decorated function has returned.

    Exceptions of the function pass through, and nothing is emitted. What goes wrong with the
    event itself is logged, and the caller gets the result all the same, unless
    ``NOC_REALTIME_EMIT_ERRORS`` is ``"raise"``.

    The values an event is made of are the function's arguments, by name, and its ``result``;
    they are read after the call.

    :param type: a type of the catalogue, or one of your own.
    :param data: a path (``"result"``, ``"incident.id"``: attributes or keys), a mapping of keys
        to paths, or a function whose parameters name the values it is handed.
    :param permissions: as for `NocRealtime.emit`, or such a function.
    :param user_id: as for `NocRealtime.emit`, or such a function.
    :raises EventError: when *type* is no event type.
    :raises ConfigError: when the function cannot be decorated, or a name is not of its arguments.
    """
    recipe = Recipe(type, data, permissions, user_id)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if isinstance(function, (classmethod, staticmethod)):
            kind = function.__class__
            return cast("Callable[P, R]", kind(decorate(function.__func__)))
        _refuse_what_returns_early(function, type)
        arguments = _Arguments(function, recipe)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result = function(*args, **kwargs)
            state = _state(type)
            if state is not None:
                try:
                    state.emit(type, *recipe.fill(arguments.values(args, kwargs, result)))
                except Exception:
                    state.forgive(type)
            return result

        return call

    return decorate


class emitting:
    """Emit an event when the block has succeeded; its data may be completed inside.

    Exceptions of the block pass through, and nothing is emitted. What goes wrong with the event
    itself is handled as by `emits`.

    :param type: a type of the catalogue, or one of your own.
    :param data: anything JSON can hold; an empty dict unless given.
    :param permissions: as for `NocRealtime.emit`.
    :param user_id: as for `NocRealtime.emit`.
    :raises EventError: when *type* is no event type.
    """

    def __init__(
        self,
        type: str,
        data: Any = None,
        *,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
    ) -> None:
        self.type = check_type(type)
        self.data: Any = {} if data is None else data
        self.permissions = permissions
        self.user_id = user_id

    def __enter__(self) -> emitting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state = _state(self.type) if kind is None else None
        if state is not None:
            try:
                state.emit(self.type, self.data, self.permissions, self.user_id)
            except Exception:
                state.forgive(self.type)


class _Arguments:
    """Reads from a call what a recipe wants, quicker than `inspect.Signature.bind`."""

    def __init__(self, function: Callable[..., Any], recipe: Recipe) -> None:
        parameters = inspect.signature(function).parameters
        recipe.check([*parameters, "result"])
        self._plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
        self._names = tuple(parameters)
        self._defaults = {
            name: p.default for name, p in parameters.items() if p.default is not p.empty
        }
        self._getters = [
            (name, _getter(parameter, index, self._names))
            for index, (name, parameter) in enumerate(parameters.items())
            if not self._plain and (recipe.wants is None or name in recipe.wants)
        ]

    def values(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> dict[str, Any]:
        """Return the values by their names."""
        if self._plain:
            values = self._defaults.copy()
            values.update(zip(self._names, args, strict=False), **kwargs)
        else:
            values = {name: getter(args, kwargs) for name, getter in self._getters}
        values["result"] = result
        return values


def _getter(
    parameter: inspect.Parameter, index: int, names: Sequence[str]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any]:
    name, default = parameter.name, parameter.default
    if parameter.kind is parameter.VAR_POSITIONAL:
        return lambda args, kwargs: args[index:]
    if parameter.kind is parameter.VAR_KEYWORD:
        return lambda args, kwargs: {k: v for k, v in kwargs.items() if k not in names}
    if parameter.kind is parameter.KEYWORD_ONLY:
        return lambda args, kwargs: kwargs.get(name, default)
    return lambda args, kwargs: args[index] if index < len(args) else kwargs.get(name, default)


def _refuse_what_returns_early(function: Callable[..., Any], type: str) -> None:
    for is_one, what in (
        (inspect.isgeneratorfunction, "a generator function"),
        (inspect.iscoroutinefunction, "a coroutine function"),
        (inspect.isasyncgenfunction, "an asynchronous generator function"),
    ):
        if is_one(function):
            raise ConfigError(
                f"{function!r} is {what}: it returns before it has done anything, and the event "
                f"would tell what has not happened. Put `with emitting({type!r}):` around its work."
            )


def _state(type: str) -> State | None:
    """Return the state of the current app; log that there is none."""
    try:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    except RuntimeError:
        _logger.error(
            "No %r was emitted: there is no application context to tell which app it belongs to. "
            "Wrap the call in `with app.app_context():`.",
            type,
        )
        return None
    state: State | None = app.extensions.get(EXTENSION)
    if state is None:
        _logger.error(
            "No %r was emitted: NocRealtime is not initialised for %r; call "
            "realtime.init_app(app).",
            type,
            app.name,
        )
    return state
