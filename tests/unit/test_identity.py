"""Identities, and how a ticket stands for one."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime import Identity
from flask_noc_realtime.auth import decode_ticket, encode_ticket
from flask_noc_realtime.errors import ConfigError, IdentityError

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)

names = st.text(min_size=1)
times = st.datetimes(
    min_value=datetime(2000, 1, 2),
    max_value=datetime(2100, 1, 1),
    timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=5, minutes=30))]),
)
identities = st.builds(
    Identity,
    user_id=st.none() | names,
    role=st.none() | names,
    permissions=st.frozensets(names),
    expires_at=st.none() | times,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_id": 7}, "Identity.user_id is 7"),
        ({"user_id": ""}, "Identity.user_id is ''"),
        ({"role": b"admin"}, "Identity.role is b'admin'"),
        ({"permissions": "incidents.read"}, "Identity.permissions is 'incidents.read'"),
        ({"permissions": None}, "Identity.permissions is None"),
        ({"permissions": ["a", ""]}, "pass non-empty str only"),
        ({"permissions": ["a", 1]}, "pass non-empty str only"),
        ({"expires_at": datetime(2026, 1, 1)}, "has no time zone"),
    ],
)
def test_a_wrong_identity_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    """When it is made: later it would only see nothing, or everything."""
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        Identity(**fields)


def test_permissions_may_be_any_collection() -> None:
    """They are kept as a set."""
    assert Identity(permissions=["b", "a", "b"]).permissions == frozenset("ab")  # type: ignore[arg-type]


def test_an_identity_says_how_long_it_is_good() -> None:
    """In seconds, in any time zone; None is for ever."""
    later = NOW.astimezone(timezone(timedelta(hours=-3))) + timedelta(seconds=90)
    assert Identity(expires_at=later).remaining(NOW) == 90.0
    assert Identity(expires_at=NOW).remaining(NOW + timedelta(seconds=1)) == -1.0
    assert Identity().remaining(NOW) is None


@given(identities, st.text())
def test_a_ticket_stands_for_all_of_an_identity(identity: Identity, position: str) -> None:
    """Whatever its names hold."""
    assert decode_ticket(encode_ticket(identity, position)) == (identity, position)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"ada"',
        b"[1,2,3,4,5]",
        b'["ada",null,"all",null,"1-1"]',
        b'["ada",null,[1],null,"1-1"]',
        b'["ada",null,[],"never","1-1"]',
        b'["ada",null,[],"2026-01-01T00:00:00","1-1"]',
        b'["",null,[],null,"1-1"]',
        b'["ada",null,[],null,"1-1","more"]',
        b"\xff",
        b"[" * 10_000,
    ],
)
def test_what_somebody_planted_stands_for_nobody(value: bytes) -> None:
    """An error that is answered with 401, and no other."""
    with pytest.raises(IdentityError, match="does not stand for an identity"):
        decode_ticket(value)


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_no_planted_value_breaks_the_worker(value: bytes) -> None:
    """It is an identity or an IdentityError."""
    try:
        identity, position = decode_ticket(value)
    except IdentityError:
        return
    assert isinstance(identity, Identity)
    assert isinstance(position, str)
