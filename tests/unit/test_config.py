"""The configuration: read once, checked, and clear about what is wrong."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from flask_noc_realtime.config import Config, Secret, key_of
from flask_noc_realtime.errors import ConfigError
from flask_noc_realtime.rollout import Rollout


def test_the_defaults_are_those_documented() -> None:
    """An app that sets nothing is served from memory, and closed."""
    config = Config.from_mapping({})
    assert (config.url, config.allow_anonymous, config.prefix) == (
        "memory://",
        False,
        "/api/v1/events",
    )


TOKEN = "0123456789abcdef"
STRINGS = {
    "NOC_REALTIME_URL": ("redis://cache:6379/1", Secret("redis://cache:6379/1")),
    "NOC_REALTIME_PREFIX": ("/live", "/live"),
    "NOC_REALTIME_ALLOW_ANONYMOUS": ("true", True),
    "NOC_REALTIME_HEARTBEAT": ("7.5", 7.5),
    "NOC_REALTIME_RETRY": ("1", 1.0),
    "NOC_REALTIME_HISTORY_EVENTS": ("500", 500),
    "NOC_REALTIME_HISTORY_BYTES": ("1000000", 1_000_000),
    "NOC_REALTIME_MAX_EVENT_BYTES": ("1024", 1024),
    "NOC_REALTIME_MAX_LAG": ("0.5", 0.5),
    "NOC_REALTIME_STREAM_LIFETIME": ("3600", 3600.0),
    "NOC_REALTIME_MAX_STREAMS_PER_USER": ("5", 5),
    "NOC_REALTIME_MAX_STREAMS": ("20000", 20_000),
    "NOC_REALTIME_MAX_LONG_POLLS": ("20", 20),
    "NOC_REALTIME_STREAM_LIMIT": ("evict", "evict"),
    "NOC_REALTIME_LEASE": ("4", 4.0),
    "NOC_REALTIME_TICKET_TTL": ("60", 60.0),
    "NOC_REALTIME_POLL_INTERVAL": ("2.5", 2.5),
    "NOC_REALTIME_ROLLOUT": ("12.34", 12.34),
    "NOC_REALTIME_HEALTH_GRACE": ("60", 60.0),
    "NOC_REALTIME_CORS_ORIGINS": (
        "https://a.example, http://B.example:8080",
        ("https://a.example", "http://b.example:8080"),
    ),
    "NOC_REALTIME_JWT_USER_CLAIM": ("uid", "uid"),
    "NOC_REALTIME_JWT_ROLE_CLAIM": ("group", "group"),
    "NOC_REALTIME_JWT_PERMISSIONS_CLAIM": ("scope", "scope"),
    "NOC_REALTIME_TRANSPORT": ("portable", "portable"),
    "NOC_REALTIME_NAMESPACE": ("noc:staging", "noc:staging"),
    "NOC_REALTIME_EMIT_ERRORS": ("raise", "raise"),
    "NOC_REALTIME_QUEUE_EVENTS": ("0", 0),
    "NOC_REALTIME_QUEUE_BYTES": ("0", 0),
    "NOC_REALTIME_COALESCE_TTL": ("2.5", 2.5),
    "NOC_REALTIME_COALESCE_STORE": ("own", "own"),
    "NOC_REALTIME_METRICS": ("off", "off"),
    "NOC_REALTIME_DEBUG_PAGE": ("1", True),
    "NOC_REALTIME_STRICT_TYPES": ("False", False),
    "NOC_REALTIME_INGEST_ALERTMANAGER_TOKEN": (TOKEN, Secret(TOKEN)),
    "NOC_REALTIME_INGEST_SECRET": (TOKEN, Secret(TOKEN)),
    "NOC_REALTIME_INGEST_PERMISSIONS": ("Incidents.Read, admin", ("Incidents.Read", "admin")),
    "NOC_REALTIME_INGEST_MAX_BYTES": ("65536", 65_536),
    "NOC_REALTIME_INGEST_WINDOW": ("60", 60.0),
    "NOC_REALTIME_INGEST_REPEAT": ("0", 0.0),
}


def test_every_key_is_read_from_strings_as_the_environment_has_them() -> None:
    """NOC_REALTIME_HEARTBEAT=15 in a unit file is a number."""
    assert set(STRINGS) == {key_of(field.name) for field in dataclasses.fields(Config)}
    config = Config.from_mapping({key: text for key, (text, _) in STRINGS.items()})
    for key, (_, meant) in STRINGS.items():
        value = getattr(config, key.removeprefix("NOC_REALTIME_").lower())
        assert (value, type(value)) == (meant, type(meant)), key


def test_the_hub_gets_what_is_configured() -> None:
    """A key that is read and then dropped would be believed to work."""
    config = Config.from_mapping({key: text for key, (text, _) in STRINGS.items()})
    options = config.hub_options
    assert (options.history_events, options.history_bytes) == (500, 1_000_000)
    assert (options.max_lag, options.heartbeat, options.retry) == (0.5, 7.5, 1.0)
    assert options.stream_lifetime == 3600.0
    assert options.rollout == Rollout(12.34, namespace="noc:staging")


def test_the_leases_get_what_is_configured() -> None:
    """A limit that is read and then dropped would be no limit."""
    config = Config.from_mapping({key: text for key, (text, _) in STRINGS.items()})
    assert config.lease_options == (5, 20_000, True, 4.0)


def test_keys_of_others_are_left_alone() -> None:
    """An app's configuration is full of them."""
    assert (
        Config.from_mapping(
            {"SECRET_KEY": "x", "NOC_REALTIME": 1, "NOC_REALTIME_NOVEL": 2, "HEARTBEAT": 0}
        )
        == Config()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("heartbeat", wrong) for wrong in ("soon", "", 0.0, True, "nan", "inf", None, [15])),
        *(("retry", wrong) for wrong in (-0.1, "inf", False)),
        *(("rollout", wrong) for wrong in (-0.01, 100.01, 0.001, "half", "nan", True, None)),
        *(("health_grace", wrong) for wrong in (-1.0, "inf")),
        *(("max_lag", wrong) for wrong in (0.0, "inf", 10**400)),
        *(("stream_lifetime", wrong) for wrong in (-1.0, "inf", float("inf"))),
        *(("history_events", wrong) for wrong in (0, 1.5, "1.5", "many", "", True, "inf", "1e4")),
        *(("history_bytes", wrong) for wrong in (0, "64MB")),
        *(("max_event_bytes", wrong) for wrong in (-1, 63)),
        *(("queue_events", wrong) for wrong in (-1, None)),
        *(("queue_bytes", wrong) for wrong in (-1, False)),
        *(("allow_anonymous", wrong) for wrong in ("maybe", "", 2, -1, None, 1.5, [], "Falsch")),
        *(("strict_types", wrong) for wrong in ("none", b"0")),
        *(("transport", wrong) for wrong in ("fast", "Auto", "", None)),
        *(("emit_errors", wrong) for wrong in ("ignore", True)),
        *(("metrics", wrong) for wrong in ("on", True)),
        *(("prefix", wrong) for wrong in ("events", "/events/", "", "/", "/a\n", "/<x>", "//a")),
        *(("namespace", wrong) for wrong in ("a{b}", "", "a b", "a\n", "x" * 65, "é")),
    ],
)
def test_a_wrong_value_is_named_with_its_key(name: str, value: Any) -> None:
    """At start, not at the first event."""
    with pytest.raises(ConfigError, match=f"^{key_of(name)} is {re.escape(repr(value))}; use "):
        Config.from_mapping({key_of(name): value})


@pytest.mark.parametrize("name", ["ingest_alertmanager_token", "ingest_secret"])
def test_a_secret_is_shown_by_no_repr_and_no_error(name: str) -> None:
    """Both end in logs, and so do the values of a traceback."""
    config = Config.from_mapping({key_of(name): TOKEN})
    assert TOKEN not in repr(config)
    assert getattr(config, name) == TOKEN
    for wrong in (TOKEN[:15], f"{TOKEN} ", f"{TOKEN}\n", f"{TOKEN}é"):
        with pytest.raises(ConfigError, match=f"^{key_of(name)} is too weak") as caught:
            Config.from_mapping({key_of(name): wrong})
        assert wrong.strip() not in str(caught.value)


@pytest.mark.parametrize("name", ["ingest_secret", "url"])
@pytest.mark.parametrize("wrong", [b"redis://:s3cret@h", 10**20])
def test_a_secret_of_another_type_is_not_shown_either(name: str, wrong: Any) -> None:
    """Services that keep secrets like to return bytes."""
    with pytest.raises(ConfigError, match=rf"^{key_of(name)} is a \w+; use a str\.$") as caught:
        Config.from_mapping({key_of(name): wrong})
    assert repr(wrong) not in str(caught.value)


def test_the_password_of_redis_is_shown_by_no_repr() -> None:
    """Which the values of a traceback are shown by."""
    config = Config.from_mapping({"NOC_REALTIME_URL": "redis://:s3cret@h"})
    assert "s3cret" not in repr(config)
    assert config.url == "redis://:s3cret@h"


def test_without_a_secret_nothing_is_ingested() -> None:
    """An empty variable of the environment is none."""
    assert not Config().ingests
    assert not Config.from_mapping({"NOC_REALTIME_INGEST_SECRET": ""}).ingests
    assert Config.from_mapping({"NOC_REALTIME_INGEST_SECRET": TOKEN}).ingests


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        *((value, True) for value in (True, 1, "1", "true", "TRUE", "Yes", "on")),
        *((value, False) for value in (False, 0, "0", "false", "False", "no", "OFF")),
    ],
)
@pytest.mark.parametrize("name", ["allow_anonymous", "strict_types"])
def test_words_for_true_and_false_are_understood(name: str, value: Any, meant: bool) -> None:
    """And `"False"` is not true, which would serve every stream to everyone."""
    assert getattr(Config.from_mapping({key_of(name): value}), name) is meant


def test_the_least_values_are_accepted() -> None:
    """A bound that an error names is itself inside."""
    config = Config.from_mapping(
        {
            "NOC_REALTIME_HEARTBEAT": 0.1,
            "NOC_REALTIME_RETRY": 0,
            "NOC_REALTIME_MAX_EVENT_BYTES": 64.0,
            "NOC_REALTIME_HISTORY_EVENTS": 1,
        }
    )
    assert (config.heartbeat, config.retry, config.history_events) == (0.1, 0.0, 1)
    assert isinstance(config.max_event_bytes, int)
