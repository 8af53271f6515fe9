"""What a Redis URL says, what is refused of it, and what a log may show. Nothing is connected."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from redis.backoff import NoBackoff
from redis.retry import Retry

from flask_noc_realtime.broker.address import Address
from flask_noc_realtime.errors import ConfigError

SECRET = "s3cr/et"


def made_with(url: str) -> dict[str, Any]:
    """Return what the connections of a client are made with."""
    client = Address(url, 1.0, "{noc}:log").connect(Retry(NoBackoff(), 0))
    options: dict[str, Any] = client.connection_pool.connection_kwargs
    return options


def watched_with(url: str) -> list[dict[str, Any]]:
    """Return what the connections to each sentinel are made with."""
    client = Address(url, 1.0, "{noc}:log").connect(Retry(NoBackoff(), 0))
    sentinels = client.connection_pool.sentinel_manager.sentinels
    return [sentinel.connection_pool.connection_kwargs for sentinel in sentinels]


def assert_has(options: dict[str, Any], **expected: Any) -> None:
    """Fail unless each of *expected* is among the options, as it is."""
    assert {name: options.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"host": "localhost", "port": 6379}),
        ("redis://h", {"host": "h", "port": 6379}),
        ("redis://h:1/2", {"host": "h", "port": 1, "db": 2}),
        ("redis://h?db=3", {"host": "h", "db": 3}),
        ("redis://[::1]:7/0", {"host": "::1", "port": 7}),
        ("redis://u:p%2F%40%25@h", {"username": "u", "password": "p/@%"}),
        ("redis://:p:q[r]@h", {"username": None, "password": "p:q[r]"}),
        ("redis://h?protocol=2&client_name=noc", {"protocol": 2, "client_name": "noc"}),
        ("rediss://h/1?ssl_ca_certs=/ca.pem", {"ssl_ca_certs": "/ca.pem", "db": 1}),
        ("unix:///run/redis.sock?db=1", {"path": "/run/redis.sock", "db": 1}),
        ("unix://u:p@/run/r.sock", {"path": "/run/r.sock", "username": "u", "password": "p"}),
        ("redis+sentinel://u:p@s/noc/4", {"username": "u", "password": "p", "db": 4}),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: dict[str, Any]) -> None:
    """As redis-py understands it, where that has such a form."""
    assert_has(made_with(url), **expected)


def test_what_waits_for_redis_waits_no_longer_than_it_is_told() -> None:
    """The URL may say otherwise, for a Redis that is far away."""
    for url in ("redis://h", "unix:///s", "redis+sentinel://s/noc"):
        assert_has(made_with(url), socket_timeout=1.0, socket_connect_timeout=1.0)
    assert_has(made_with("redis://h?socket_timeout=5"), socket_timeout=5.0)


def test_every_sentinel_is_asked_the_way_the_master_is() -> None:
    """With TLS and the same CA; a name and a password of their own are theirs alone."""
    url = "rediss+sentinel://:pw@a:1,[::1],c/noc/0?ssl_ca_certs=/ca.pem&sentinel_password=x%26y"
    watched = watched_with(url)
    assert [(each["host"], each["port"]) for each in watched] == [
        ("a", 1),
        ("::1", 26379),
        ("c", 26379),
    ]
    for each in watched:
        assert_has(each, ssl_ca_certs="/ca.pem", password="x&y", username=None)
    assert_has(made_with(url), ssl_ca_certs="/ca.pem", password="pw")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "localhost:6379",
        "",
        "memory+cluster://x",
        "unix+cluster:///x",
        "redis+other://x",
        "redis://localhost:port",
        "redis://localhost:99999",
        "redis://h:-1",
        "redis://a,b",
        "redis://a..b",
        "redis://a b",
        "redis://h/name",
        "redis://h/-1",
        "unix://",
        "redis+sentinel://localhost:26379",
        "redis+sentinel://h:x/service",
        "redis+sentinel://h/service/name",
        "redis+cluster://h/1",
    ],
)
def test_a_url_of_no_known_form_is_a_config_error(url: str) -> None:
    """At start, and naming the key."""
    with pytest.raises(ConfigError, match=r"^NOC_REALTIME_URL is '.*'; .*\.$"):
        Address(url, 1.0, "{noc}:log")


@pytest.mark.parametrize(
    "option",
    [
        "timeout=5",
        "decode_responses=True",
        "encoding=latin-1",
        "retry_on_timeout=True",
        "ssl_ca_certs=/ca.pem",
        "sentinel_password=x",
        "protocol=4",
        "protocol=x",
        "max_connections=-1",
        "socket_timeout=0",
        "socket_timeout=nan",
        "socket_connect_timeout=inf",
        "db=x",
        "novel",
    ],
)
def test_an_option_that_would_fail_the_first_event_is_a_config_error(option: str) -> None:
    """At start, where whoever wrote it looks; `decode_responses` changes every answer."""
    with pytest.raises(ConfigError, match=r"^NOC_REALTIME_URL is 'redis://h/0'; .*\.$"):
        Address(f"redis://:pw@h/0?{option}", 1.0, "{noc}:log")


@pytest.mark.parametrize(
    "option", ["ssl_cert_reqs=maybe", "ssl_min_version=new", "ssl_check_hostname=perhaps&novel=1"]
)
def test_an_option_of_tls_is_looked_at_too(option: str) -> None:
    """They are those of redis-py."""
    with pytest.raises(ConfigError):
        Address(f"rediss://h/0?{option}", 1.0, "{noc}:log")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr/et@redis.internal:6379/0",
        "redis://:s3cr#et@redis.internal:6379/0",
        "redis://:s3cr?et@redis.internal:6379/0",
        "redis://:s3cr@et@redis.internal:6379/x",
        "redis://:12/s3cret@redis.internal:6379/0",
        "redis://user:s3cret@redis.internal:port",
        "redis://:s3cret",
        "redis://:s3cret/0",
        "redis://:[s3cret]@h..x",
        "redis://://s3cret@h:x",
        "user:s3cret@redis.internal:6379",
        "http://user:s3cret@redis.internal:6379",
        "redis://h/0?password=s3cret&novel=1",
        "redis+sentinel://h/noc?sentinel_password=s3&cret",
        "redis+sentinel://h/noc?sentinel_password=s3@cret",
        "redis+sentinel://:s3cr/et@h/noc",
        "unix://:s3cr/et@/run/redis.sock",
    ],
)
def test_an_error_shows_no_part_of_a_password(url: str) -> None:
    """Also of one that is not percent-encoded, which shifts what the parts of the URL are."""
    with pytest.raises(ConfigError) as caught:
        Address(url, 1.0, "{noc}:log")
    shown = "".join(traceback.format_exception(caught.value, chain=True)).rpartition("ConfigError")
    for part in ("s3cr", "s3", "cret", "et@"):
        assert part not in shown[2]
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@redis.internal:6379/0?client_name=x", "redis://redis.internal:6379/0"),
        ("redis+sentinel://:pw@a:1,b:2/noc/0", "redis+sentinel://a:1,b:2/noc/0"),
        ("unix://:pw@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_log_may_show_hosts_and_path(url: str, shown: str) -> None:
    """Enough to see which Redis is meant."""
    assert Address(url, 1.0, "{noc}:log").shown == shown
