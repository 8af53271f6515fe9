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
        "incident",
        "heartbeat",
        "incident*",
        "incident.",
        "incident..created",
        ".created",
        "**",
        "incident.**",
        "incident.*.x",
        "*.created",
        "log.added,incident",
        "Incident.*",
        "a b",
        "a.b\n",
        "a.b;c.d",
        "\ta.b",
        "a.\u0663",
        "a.\0",
    ],
)
def test_other_filters_are_refused(types: str) -> None:
    """A filter that cannot match would be a stream that is silent for ever."""
    with pytest.raises(ParameterError, match=r"types has .*incident\.created or incident\.\*"):
        TypeFilter.parse(types)


def test_a_filter_has_at_most_32_patterns() -> None:
    """Each is compared with every type; repetitions do not count."""
    most = [f"a.t{number}" for number in range(32)]
    assert TypeFilter.parse(",".join([*most, *most])).names == frozenset(most)
    with pytest.raises(ParameterError, match="more than 32 patterns"):
        TypeFilter.parse(",".join([*most, "a.t32"]))


def test_a_filter_has_at_most_1024_characters() -> None:
    """It is kept as long as the stream."""
    longest = "a." + "b" * 1022
    assert TypeFilter.parse(longest).matches(longest)
    with pytest.raises(ParameterError, match="longer than 1024 characters"):
        TypeFilter.parse(longest + "b")


def test_an_error_quotes_no_more_than_a_line_of_the_filter() -> None:
    """It is sent back to whoever wrote it, and logged."""
    with pytest.raises(ParameterError) as caught:
        TypeFilter.parse("\n" * 1000)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("types", ["", " ", ",", " , ,", "*", "log.added,*", "*,*"])
def test_all_types_are_one_class_however_they_are_written(types: str) -> None:
    """Otherwise streams would share no bytes."""
    assert TypeFilter.parse(types) == TypeFilter()


@pytest.mark.parametrize(
    ("event", "held", "verdict"),
    [
        (rule(), [], Verdict.SEEN),
        (rule("log.added"), [], Verdict.HIDDEN),
        (rule(permissions=["a"]), ["a"], Verdict.SEEN),
        (rule(permissions=["a"]), ["b"], Verdict.HIDDEN),
        (rule(user_id="7"), [], Verdict.PRIVATE),
        (rule("log.added", user_id="7"), [], Verdict.HIDDEN),
        (rule(permissions=["a"], user_id="7"), ["a"], Verdict.PRIVATE),
        (rule(permissions=["a"], user_id="7"), ["b"], Verdict.HIDDEN),
    ],
)
def test_a_class_judges_for_all_its_users(event: Rule, held: list[str], verdict: Verdict) -> None:
    """PRIVATE leaves it to the user alone: rights and filter are met already."""
    shared = Audience(frozenset(held), TypeFilter.parse("incident.*"))
    # The second answer is remembered, the first is not.
    assert (shared.verdict(event), shared.verdict(event)) == (verdict, verdict)


def test_a_stream_of_a_user_leaves_nothing_open() -> None:
    """PRIVATE is an answer for classes: of a single stream one knows whose it is."""
    seven = Audience(user_id="7")
    assert seven.verdict(rule(user_id="7")) is Verdict.SEEN
    assert seven.verdict(rule(user_id="8")) is Verdict.HIDDEN


def test_remembered_verdicts_stay_right_however_many_rules_there_are() -> None:
    """Events for single users are each a rule of their own, without end."""
    audience = Audience(user_id="7")
    for number in range(10_000):
        assert audience.sees(rule(user_id=str(number))) is (number == 7)
    assert len(audience._verdicts) < 5_000


def test_the_class_of_a_user_is_that_of_all_with_the_same_rights() -> None:
    """Who the user is does not split it; rights and filter do."""
    seven = Audience(frozenset("a"), TypeFilter.parse("log.*"), "7")
    assert seven.shared == Audience(frozenset("a"), TypeFilter.parse("log.*"), "8").shared
    assert seven.shared != Audience(frozenset("b"), TypeFilter.parse("log.*"), "7").shared
    assert seven.shared != Audience(frozenset("a"), TypeFilter.parse("log.added"), "7").shared


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
    """Whatever a client asks for: what it has the right to, and asked for, and nothing else."""
    entitled = Audience(audience.permissions, TypeFilter(), audience.user_id).sees(event)
    assert audience.sees(event) == (entitled and audience.types.matches(event.type))


@given(audiences, rules, permissions)
def test_more_permissions_never_hide_an_event(
    audience: Audience, event: Rule, another: str
) -> None:
    """A permission is a right to see and never a restriction."""
    promoted = Audience(audience.permissions | {another}, audience.types, audience.user_id)
    assert promoted.sees(event) >= audience.sees(event)


@given(audiences, rules)
def test_the_class_and_the_user_together_decide_as_the_stream_does(
    audience: Audience, event: Rule
) -> None:
    """Sharing bytes by class leaks nothing and loses nothing."""
    verdict = audience.shared.verdict(event)
    private = verdict is Verdict.PRIVATE and event.user_id == audience.user_id
    assert audience.sees(event) == (verdict is Verdict.SEEN or private)
