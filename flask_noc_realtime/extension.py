"""The extension: wires the parts to an app, and finds them again for the current one."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blinker import ANY, Signal
from flask import Flask, Request, current_app, has_app_context

from . import page
from .auth import ANONYMOUS, Identity, IdentityLoader, jwt_loader
from .blueprint import EXTENSION, create_blueprint
from .bridge import Bridge
from .coalesce import Coalescing
from .config import Config
from .errors import ConfigError
from .event import Catalogue, patterns_of, split_record
from .ingest import Alert
from .metrics import Metrics, default_registry, metrics_in
from .process import Process, create_broker
from .recipe import Data, Permissions, User
from .rollout import Rollout, record_of, rollout_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

    from . import watch
    from .outbox import Bind, Outbox

AlertMapper = Callable[[Alert], Mapping[str, Any] | None]

_logger = logging.getLogger("flask_noc_realtime")


class State:
    """What the extension keeps for one app, in ``app.extensions["noc_realtime"]``."""

    def __init__(self, name: str, config: Config, extension: NocRealtime) -> None:
        self.name = name
        self.config = config
        self.catalogue = Catalogue(extension._types, strict=config.strict_types)
        self._extension = extension
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._jwt_loader: IdentityLoader | None = None
        self._warned = False
        self.endings: set[str] = set()
        """The types and patterns that end results of `coalesce`, as far as they were asked for."""

    def identity(self, request: Request) -> Identity | None:
        """Return who *request* comes from; anonymous counts only where the app allows it.

        :raises IdentityError: when it shows an identity that is not accepted.
        """
        identity = self.loaded_identity(request)
        return ANONYMOUS if identity is None and self.config.allow_anonymous else identity

    @property
    def identifies(self) -> bool:
        """Whether anything can tell who a request comes from; call it within the app."""
        loader = self._extension._identity_loader
        return loader is not None or "flask-jwt-extended" in current_app.extensions

    def loaded_identity(self, request: Request) -> Identity | None:
        """Return whom the app's loader, or else Flask-JWT-Extended, says *request* comes from."""
        loader = self._extension._identity_loader
        if loader is None and "flask-jwt-extended" in current_app.extensions:
            loader = self._jwt_loader = self._jwt_loader or jwt_loader(self.config)
        identity = None if loader is None else loader(request)
        if identity is not None and not isinstance(identity, Identity):
            raise ConfigError(
                f"The identity loader returned {type(identity).__name__}; return "
                "Identity(user_id=..., permissions=...), or None for nobody."
            )
        return identity

    def in_transaction(self) -> bool:
        """Tell whether the request may see data as it was before it came."""
        probe = self._extension._transaction_probe
        if probe is not None:
            return probe()
        session = _session_in_use()
        return session is not None and session.in_transaction()

    def _check_committed(self, type: str) -> None:
        """Warn, once, of an event that tells of what others cannot read yet."""
        if self._warned or not has_app_context():
            return
        if self.endings.isdisjoint(patterns_of(type)):
            return
        session = _session_in_use()
        if session is not None and (session.new or session.dirty or session.deleted):
            self._warned = True
            _logger.warning(
                "%r is emitted while db.session holds changes: until they are committed, whoever "
                "asks is given results from before them, and these are kept. Emit after the "
                "commit, or pass on_commit=db.session.",
                type,
            )

    def emit(
        self,
        type: str,
        data: Any,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
    ) -> str | None:
        """Emit as `NocRealtime.emit` does."""
        emitter = self.process().emitter
        record = emitter.encode(type, data, permissions, user_id)
        if self.endings:
            self._check_committed(type)
        return None if self.muted else emitter.publish(record)

    def encode(
        self,
        type: str,
        data: Any,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
    ) -> bytes:
        """Return the record of an event, to be published later."""
        return self.process().emitter.encode(type, data, permissions, user_id)

    def publish(self, record: bytes) -> str | None:
        """Publish a record, unless the extension is muted."""
        return None if self.muted else self.process().emitter.publish(record)

    @property
    def muted(self) -> bool:
        """Whether nothing is to be emitted."""
        return self._extension._mutes > 0

    def map_alert(self, alert: Alert) -> Mapping[str, Any] | None:
        """Return what to emit for *alert*, as the app wants it."""
        return self._extension._alert_mapper(alert)

    def rollout(self) -> Rollout:
        """Return the stored rollout, or `configured_rollout`."""
        record = self.process().broker.standing()
        if record is None:
            return self.configured_rollout
        return rollout_of(split_record(record)[0], self.configured_rollout)

    def store_rollout(self, rollout: Rollout | None) -> None:
        """Store a rollout; with None the configuration counts again."""
        self.process().broker.stand(record_of(rollout), f"rollout-{secrets.token_hex(8)}")

    @property
    def configured_rollout(self) -> Rollout:
        """The rollout that counts while none is stored."""
        return self.process().hub.options.rollout

    def forgive(self, type: str) -> None:
        """Log the error that is being handled, or raise it again where the app wants that."""
        if self.config.emit_errors == "raise":
            raise
        _logger.exception("No %r was emitted.", type)

    @property
    def outboxes(self) -> Sequence[Outbox]:
        """The outboxes of the extension."""
        return self._extension._outboxes

    def process(self) -> Process:
        """Return this process's runtime; made on first use, and anew after a fork."""
        process = self._process
        if process is not None and process.pid == os.getpid():
            return process
        with self._lock:
            process = self._process
            if process is not None and process.pid == os.getpid():
                return process
            process = self._process = Process(self.config, self.catalogue, self._metrics())
        # It may start a thread. Gevent lets others run meanwhile, and with --preload, where the
        # lock is from before the patching, these would hold up the worker for ever.
        process.metrics.watch(process)
        return process

    def _metrics(self) -> Metrics:
        registry = None
        if self.config.metrics != "off":
            registry = self._extension._registry or default_registry()
        return metrics_in(registry, self.catalogue)


class NocRealtime:
    """Turn a Flask app's incidents into live streams.

    Pass the app, or call `init_app` from an app factory. One instance serves several apps.

    :param app: initialised at once when given.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._types: set[str] = set(Catalogue().types())
        self._identity_loader: IdentityLoader | None = None
        self._transaction_probe: Callable[[], bool] | None = None
        self._alert_mapper: AlertMapper = _incident
        self._registry: Any | None = None
        self._states: weakref.WeakSet[State] = weakref.WeakSet()
        self.coalesce = Coalescing(self._state)
        self._lock = threading.Lock()
        self._mutes = 0
        self._wires: set[object] = set()
        self._outboxes: list[Outbox] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the app's configuration and register the blueprint.

        Nothing is connected, started or patched: that happens in the worker, on first use.

        :raises ConfigError: when a ``NOC_REALTIME_*`` value is wrong, or the app was
            initialised before.
        """
        if EXTENSION in app.extensions:
            raise ConfigError(
                f"NocRealtime was already initialised for {app.name!r}; "
                "call NocRealtime(app) or init_app(app), and only once for each app."
            )
        state = State(app.import_name, Config.from_mapping(app.config), self)
        create_broker(state.config)
        app.extensions[EXTENSION] = state
        self._states.add(state)
        blueprint = create_blueprint(state)
        if state.config.ingests:
            from .webhook import add_ingest

            add_ingest(blueprint, state)
        if state.config.debug_page:
            from .debug import add_debug

            add_debug(blueprint)
        app.register_blueprint(blueprint)
        app.before_request(_serve_outboxes)
        page.register(app)

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
        on_commit: Session | scoped_session[Any] | None = None,
    ) -> str | None:
        """Send an event to every stream that may see it; return its position.

        Call it after the commit of what it tells. It returns None when the broker is away:
        the event is queued and published, in order, when it is back.

        :param type: a type of the catalogue, or one of your own; see `register_type`.
        :param data: anything JSON can hold.
        :param permissions: visible to streams holding any of them; None is visible to all.
        :param user_id: visible to this user only.
        :param on_commit: a SQLAlchemy session; the event is published when the transaction it
            is in has been committed, and never if it is rolled back. Returns None.
        :raises EventError: when the event itself is wrong; nothing is published.
        :raises BrokerUnavailable: only with ``NOC_REALTIME_EMIT_ERRORS = "raise"``.
        """
        state = self._state()
        if on_commit is None:
            return state.emit(type, data, permissions, user_id)
        from .transaction import bind

        bind(on_commit, state, state.encode(type, data, permissions, user_id))
        return None

    def bridge(
        self,
        signal: Signal,
        *,
        type: str,
        data: Data | None = None,
        permissions: Permissions | None = None,
        user_id: User | None = None,
        sender: Any = ANY,
    ) -> Bridge:
        """Emit an event whenever a blinker signal is sent, until the bridge is stopped.

        The values an event is made of are the signal's keywords, by name, and its ``sender``.
        What goes wrong with the event is handled as by `emits`.

        :param type: a type of the catalogue, or one of your own.
        :param data: as for `emits`; the signal's keywords unless given.
        :param permissions: as for `emits`.
        :param user_id: as for `emits`.
        :param sender: only what this one sends.
        :raises EventError: when *type* is no event type.
        :raises ConfigError: when the event cannot be made like that.
        """
        return Bridge(self, signal, type, data, permissions, user_id, sender)

    def watch(
        self,
        model: watch.Model,
        *,
        created: str | None = None,
        updated: str | None = None,
        deleted: str | None = None,
        data: watch.Data | None = None,
        permissions: watch.Permissions | None = None,
        user_id: watch.User | None = None,
        outbox: Outbox | None = None,
        **columns: str,
    ) -> watch.Watch:
        """Emit events when SQLAlchemy sessions commit changes of a model, until it is stopped.

        :param model: a mapped class; its subclasses are watched as well.
        :param created: the type to emit for a new row.
        :param updated: the type to emit for a row of which any column changed.
        :param deleted: the type to emit for a row that is gone.
        :param data: names of attributes, or a function of the row; unless given, the primary
            key, and the new value if the event is about one column.
        :param permissions: as for `emit`, or a function of the row.
        :param user_id: as for `emit`, or a function of the row.
        :param outbox: write the events there, so that none is lost with the process.
        :param columns: the type to emit when that column of a row changed.
        :raises ConfigError: when the model cannot be watched like that.
        """
        from .watch import Watch

        changes = {"created": created, "updated": updated, "deleted": deleted}
        return Watch(self, model, changes, columns, data, permissions, user_id, outbox)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Emit nothing while the block runs, whoever tries and in whichever thread; for tests.

        An emit returns None meanwhile, and its event is never published.
        """
        with self._lock:
            self._mutes += 1
        try:
            yield
        finally:
            with self._lock:
                self._mutes -= 1

    def register_type(self, type: str) -> None:
        """Add an event type of your own, dotted lower-case words, for example ``link.flapped``.

        :raises EventError: when it is malformed or reserved.
        """
        for catalogue in [Catalogue(), *(state.catalogue for state in self._states)]:
            catalogue.register(type)
        self._types.add(type)

    def types(self) -> tuple[str, ...]:
        """Return the known event types in alphabetical order."""
        return tuple(sorted(self._types))

    def position(self) -> str:
        """Return the newest position this process knows.

        Take it before you read the data a page shows; a stream opened from it has no hole.
        """
        return self._state().process().position()

    def disconnect(self, user_id: str) -> str | None:
        """End every stream of a user, on every worker; return as `emit` does.

        Withdraw the rights first, so that the user cannot come back with them. No event that
        is emitted after this call reaches those streams.
        """
        return self._give_notice("stream.disconnect", user_id)

    def refresh(self, user_id: str) -> str | None:
        """Have every stream of a user look up its rights anew; return as `emit` does.

        The streams end, and their clients come back at once, from where they were, with the
        identity that the loader finds then. Call it after the change.
        """
        return self._give_notice("stream.refresh", user_id)

    def rollout(
        self,
        percent: float | None = None,
        *,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        reset: bool = False,
    ) -> Rollout:
        """Change which users have streams, on every worker within a second; return what counts now.

        What is not given stays as it is. It is stored in Redis, and counts instead of
        ``NOC_REALTIME_ROLLOUT`` from then on; the streams of users who are no longer included end.

        :param percent: how many of the users, from 0 to 100 in steps of 0.01.
        :param allow: users who have streams whatever the percentage.
        :param deny: users who have none.
        :param reset: begin with ``NOC_REALTIME_ROLLOUT`` and empty lists.
        :raises ConfigError: when one of these is wrong; nothing is changed.
        :raises BrokerUnavailable: when it is not known to be changed.
        """
        state = self._state()
        before = state.configured_rollout if reset else state.rollout()
        given = {"percent": percent, "allow": allow, "deny": deny}
        changes = {name: value for name, value in given.items() if value is not None}
        after = replace(before, **changes) if changes else before  # type: ignore[arg-type]
        if changes or reset:
            state.store_rollout(after if changes else None)
        return after

    def _give_notice(self, type: str, user_id: str) -> str | None:
        if not isinstance(user_id, str) or not user_id:
            raise ConfigError(f"user_id is {user_id!r}; pass the non-empty str of an Identity.")
        return self._state().process().emitter.give_notice(type, user_id)

    def identity_loader(self, loader: IdentityLoader) -> IdentityLoader:
        """Register the function that tells who a request comes from.

        :param loader: takes the Flask request; returns an `Identity`, or None for nobody.
        """
        self._identity_loader = loader
        return loader

    def transaction_probe(self, probe: Callable[[], bool]) -> Callable[[], bool]:
        """Register the function that tells whether a database transaction is open.

        What is read in one may be older than an event that came before the request; `coalesce`
        gives such a result to nobody else. With Flask-SQLAlchemy its session is asked. Where
        every statement sees the newest data (READ COMMITTED), register ``lambda: False``.

        :param probe: is called in the request.
        """
        self._transaction_probe = probe
        return probe

    def alert_mapper(self, mapper: AlertMapper) -> AlertMapper:
        """Register the function that makes events of Alertmanager's alerts.

        Unless there is one, an `Alert` becomes ``{"type": alert.type, "data": alert.data}``.

        :param mapper: takes an `Alert`; returns a mapping of what `emit` takes, ``type``, ``data``
            and perhaps ``permissions`` and ``user_id``, or None for an alert to pass over.
            Without permissions the event has those of ``NOC_REALTIME_INGEST_PERMISSIONS``.
        """
        self._alert_mapper = mapper
        return mapper

    def metrics(self, exporter: Any) -> None:
        """Name where the metrics are counted; call it before the first request.

        Without it they are counted in the registry that prometheus-flask-exporter uses unless it
        is given another, where the app uses prometheus-flask-exporter.

        :param exporter: a ``PrometheusMetrics`` of prometheus-flask-exporter of any kind, or a
            ``CollectorRegistry`` of prometheus-client.
        :raises ConfigError: when it is neither.
        """
        registry = getattr(exporter, "registry", exporter)
        if isinstance(registry, type) or not hasattr(registry, "restricted_registry"):
            raise ConfigError(
                f"metrics() was given {exporter!r:.80}; pass the PrometheusMetrics of "
                "prometheus-flask-exporter, or a CollectorRegistry of prometheus-client."
            )
        self._registry = registry

    def outbox(
        self, database: Any, bind: Bind | None = None, *, relay: bool = True, **options: Any
    ) -> Outbox:
        """Return what emits events that commit with the data; needs SQLAlchemy 2.

        :param database: your ``MetaData``, which gets one more table, or the ``SQLAlchemy()`` of
            Flask-SQLAlchemy.
        :param bind: your ``Engine``, or a function that returns it; not with Flask-SQLAlchemy.
        :param relay: publish in the workers; otherwise run ``flask noc-realtime relay``.
        :param options: ``name`` of the table, and ``interval``, the seconds between two looks.
        """
        try:
            from .outbox import Outbox
        except ModuleNotFoundError as error:
            raise ConfigError(
                "An outbox needs SQLAlchemy; pip install 'flask-noc-realtime[sqlalchemy]'."
            ) from error
        outbox = Outbox(self, database, bind, relay=relay, **options)
        self._outboxes.append(outbox)
        return outbox

    def _state(self) -> State:
        try:
            app = current_app._get_current_object()  # type: ignore[attr-defined]
        except RuntimeError:
            return self._only_state()
        state: State | None = app.extensions.get(EXTENSION)
        if state is None:
            raise ConfigError(
                f"NocRealtime is not initialised for {app.name!r}; call realtime.init_app(app)."
            )
        return state

    def _only_state(self) -> State:
        states = list(self._states)
        if len(states) != 1:
            raise ConfigError(
                f"There is no application context, and {len(states)} apps use this NocRealtime, "
                "so it is unclear which one is meant. Wrap the call in `with app.app_context():`."
            )
        return states[0]

    def _addressed(self, type: str) -> State | None:
        """Return the state that an event from outside is for; None when it is for other apps."""
        if has_app_context():
            state = current_app.extensions.get(EXTENSION)
            # Signals and models are shared by all apps of the process.
            return state if state in self._states else None
        try:
            return self._state()
        except ConfigError as error:
            _logger.error("No %r was emitted: %s", type, error)
            return None


def _incident(alert: Alert) -> Mapping[str, Any]:
    return {"type": alert.type, "data": alert.data}


def _serve_outboxes() -> None:
    state: State = current_app.extensions[EXTENSION]
    for outbox in state.outboxes:
        outbox.serve(current_app._get_current_object(), state.process())  # type: ignore[attr-defined]


def _session_in_use() -> Any:
    """Return the session of Flask-SQLAlchemy that this context has used, if any."""
    session = getattr(current_app.extensions.get("sqlalchemy"), "session", None)
    return session() if session is not None and session.registry.has() else None
