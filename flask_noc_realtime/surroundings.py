"""What an app runs in: the machine, how gunicorn is told to serve it, its Redis, its workers."""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import re
import resource
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import BrokerUnavailable, ConfigError
from .metrics import MULTIPROCESS

if TYPE_CHECKING:
    from .broker.census import Answers

COMPUTED = "computed"
"""A setting that only gunicorn works out, when it starts."""

_REDIS_TIMEOUT = 1.0
_ANSWER_TIMEOUT = 2.0
_OPTIONS = {
    "worker_class": ("-k", "--worker-class"),
    "workers": ("-w", "--workers"),
    "threads": ("--threads",),
    "certfile": ("--certfile",),
}
_ELSEWHERE = ("worker_class", "workers")
"""What is not taken for missing where a file imports all there is in another."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What can be seen from a terminal on the machine of an app.

    :ivar identifies: whether the app can tell who asks.
    :ivar versions: those of gunicorn and gevent; empty where one is not installed.
    :ivar settings: what gunicorn is told by its environment and by ``gunicorn.conf.py``.
    :ivar counts_together: whether workers leave their metrics in a directory.
    :ivar open_files: as many as a process may have.
    :ivar streams: as many as a worker is to hold.
    """

    config: Config
    identifies: bool
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    counts_together: bool
    open_files: float
    streams: int


def look_around(config: Config, *, identifies: bool, streams: int) -> Surroundings:
    """Return what is seen from this directory, with the limits of this shell."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Surroundings(
        config=config,
        identifies=identifies,
        versions={name: _version(name) for name in ("gunicorn", "gevent")},
        settings=gunicorn_settings(os.environ, Path()),
        counts_together=MULTIPROCESS in os.environ,
        open_files=math.inf if limit == resource.RLIM_INFINITY else limit,
        streams=streams,
    )


def gunicorn_settings(environ: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """Return what gunicorn is told when it is started in *directory*; no code of it is run.

    What its command line says, which counts for more, cannot be seen.

    :raises ConfigError: when one of them cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", default="gunicorn.conf.py")
    for name, flags in _OPTIONS.items():
        parser.add_argument(*flags, dest=name)
    try:
        told, _ = parser.parse_known_args(shlex.split(environ.get("GUNICORN_CMD_ARGS", "")))
    except (argparse.ArgumentError, ValueError) as error:
        raise ConfigError(f"GUNICORN_CMD_ARGS cannot be read: {error}.") from error
    settings: dict[str, Any] = {}
    if environ.get("WEB_CONCURRENCY"):
        settings["workers"] = environ["WEB_CONCURRENCY"]
    file = directory / told.config.removeprefix("file:")
    if file.is_file():
        try:
            settings |= _assigned(file.read_text())
        except (SyntaxError, ValueError, OSError) as error:
            raise ConfigError(f"{file} cannot be read: {error}.") from error
    options = {name: getattr(told, name) for name in _OPTIONS}
    return settings | {name: value for name, value in options.items() if value is not None}


def _assigned(source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        found |= _set_by(statement)
    return {name: value for name, value in found.items() if name in (*_OPTIONS, "child_exit")}


def _set_by(statement: ast.stmt) -> dict[str, Any]:
    if isinstance(statement, ast.Assign):
        names = [each.id for each in statement.targets if isinstance(each, ast.Name)]
        return dict.fromkeys(names, _value(statement.value))
    if isinstance(statement, ast.AnnAssign):
        target, value = statement.target, statement.value
        return {target.id: _value(value)} if isinstance(target, ast.Name) and value else {}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        names = [each.asname or each.name for each in statement.names]
        return dict.fromkeys(_ELSEWHERE if names == ["*"] else names, COMPUTED)
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name: COMPUTED}
    # Which branch is taken shows only when it is run.
    within = [each for each in ast.walk(statement) if isinstance(each, ast.stmt)]
    return {name: COMPUTED for each in within if each is not statement for name in _set_by(each)}


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:
        return COMPUTED


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a Redis says of itself.

    :ivar seconds: until it answers.
    :ivar used: bytes of memory.
    :ivar maximum: bytes of memory it may use; 0 is any number.
    :ivar policy: what it evicts then.
    :ivar appends: whether it writes down each change.
    :ivar refused: why it does not take a write; empty when it does.
    :ivar save: when it takes snapshots; None where it does not say.
    :ivar buffer: bytes a subscriber may be behind, 0 for any number; None where it does not say.
    :ivar event_bytes: those of the largest event the app may give it.
    """

    version: str
    seconds: float
    used: int
    maximum: int
    policy: str
    appends: bool
    refused: str
    save: str | None
    buffer: int | None
    event_bytes: int


def ask_redis(config: Config) -> RedisFacts:
    """Ask the Redis of an app. The key that is written to see whether it can be lasts a second.

    :raises BrokerUnavailable: when it does not answer, or not to this.
    """
    from .broker.address import Address, said_by
    from .broker.command import AWAY, ONCE
    from .broker.redis import RedisBroker, RedisOptions

    with closing(RedisBroker(config.url, RedisOptions(config.namespace))) as broker:
        broker.ping()
    key = f"{{{config.namespace}}}:doctor"
    address = Address(config.url, _REDIS_TIMEOUT, key)
    client = address.connect(ONCE)
    try:
        return _ask(client, key, config.max_event_bytes)
    except AWAY as error:
        raise BrokerUnavailable(
            f"Redis at {address.shown} does not say how it is ({said_by(error)}); allow it INFO"
        ) from error
    finally:
        client.close()


def _ask(client: Any, key: str, event_bytes: int) -> RedisFacts:
    info = client.info()
    buffers = _setting(client, "client-output-buffer-limit")
    return RedisFacts(
        version=str(info["redis_version"]),
        seconds=min(_ping(client) for _ in range(3)),
        used=int(info.get("used_memory", 0)),
        maximum=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "noeviction")),
        appends=bool(info.get("aof_enabled")),
        refused=_refusal(client, key),
        save=_setting(client, "save"),
        buffer=None if buffers is None else pubsub_buffer(buffers),
        event_bytes=event_bytes,
    )


def _ping(client: Any) -> float:
    begun = time.monotonic()
    client.ping()
    return time.monotonic() - begun


def _refusal(client: Any, key: str) -> str:
    from redis import ResponseError

    try:
        client.set(key, secrets.token_hex(4), px=1000)
    except ResponseError as error:
        return str(error)
    return ""


def _setting(client: Any, name: str) -> str | None:
    """Return a setting; services that others manage keep theirs to themselves."""
    from redis import ResponseError

    try:
        value = client.config_get(name).get(name)
    except ResponseError:
        return None
    return None if value is None else str(value)


def pubsub_buffer(limits: str) -> int | None:
    """Return the hard limit of subscribers in ``client-output-buffer-limit``."""
    words = limits.split()
    classes = {words[at]: words[at + 1] for at in range(0, len(words) - 3, 4)}
    return int(classes["pubsub"]) if "pubsub" in classes else None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answered.

    :ivar open_files: as many as it may have; None where that is not seen, as on another machine.
    """

    detached: int
    portable: int
    queued: int
    dropped: int
    open_files: float | None


@dataclass(frozen=True, slots=True)
class Workers:
    """Those that have served a stream or a position.

    :ivar asked: how many were; None where nobody knows, as in a Redis Cluster.
    :ivar streams: as many as one of them is to hold.
    """

    asked: int | None
    answered: Sequence[Worker]
    streams: int


def ask_workers(survey: Callable[[float], Answers], streams: int) -> Workers:
    """Ask the workers how they are, by the *survey* of their broker.

    :raises BrokerUnavailable: when none can be asked.
    """
    asked, reports = survey(_ANSWER_TIMEOUT)
    return Workers(asked, [_worker(json.loads(report)) for report in reports], streams)


def _worker(report: Mapping[str, Any]) -> Worker:
    here = report["host"] == socket.gethostname()
    return Worker(
        detached=report["detached"],
        portable=report["portable"],
        queued=report["queued"],
        dropped=report["dropped"],
        open_files=_open_files(report["pid"]) if here else None,
    )


def _open_files(pid: int) -> float | None:
    """Return the limit of another process (proc(5)); None where there is none to read."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    found = re.search(r"^Max open files +(\S+)", limits, re.M)
    if found is None:
        return None
    return math.inf if found[1] == "unlimited" else int(found[1])
