"""Where Redis is: what a URL says of it, and the clients that find their way there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

import redis
from redis.connection import Connection, ConnectionPool, parse_url
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from ..errors import ConfigError
from .cluster import Owner, OwnerConnection, OwnerTLSConnection
from .command import ONCE
from .connection import prompt

FORMS = (
    "memory://, redis://, rediss://, unix://, redis+sentinel://host:port,host:port/service/db "
    "or redis+cluster://host:port,host:port"
)

# The others of redis-py change what comes back, such as decode_responses, or fail the first
# command, such as timeout.
_OPTIONS = {
    "client_name",
    "db",
    "max_connections",
    "password",
    "protocol",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "username",
}
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
}
_SENTINEL_OPTIONS = {"sentinel_password", "sentinel_username"}

_SCHEMES = ("redis", "rediss", "unix")

_HEALTH_CHECK = 15.0
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:@]*)(?::(\d{1,5}))?")

Connect = Callable[[Retry], Any]


class Address:
    """Where Redis is. Nothing is connected until a client is used.

    :param url: what ``NOC_REALTIME_URL`` may be.
    :param timeout: seconds to connect, and to wait for an answer, unless the URL has its own.
    :param key: any key, which in a cluster says which node is meant.
    :ivar connect: returns a redis-py client with the `Retry` it is given.
    :ivar shown: the URL as it may be shown in a log.
    :ivar timeout: seconds to wait for an answer.
    :ivar clustered: whether it is a Redis Cluster.
    :raises ConfigError: when the URL is not understood.
    """

    def __init__(self, url: str, timeout: float, key: str) -> None:
        self.shown = _shown(url)
        try:
            parts = _split(url, key)
            options = _options(parts, timeout)
            # Unconnected, it shows what redis-py does not take.
            ConnectionPool(**options).make_connection()
            self.connect = _KINDS[parts.kind](parts, options)
            self.timeout: float = options["socket_timeout"]
            self.clustered = parts.kind == "cluster"
        except (TypeError, ValueError, redis.RedisError) as error:
            # Without its cause, which may quote a password that was taken for something else.
            raise ConfigError(f"NOC_REALTIME_URL is {self.shown!r}; {error}.") from None


class _Parts(NamedTuple):
    """A URL, divided.

    :ivar user: the name and the password, encoded.
    :ivar key: what a cluster is asked for.
    """

    key: str
    scheme: str
    kind: str
    user: str
    hosts: list[tuple[str, int | None]]
    path: str
    options: dict[str, str]


def _split(url: str, key: str) -> _Parts:
    head, found, rest = url.partition("://")
    scheme, _, kind = head.partition("+")
    if not found or scheme not in _SCHEMES or kind not in _KINDS or (kind and scheme == "unix"):
        raise ValueError(f"use {FORMS}")
    authority, path, query, fragment = _sections(rest)
    if "@" in path + query or fragment:
        raise ValueError(
            "percent-encode the '/', '?', '#' and '@' in its passwords and options, for example "
            "with urllib.parse.quote(password, safe='')"
        )
    user, _, hosts = authority.rpartition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    named = [_host(each) for each in hosts.split(",")]
    return _Parts(key, scheme, kind, user, named, path, options)


def _sections(rest: str) -> tuple[str, str, str, str]:
    """Return authority, path, query and fragment (RFC 3986, section 3) of what follows ``//``."""
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    return authority, slash + path, query, fragment


def _host(text: str) -> tuple[str, int | None]:
    found = _HOST.fullmatch(text)
    port = int(found[2]) if found and found[2] else None
    if found is None or not 0 < (port or 1) < 65536:
        raise ValueError("a host in it is neither a name nor an address, or has no such port")
    try:
        found[1].encode("idna")
    except UnicodeError:
        raise ValueError("a host in it is no name") from None
    return found[1].strip("[]") or "localhost", port


def _options(parts: _Parts, timeout: float) -> dict[str, Any]:
    """Return what redis-py makes connections with, but the host."""
    allowed = _OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else set())
    sentinels = _SENTINEL_OPTIONS if parts.kind == "sentinel" else set()
    if not parts.options.keys() <= allowed | sentinels:
        # Not by name: it may be the end of a password that has a '&'.
        raise ValueError(f"its options can be {', '.join(sorted(allowed | sentinels))}")
    query = urlencode({name: parts.options[name] for name in allowed & parts.options.keys()})
    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": _HEALTH_CHECK,
        # With 3, redis-py writes out every message for a log that nobody reads.
        "protocol": 2,
        **parse_url(f"{parts.scheme}://{_database(parts)}?{query}"),
    }
    for name in {"protocol", "ssl_min_version"} & options.keys():
        options[name] = int(options[name])  # redis-py 6.0 leaves it a str
    user, _, password = parts.user.partition(":")
    options.update({"username": unquote(user)} if user else {})
    options.update({"password": unquote(password)} if password else {})
    for name in ("socket_timeout", "socket_connect_timeout"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"its {name} can be a number of seconds, more than 0")
    return options


def _database(parts: _Parts) -> str:
    """Return the path as redis-py reads it; it passes over one that is no number."""
    path = parts.path
    if parts.scheme == "unix":
        if not path.strip("/"):
            raise ValueError("name the socket: unix:///run/redis.sock")
        return path
    if parts.kind == "sentinel":
        path = path.strip("/").partition("/")[2]
    number = path.strip("/")
    if number and not (number.isascii() and number.isdigit()):
        raise ValueError("a database has a number: redis://host:6379/0")
    return f"/{number}"


def _server(parts: _Parts, options: dict[str, Any]) -> Connect:
    """Return what connects to one server."""
    if len(parts.hosts) > 1:
        raise ValueError("name one host, or use redis+sentinel:// or redis+cluster://")
    if parts.scheme != "unix":
        host, port = parts.hosts[0]
        options.update(host=host, port=port or 6379)
    options["connection_class"] = prompt(options.get("connection_class", Connection))
    return lambda retry: redis.Redis.from_pool(ConnectionPool(retry=retry, **options))


def _sentinel(parts: _Parts, options: dict[str, Any]) -> Connect:
    """Return what connects to the master that a sentinel names; both the same way."""
    service = unquote(parts.path.strip("/").partition("/")[0])
    if not service:
        raise ValueError("name the service: redis+sentinel://host:port,host:port/service/db")
    secure = options.pop("connection_class", None) is not None
    watch = {name: each for name, each in options.items() if name.startswith("ssl")}
    watch["ssl"] = secure
    for name in ("username", "password"):
        watch[name] = parts.options.get(f"sentinel_{name}")
    sentinels = [(host, port or 26379) for host, port in parts.hosts]
    # They are asked one after the other: together they may take as long as Redis itself.
    share = options["socket_timeout"] / len(sentinels)
    watch.update(socket_timeout=share, socket_connect_timeout=share, retry=ONCE)

    kind = SentinelManagedSSLConnection if secure else SentinelManagedConnection
    options["connection_class"] = prompt(kind)

    def connect(retry: Retry) -> Any:
        sentinel: Any = Sentinel(sentinels, sentinel_kwargs=watch)
        return sentinel.master_for(service, retry=retry, **options)

    return connect


def _cluster(parts: _Parts, options: dict[str, Any]) -> Connect:
    """Return what connects to a node of the cluster that the hosts are some nodes of."""
    if options.pop("db", 0):
        raise ValueError("a cluster has no database but 0")
    seeds = [(host, port or 6379) for host, port in parts.hosts]
    owner = Owner(seeds, parts.key, dict(options))
    secure = options.pop("connection_class", None) is not None
    kind = OwnerTLSConnection if secure else OwnerConnection
    options.update(connection_class=prompt(kind), owner=owner)
    return lambda retry: redis.Redis.from_pool(ConnectionPool(retry=retry, **options))


_KINDS = {"": _server, "sentinel": _sentinel, "cluster": _cluster}


def said_by(error: Exception) -> str:
    """Return what an error of redis-py says, as it may be shown in a log."""
    said = str(error)
    if isinstance(error, MasterNotFoundError):
        # What follows is how the sentinels are asked, in some versions with the password.
        return said.partition(" : ")[0]
    return said


def _shown(url: str) -> str:
    """Return *url* as it may be shown in a log: no more than scheme, hosts and path."""
    scheme, found, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, path, query, fragment = _sections(rest)
    hosts = authority.rpartition("@")[2]
    if "@" in path + query + fragment or not all(map(_HOST.fullmatch, hosts.split(","))):
        hosts, path = "...", ""
    return f"{scheme}{found}{hosts}{path}"
