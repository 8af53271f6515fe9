"""Keys: different values never meet, equal ones always do."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.errors import ConfigError
from flask_noc_realtime.key import canonical, digest

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


class Site(Enum):
    """A value with a name."""

    NORTH = 1


def typed(value: Any) -> Any:
    """Return *value* with its types spelled out, which `==` passes over."""
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [typed(item) for item in value]
    if isinstance(value, dict):
        return "dict", sorted((key, typed(item)) for key, item in value.items())
    return type(value).__name__, repr(value)


@given(values, values)
def test_values_have_one_form_exactly_when_they_are_the_same(one: Any, other: Any) -> None:
    """True is not 1, a list is not a tuple, and 1 is not "1"."""
    assert (canonical(one) == canonical(other)) == (repr(typed(one)) == repr(typed(other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["ab"]),
        (["a:1:b"], ["a", "b"]),
        (["str:1:a"], [["a"]]),
        (["a", ["b"]], [["a"], "b"]),
        ([b"a"], ["a"]),
        ([1], [True]),
        ([1], [1.0]),
        ([None], ["None"]),
        ([0.0], [-0.0]),
        ([{"a": "b"}], [{"ab": ""}]),
        ([{1, 2}], [frozenset({1, 2})]),
        ([Site.NORTH], ["tests.unit.test_key.Site.NORTH"]),
        ([date(2026, 1, 2)], [datetime(2026, 1, 2)]),
    ],
    ids=repr,
)
def test_no_separator_makes_two_keys_one(one: list[Any], other: list[Any]) -> None:
    """A hostile value would read what belongs to another."""
    assert digest(one) != digest(other)


def test_what_has_no_order_has_one_form() -> None:
    """A dict built in another order is the same question."""
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical({"x", "yy", "z"}) == canonical({"z", "x", "yy"})
    now = datetime(2026, 1, 2, tzinfo=timezone.utc)
    parts = [Decimal("1.0"), now, UUID(int=7), Site.NORTH]
    assert digest(parts) == digest(list(parts))


class Incident:
    """An object of the app's own."""


class Name(str):
    """A subclass may compare in its own way."""


@pytest.mark.parametrize("value", [Incident(), object, iter([]), Name("x")], ids=repr)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    """Its repr may hold an address, and its hash another meaning."""
    with pytest.raises(ConfigError, match="key=function"):
        digest([["deep", {"down": value}]])


def test_what_contains_itself_is_refused() -> None:
    """And not followed until the stack ends."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="contain themselves"):
        digest([loop])
