"""Which users have streams: a decision that is the same everywhere and for good."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.errors import ConfigError
from flask_noc_realtime.event import ROLLOUT, Rule, parse_rule, split_record
from flask_noc_realtime.rollout import MAX_NAMES, Rollout, place, record_of, rollout_of

USERS = st.text(min_size=1)
STEPS = st.integers(0, 10_000)
CONFIGURED = Rollout(5.0, namespace="live")


@pytest.mark.parametrize(
    ("namespace", "user", "expected"),
    [
        # What `printf '%s\0%s' noc ann | b2sum -l 64` prints.
        ("noc", "ann", 0x9E872984E067474E % 10_000),
        ("noc", "bob", 0xC3ED3D606BA2F370 % 10_000),
        ("live", "ann", 0xC1E8F8E1DA4D0D8F % 10_000),
        ("noc", "Zoë", 0xA42B5DACC7458456 % 10_000),
        ("noc", "7", 7196),
    ],
)
def test_a_place_is_the_same_on_every_machine_and_in_every_version(
    namespace: str, user: str, expected: int
) -> None:
    """As another program works it out: a change would move users without anybody's doing."""
    assert place(namespace, user) == expected


def test_the_percentage_is_taken_to_a_hundredth() -> None:
    """User 7 has place 7196 of 10,000: the first step that takes it in is 71.97."""
    assert not Rollout(71.96).includes("7")
    assert Rollout(71.97).includes("7")


@lru_cache
def a_user_in_each_place() -> tuple[str, ...]:
    """Return 10,000 users, each in another place."""
    users: dict[int, str] = {}
    for number in range(200_000):
        users.setdefault(place("noc", str(number)), str(number))
        if len(users) == 10_000:
            break
    return tuple(users.values())


@pytest.mark.parametrize("percent", [1.1, 0.29, 33.33, 50, 99.99])
def test_a_percentage_includes_that_many_places(percent: float) -> None:
    """No more and no fewer, also where the product is no whole number."""
    assert sum(map(Rollout(percent).includes, a_user_in_each_place())) == round(percent * 100)


@given(USERS, STEPS, STEPS)
def test_a_higher_percentage_only_ever_adds_users(user: str, one: int, other: int) -> None:
    """Whoever has a stream keeps it while the rollout goes on."""
    lower, higher = sorted((one, other))
    if Rollout(lower / 100).includes(user):
        assert Rollout(higher / 100).includes(user)


@given(USERS)
def test_nobody_is_in_at_0_and_everybody_at_100(user: str) -> None:
    """Whatever the user is called."""
    assert not Rollout(0).includes(user)
    assert Rollout(100).includes(user)


def test_users_are_spread_evenly_and_differently_in_each_namespace() -> None:
    """Not by their numbers, and not the same ones first in every app."""
    users = [f"user-{number}" for number in range(10_000)]
    here = {user for user in users if Rollout(20).includes(user)}
    there = {user for user in users if Rollout(20, namespace="other").includes(user)}
    assert 1800 < len(here) < 2200
    assert 1800 < len(there) < 2200
    assert 250 < len(here & there) < 550


def test_the_lists_count_before_the_percentage() -> None:
    """For those who try it first, and for those who must not."""
    assert Rollout(0, allow=["ada"]).includes("ada")  # type: ignore[arg-type]
    assert not Rollout(0, allow=["ada"]).includes("bob")  # type: ignore[arg-type]
    assert not Rollout(100, deny=["ada"]).includes("ada")  # type: ignore[arg-type]
    assert Rollout(100, deny=["ada"]).includes("bob")  # type: ignore[arg-type]


def test_who_has_no_id_is_in_only_when_all_are() -> None:
    """There is nothing to tell one such client from another by."""
    assert not Rollout(99.99).includes(None)
    assert Rollout(100, deny=["ada"]).includes(None)  # type: ignore[arg-type]


def test_a_user_is_in_one_of_two_cohorts() -> None:
    """So that they can be compared."""
    rollout = Rollout(0, allow=["ada"])  # type: ignore[arg-type]
    assert [rollout.cohort(user) for user in ("ada", "bob", None)] == [
        "stream",
        "polling",
        "polling",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({"percent": wrong}, "percent is") for wrong in (-0.01, 100.01, 0.005, True, "5", None)),
        ({"percent": float("nan")}, "percent is nan"),
        *(({"allow": wrong}, "allow is") for wrong in ("ada", [""], [7], [["ada"]], None)),
        ({"deny": [None]}, "deny is"),
        ({"deny": [str(n) for n in range(MAX_NAMES + 1)]}, "has 1001 users and 1000 are the limit"),
        ({"allow": ["ada", "bob"], "deny": ["bob"]}, "'bob' is on both lists"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    """With what would."""
    with pytest.raises(ConfigError, match=message):
        Rollout(**fields)


def rule(record: bytes) -> Rule:
    """Return the rule that travels."""
    return split_record(record)[0]


@given(STEPS, st.sets(USERS), st.sets(USERS))
def test_a_rollout_is_read_back_as_it_was_stored(
    steps: int, allow: set[str], deny: set[str]
) -> None:
    """In the namespace of whoever reads it; it travels as a notice that is about no user."""
    rollout = Rollout(steps / 100, frozenset(allow), frozenset(deny - allow), "live")
    sent = rule(record_of(rollout))
    assert (sent.type, sent.permissions) == (ROLLOUT, None)
    assert rollout_of(sent, CONFIGURED) == rollout


def test_without_a_rollout_the_configuration_counts() -> None:
    """It is the same object, by which one sees that nothing is stored."""
    assert rollout_of(rule(record_of(None)), CONFIGURED) is CONFIGURED


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "{}",
        "[1,[],[]]",
        "not JSON",
        '{"percent":"all","allow":[],"deny":[]}',
        '{"percent":5,"allow":"ada","deny":[]}',
        '{"percent":NaN,"allow":[],"deny":[]}',
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_what_is_no_rollout_is_refused(text: str) -> None:
    """By one error, whatever another version or program wrote."""
    with pytest.raises(ConfigError, match=r"^Not a rollout: "):
        rollout_of(Rule(ROLLOUT, None, text), CONFIGURED)


def test_a_version_that_knows_no_rollout_takes_one_for_an_event_nobody_sees() -> None:
    """While workers are replaced, old and new ones share a Redis."""
    header = record_of(Rollout(5)).partition(b"\n")[0].replace(b"stream.rollout", b"stream.novel")
    assert parse_rule(header).user_id == '{"percent": 5, "allow": [], "deny": []}'
