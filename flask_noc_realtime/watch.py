"""Watching the database: the changes that a session commits become events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event, inspect
from sqlalchemy.orm import InstanceState, Mapper, object_session
from sqlalchemy.orm.attributes import get_history, instance_state
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from .errors import ConfigError
from .event import check_type
from .transaction import bind

if TYPE_CHECKING:
    from .extension import NocRealtime
    from .outbox import Outbox

Model = type[Any]
"""A mapped class."""

Data = Collection[str] | Callable[[Any], Any]
"""Names of attributes, or a function of the row."""

Permissions = Collection[str] | Callable[[Any], Collection[str] | None]
User = str | Callable[[Any], str | None]


class Watch:
    """Turns the changes of a model into events until it is stopped.

    What an event holds is read when the change is flushed: after the commit it would have to be
    loaded anew, and others may have changed it.
    """

    def __init__(
        self,
        extension: NocRealtime,
        model: Model,
        changes: Mapping[str, str | None],
        columns: Mapping[str, str],
        data: Data | None,
        permissions: Permissions | None,
        user_id: User | None,
        outbox: Outbox | None = None,
    ) -> None:
        self._extension = extension
        self._changes = {change: check_type(type) for change, type in changes.items() if type}
        self._columns = {column: check_type(type) for column, type in columns.items()}
        self._data = data
        self._permissions = permissions
        self._user_id = user_id
        self._outbox = outbox
        self._altered: WeakKeyDictionary[InstanceState[Any], set[str]] = WeakKeyDictionary()
        self._check(model)
        self._listeners: list[tuple[Any, str, Callable[..., None]]] = []
        self._listen(model)

    def stop(self) -> None:
        """Emit no more."""
        while self._listeners:
            event.remove(*self._listeners.pop())

    def _check(self, model: Model) -> None:
        mapper = inspect(model, raiseerr=False)
        if not isinstance(mapper, Mapper):
            raise ConfigError(f"{model!r:.80} cannot be watched; pass a mapped class.")
        name = model.__name__
        if not self._changes and not self._columns:
            raise ConfigError(
                f"Say what to emit when a {name} changes: created=, updated=, deleted=, or the "
                "name of a column."
            )
        for column in self._columns:
            if column not in mapper.columns:
                known = ", ".join(mapper.columns.keys())
                raise ConfigError(f"{name} has no column {column!r}; it has: {known}.")
        if self._data is not None and not callable(self._data):
            wrong = isinstance(self._data, str) or [n for n in self._data if not hasattr(model, n)]
            if wrong:
                raise ConfigError(
                    f"The data of {name} is {self._data!r}; pass a list of its attributes, or a "
                    "function of the row."
                )

    def _listen(self, model: Model) -> None:
        listeners: list[tuple[Any, str, Callable[..., None]]] = []
        if "created" in self._changes:
            listeners.append((model, "after_insert", self._inserted))
        if "updated" in self._changes or self._columns:
            listeners.append((model, "before_update", self._updating))
            listeners.append((model, "after_update", self._updated))
        if "deleted" in self._changes:
            listeners.append((model, "before_delete", self._deleting))
        for listener in listeners:
            event.listen(*listener, propagate=True)
        for column in self._columns:
            listener = (getattr(model, column), "set", _set)
            # Without the old value, the same one set again would count as a change.
            event.listen(*listener, propagate=True, active_history=True)
            listeners.append(listener)
        self._listeners = listeners

    def _inserted(self, mapper: Mapper[Any], connection: Connection, row: Any) -> None:
        self._capture(mapper, connection, row, self._changes["created"])

    def _updating(self, mapper: Mapper[Any], connection: Connection, row: Any) -> None:
        # The database computes what is set to an expression, and the attribute expires.
        self._altered[instance_state(row)] = _altered(mapper, row)

    def _updated(self, mapper: Mapper[Any], connection: Connection, row: Any) -> None:
        # Listeners of the app may have altered more.
        altered = self._altered.pop(instance_state(row), set()) | _altered(mapper, row)
        if altered and "updated" in self._changes:
            self._capture(mapper, connection, row, self._changes["updated"])
        for column, type in self._columns.items():
            if column in altered:
                self._capture(mapper, connection, row, type, column)

    def _deleting(self, mapper: Mapper[Any], connection: Connection, row: Any) -> None:
        # Afterwards, what is not loaded yet could not be loaded any more.
        self._capture(mapper, connection, row, self._changes["deleted"])

    def _capture(
        self,
        mapper: Mapper[Any],
        connection: Connection,
        row: Any,
        type: str,
        column: str | None = None,
    ) -> None:
        state = self._extension._addressed(type)
        session = object_session(row)
        if state is None or session is None:
            return
        try:
            data = self._read(mapper, row, column)
            record = state.encode(type, data, _of(row, self._permissions), _of(row, self._user_id))
        except Exception:
            state.forgive(type)
        else:
            if self._outbox is None:
                bind(session, state, record)
            else:
                self._outbox.write(connection, record)

    def _read(self, mapper: Mapper[Any], row: Any, column: str | None) -> Any:
        if callable(self._data):
            return self._data(row)
        names = self._data
        if names is None:
            key = [mapper.get_property_by_column(part).key for part in mapper.primary_key]
            names = key if column is None else [*key, column]
        return {name: getattr(row, name) for name in names}


def _set(row: Any, value: Any, old: Any, initiator: Any) -> None:
    pass


def _altered(mapper: Mapper[Any], row: Any) -> set[str]:
    """Return the columns that differ from what the session loaded or flushed last."""
    return {
        name
        for name in mapper.columns.keys()
        if get_history(row, name, PASSIVE_NO_INITIALIZE).has_changes()
    }


def _of(row: Any, value: Any) -> Any:
    return value(row) if callable(value) else value
