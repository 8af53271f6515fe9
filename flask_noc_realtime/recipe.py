"""Recipes: what an event holds, and who sees it, in terms of values that have names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, reduce
from operator import itemgetter
from typing import Any

from .errors import ConfigError
from .event import check_type

Data = str | Mapping[str, str] | Callable[..., Any]
"""A path such as ``"incident.id"``, a mapping of keys to paths, or a function of named values."""

Permissions = Collection[str] | Callable[..., Collection[str] | None]
User = str | Callable[..., str | None]

_Values = Mapping[str, Any]
_Part = Callable[[_Values], Any]
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Recipe:
    """Makes the data and the audience of one type of event.

    A function is handed the values it names: each of its parameters is the name of a value, and
    ``**others`` takes the rest.

    :ivar wants: the names that must be there; None when all are wanted.
    :raises EventError: when *type* is no event type.
    :raises ConfigError: when a part is of no form that is known.
    """

    def __init__(
        self, type: str, data: Data, permissions: Permissions | None, user_id: User | None
    ) -> None:
        self.type = check_type(type)
        self._wants: set[str] = set()
        self._wants_all = False
        self._data = self._data_part(data)
        self._permissions = self._audience_part(permissions)
        self._user_id = self._audience_part(user_id)
        self._audience: Any = None
        if not callable(permissions) and not callable(user_id):
            self._audience = permissions, user_id

    @property
    def wants(self) -> frozenset[str] | None:
        """The names it reads; None when it reads every value there is."""
        return None if self._wants_all else frozenset(self._wants)

    def check(self, known: Collection[str]) -> None:
        """Refuse a recipe that reads a value which is never there.

        :raises ConfigError: naming what there is.
        """
        for name in sorted(self._wants.difference(known)):
            raise ConfigError(
                f"The event {self.type!r} is to be made of {name!r}, which is none of: "
                f"{', '.join(known)}."
            )

    def fill(self, values: _Values) -> tuple[Any, Collection[str] | None, str | None]:
        """Return data, permissions and user id; whatever the app's functions raise is raised."""
        if self._audience is not None:
            return self._data(values), *self._audience
        return self._data(values), self._permissions(values), self._user_id(values)

    def _data_part(self, data: Data) -> _Part:
        if isinstance(data, str):
            return self._path(data)
        if isinstance(data, Mapping):
            parts = [(key, self._path(path)) for key, path in data.items()]
            return lambda values: {key: part(values) for key, part in parts}
        if callable(data):
            return self._function(data)
        raise ConfigError(
            f"The data of {self.type!r} is {data!r:.80}; pass a path such as 'incident.id', "
            "a mapping of keys to paths, or a function of the values it names."
        )

    def _audience_part(self, value: Any) -> _Part:
        return self._function(value) if callable(value) else lambda values: value

    def _path(self, path: str) -> _Part:
        if not isinstance(path, str) or not all(path.split(".")):
            raise ConfigError(
                f"{path!r} is no path for {self.type!r}; use names joined by dots, such as "
                "'incident.id', and a function for anything else."
            )
        name, *steps = path.split(".")
        self._wants.add(name)
        if not steps:
            return itemgetter(name)
        if len(steps) == 1:
            step = steps[0]
            return lambda values: _step(values[name], step)
        return lambda values: reduce(_step, steps, values[name])

    def _function(self, function: Callable[..., Any]) -> _Part:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            parameters = None
        if parameters is None or any(p.kind is p.POSITIONAL_ONLY for p in parameters):
            raise ConfigError(
                f"{function!r} does not name what it takes, so it is unclear what to hand it for "
                f"{self.type!r}; wrap it in a lambda that does."
            )
        # A default is how a lambda keeps a value of the loop it is made in.
        named = [p for p in parameters if p.kind not in _VARIABLE and p.default is p.empty]
        names = [p.name for p in named]
        self._wants.update(names)
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            self._wants_all = True
            return lambda values: function(**values)
        return lambda values: function(**{name: values[name] for name in names})


def _step(value: Any, name: str) -> Any:
    return value[name] if _has_keys(value.__class__) else getattr(value, name)


@lru_cache(maxsize=256)
def _has_keys(kind: type) -> bool:
    """Tell mappings from others; to ask the abstract class takes three times as long."""
    return issubclass(kind, Mapping)
