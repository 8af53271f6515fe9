"""Notices: which streams were told to leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.event import INVALIDATE, NOTICES, Rule, notice, parse_rule
from flask_noc_realtime.notice import Invalidations, Notices

NAMES = ("ada", "bob", "1:1", "1:2")
ENDINGS = sorted(type for type, reason in NOTICES.items() if reason is not None)


def rule(type: str, about: str) -> Rule:
    """Return the rule of a notice."""
    return parse_rule(notice(type, about).partition(b"\n")[0])


def test_a_stream_ends_by_what_came_after_it_was_let_in() -> None:
    """Not by what came before, and not by what is about others."""
    notices = Notices()
    notices.add(rule("stream.refresh", "ada"), 5)
    assert notices.since(4, "ada", None) == "refresh"
    assert notices.since(5, "ada", None) is None
    assert notices.since(4, "bob", None) is None
    assert notices.since(4, None, None) is None


def test_an_eviction_is_about_a_lease_and_a_disconnection_about_a_user() -> None:
    """A user whose name is a lease's is not mixed up with it."""
    notices = Notices()
    notices.add(rule("stream.evict", "1:1"), 1)
    assert notices.since(0, "ada", "1:1") == "evicted"
    assert notices.since(0, "1:1", None) is None
    notices.add(rule("stream.disconnect", "1:2"), 2)
    assert notices.since(0, "ada", "1:2") is None
    assert notices.since(0, "1:2", None) == "disconnected"


def test_an_event_is_no_notice() -> None:
    """Whoever it is for."""
    notices = Notices()
    notices.add(Rule("incident.created", None, "ada"), 3)
    assert notices.newest == 0
    assert notices.since(0, "ada", None) is None


def test_a_stream_that_a_forgotten_notice_may_have_been_about_comes_again() -> None:
    """Better a stream too many that returns than one that goes on without rights."""
    notices = Notices(limit=2)
    for ordinal, user in enumerate(("ada", "bob", "cyd"), 1):
        notices.add(rule("stream.disconnect", user), ordinal)
    assert notices.since(0, "ada", None) == "refresh"
    assert notices.since(0, "dan", None) == "refresh"
    assert notices.since(0, None, None) is None
    assert notices.since(1, "dan", None) is None
    assert notices.since(1, "cyd", None) == "disconnected"


def test_what_was_said_longest_ago_is_forgotten_first() -> None:
    """Forgetting what was just said would have every stream let in before come again."""
    notices = Notices(limit=3)
    for ordinal, user in enumerate(("ada", "bob", "cyd", "ada", "dan"), 1):
        notices.add(rule("stream.disconnect", user), ordinal)
    assert notices.since(3, "ada", None) == "disconnected"
    assert notices.since(3, "eve", None) is None


def test_an_invalidation_ends_no_stream_and_counts_for_what_it_names() -> None:
    """A user may be called as a function is."""
    notices, invalidations = Notices(), Invalidations()
    invalidate = rule(INVALIDATE, "app.stats#1 app.stats#2")
    notices.add(invalidate, 1)
    assert notices.newest == 0
    assert notices.since(0, "app.stats#1 app.stats#2", "app.stats#1") is None
    before = {name: invalidations.of(name) for name in ("app.stats#1", "app.stats#3")}
    invalidations.add(invalidate)
    invalidations.add(rule("stream.disconnect", "app.stats#3"))
    assert invalidations.of("app.stats#1") != before["app.stats#1"]
    assert invalidations.of("app.stats#3") == before["app.stats#3"]
    invalidations.count_all()
    assert invalidations.of("app.stats#3") != before["app.stats#3"]


@given(
    st.lists(st.tuples(st.sampled_from(ENDINGS), st.sampled_from(NAMES))),
    st.integers(0, 20),
    st.sampled_from((None, *NAMES)),
    st.sampled_from((None, *NAMES)),
)
def test_what_ends_a_stream_is_the_newest_notice_about_its_user_or_its_lease(
    given: list[tuple[str, str]], since: int, user: str | None, lease: str | None
) -> None:
    """By a model that remembers everything; the user's counts before the lease's."""
    notices = Notices()
    for ordinal, (type, about) in enumerate(given, 1):
        notices.add(rule(type, about), ordinal)
    later = given[since:]
    of_user = [type for type, about in later if about == user and type != "stream.evict"]
    of_lease = [type for type, about in later if about == lease and type == "stream.evict"]
    expected = NOTICES[(of_user or of_lease)[-1]] if of_user or of_lease else None
    assert notices.since(since, user, lease) == expected
    assert notices.newest == len(given)
