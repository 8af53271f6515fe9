"""The configuration: read once, checked, and clear about what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flask_noc_realtime.config import Config, key_of
from flask_noc_realtime.errors import ConfigError


def test_the_defaults_are_those_documented() -> None:
    """An app that sets nothing is served from memory, and closed."""
    config = Config.from_mapping({})
    assert (config.url, config.allow_anonymous, config.prefix) == (
        "memory://",
        False,
        "/api/v1/events",
    )


def test_every_key_is_read_from_strings_as_the_environment_has_them() -> None:
    """NOC_REALTIME_HEARTBEAT=15 in a unit file is a number."""
    default = Config()
    strings = {key_of(f.name): str(getattr(default, f.name)) for f in dataclasses.fields(Config)}
    assert Config.from_mapping(strings) == default


def test_keys_of_others_are_left_alone() -> None:
    """An app's configuration is full of them."""
    assert Config.from_mapping({"SECRET_KEY": "x", "NOC_REALTIME": 1}) == Config()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heartbeat", "soon"),
        ("heartbeat", 0),
        ("heartbeat", True),
        ("heartbeat", float("nan")),
        ("history_events", 0),
        ("history_events", 1.5),
        ("history_events", "many"),
        ("max_event_bytes", -1),
        ("allow_anonymous", "maybe"),
        ("allow_anonymous", 2),
        ("transport", "fast"),
        ("emit_errors", "ignore"),
        ("prefix", "events"),
        ("prefix", "/events/"),
        ("namespace", "a{b}"),
        ("namespace", ""),
        ("url", None),
    ],
)
def test_a_wrong_value_is_named_with_its_key(name: str, value: Any) -> None:
    """At start, not at the first event."""
    with pytest.raises(ConfigError, match=f"{key_of(name)} is"):
        Config.from_mapping({key_of(name): value})


@pytest.mark.parametrize(
    ("value", "meant"), [("1", True), ("off", False), (0, False), (True, True)]
)
def test_words_for_true_and_false_are_understood(value: Any, meant: bool) -> None:
    """And `"False"` is not true."""
    config = Config.from_mapping({"NOC_REALTIME_ALLOW_ANONYMOUS": value})
    assert config.allow_anonymous is meant
