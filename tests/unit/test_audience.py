"""Audiences: the one function that says who sees what."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.audience import Audience, TypeFilter, Verdict
from flask_noc_realtime.errors import ParameterError
from flask_noc_realtime.event import Rule, parse_rule


def rule(
    type: str = "incident.created",
    permissions: list[str] | None = None,
    user_id: str | None = None,
) -> Rule:
    """Return the rule of an event."""
    return parse_rule(json.dumps([type, permissions, user_id]).encode())


@pytest.mark.parametrize(
    ("event", "held", "user_id", "seen"),
    [
        (rule(), [], None, True),
        (rule(permissions=["a", "b"]), ["b"], None, True),
        (rule(permissions=["a", "b"]), ["c"], None, False),
        (rule(permissions=["a"]), [], None, False),
        (rule(user_id="7"), [], "7", True),
        (rule(user_id="7"), ["a"], "8", False),
        (rule(user_id="7"), ["a"], None, False),
        (rule(permissions=["a"], user_id="7"), ["a"], "7", True),
        (rule(permissions=["a"], user_id="7"), [], "7", False),
        (rule(permissions=["a"], user_id="7"), ["a"], "8", False),
    ],
)
def test_permissions_and_user_decide(
    event: Rule, held: list[str], user_id: str | None, seen: bool
) -> None:
    """Any permission of the event, its user if it names one, and all when it names neither."""
    assert Audience(frozenset(held), TypeFilter(), user_id).sees(event) is seen


@pytest.mark.parametrize(
    ("types", "type", "matches"),
    [
        ("", "log.added", True),
        ("*", "log.added", True),
        ("log.added", "log.added", True),
        ("log.added", "log.added.twice", False),
        ("incident.*", "incident.status.changed", True),
        ("incident.*", "incidents.created", False),
        ("incident.status.*", "incident.status.changed", True),
        ("incident.status.*", "incident.created", False),
        (" incident.* , log.added ,", "log.added", True),
        ("incident.*,log.added", "server.status.changed", False),
    ],
)
def test_types_are_names_and_prefixes(types: str, type: str, matches: bool) -> None:
    """A wildcard stands for whole words at the end."""
    assert TypeFilter.parse(types).matches(type) is matches


@pytest.mark.parametrize(
    "types",
    [
        "incident.*.x",
        "*.created",
        "Incident.*",
        "a b",
        "a.b\n",
        "x" * 2000,
        ",".join(f"a.t{n}" for n in range(33)),
    ],
)
def test_other_filters_are_refused(types: str) -> None:
    """A filter that cannot match would be a stream that is silent for ever."""
    with pytest.raises(ParameterError):
        TypeFilter.parse(types)


def test_equal_filters_make_one_class_however_they_are_written() -> None:
    """Otherwise streams would share no bytes."""
    first, second = TypeFilter.parse("a.b,c.*,c.*"), TypeFilter.parse("c.* ,a.b")
    assert Audience(types=first) == Audience(types=second)
    assert hash(Audience(types=first)) == hash(Audience(types=second))


permissions = st.sampled_from("abc")
users = st.sampled_from(["7", "8"])
types = st.sampled_from(["incident.created", "incident.updated", "log.added"])
rules = st.builds(
    rule, types, st.none() | st.lists(permissions, min_size=1, unique=True), st.none() | users
)
filters = st.sampled_from(["", "incident.*", "log.added", "incident.created,log.*"])
audiences = st.builds(
    lambda held, filter, user: Audience(frozenset(held), TypeFilter.parse(filter), user),
    st.lists(permissions),
    filters,
    st.none() | users,
)


@given(audiences, rules)
def test_a_filter_narrows_and_never_widens(audience: Audience, event: Rule) -> None:
    """Whatever a client asks for, its rights stay what they are."""
    if audience.sees(event):
        assert Audience(audience.permissions, TypeFilter(), audience.user_id).sees(event)


@given(audiences, rules)
def test_the_class_and_the_user_together_decide_as_the_stream_does(
    audience: Audience, event: Rule
) -> None:
    """Sharing bytes by class leaks nothing and loses nothing."""
    verdict = audience.shared.verdict(event)
    private = verdict is Verdict.PRIVATE and event.user_id == audience.user_id
    assert audience.sees(event) == (verdict is Verdict.SEEN or private)
