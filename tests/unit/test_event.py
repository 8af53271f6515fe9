"""Events: what may be emitted, and how it travels."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from flask_noc_realtime.errors import EventError, PayloadTooLarge, UnknownTypeError
from flask_noc_realtime.event import (
    CATALOGUE,
    Catalogue,
    Details,
    Event,
    check_type,
    parse_rule,
    record_of,
    split_record,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)
LIMIT = 256 * 1024


def event(data: Any = None, **options: Any) -> Event:
    """Return an event at a fixed time."""
    return Event("incident.created", data, NOW, **options)


def test_the_envelope_is_type_data_and_utc_timestamp_on_one_line() -> None:
    """The browser gets these three and never who may see them."""
    made = event({"id": 7, "text": "é\n"}, permissions=("incidents.read",), user_id="7")
    assert (
        made.envelope(LIMIT)
        == (
            '{"type":"incident.created","data":{"id":7,"text":"é\\n"},'
            '"timestamp":"2026-01-02T03:04:05.000678Z"}'
        ).encode()
    )


def test_a_record_gives_back_rule_and_envelope() -> None:
    """What a broker carries says who may see it apart from what they see."""
    made = event({"id": 7}, permissions=["b", "a", "b"], user_id="7")
    rule, envelope = split_record(made.record(LIMIT))
    assert (rule.type, rule.permissions, rule.user_id) == (
        "incident.created",
        frozenset({"a", "b"}),
        "7",
    )
    assert envelope == made.envelope(LIMIT)
    assert b"permissions" not in envelope


# JSON joins two halves of a pair into one letter, so there are only first halves here.
letters = st.characters(blacklist_categories=["Cs"])
names = st.text(st.sampled_from('a7\n\r\0\u2028\ud800 "é') | letters, min_size=1)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(letters | st.sampled_from("\n\r\u2028\u0085")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=60)
@given(values, st.none() | st.lists(names, min_size=1, max_size=3), st.none() | names)
def test_whatever_is_recorded_is_read_back(
    data: Any, permissions: list[str] | None, user_id: str | None
) -> None:
    """Also names with line ends in them: they must not end the record's first line."""
    made = event(data, permissions=permissions, user_id=user_id)
    rule, envelope = split_record(made.record(LIMIT))
    assert rule.permissions == (None if permissions is None else frozenset(permissions))
    assert (rule.type, rule.user_id) == (made.type, user_id)
    assert json.loads(envelope)["data"] == data


def test_permissions_in_another_order_are_the_same_rule() -> None:
    """A set has no order, and each order would be judged anew by every class."""
    made = event(permissions=list("hgfedcbaa"))
    assert made.permissions == tuple("abcdefgh")
    assert made.record(LIMIT) == event(permissions=set("abcdefgh")).record(LIMIT)


def test_equal_headers_share_one_rule() -> None:
    """Audiences remember verdicts by rule, so rules are interned."""
    header = b'["incident.created",null,null]'
    assert parse_rule(header) is parse_rule(bytes(header))


@pytest.mark.parametrize(
    "record",
    [
        *(b"", b"{}\n{}", b"[]\n{}", b"7\n{}", b"null\n{}", b"\xff\n{}", b"[" * 100_000 + b"\n{}"),
        *(b'["a.b",null,null]', b'["a.b",null,null]\n{}\n{}', b'["a.b",null,null]\n{}\r'),
        *(b'["a.b",null]\n{}', b'["a.b",null,null,null]\n{}', b'{"a.b":1,"c":2,"d":3}\n{}'),
        *(b'["x",null,null]\n{}', b"[7,null,null]\n{}", b'["stream.reset",null,null]\n{}'),
        *(b'["a.b","admin",null]\n{}', b'["a.b",[7],null]\n{}', b'["a.b",[""],null]\n{}'),
        *(b'["a.b",{},null]\n{}', b'["a.b",[[]],null]\n{}', b'["a.b",false,null]\n{}'),
        *(b'["a.b",null,7]\n{}', b'["a.b",null,""]\n{}', b'["a.b",null,[]]\n{}'),
    ],
    ids=lambda record: repr(record[:30]),
)
def test_foreign_bytes_are_no_record(record: bytes) -> None:
    """Something else in the Redis stream must neither become an event nor stop those after it."""
    with pytest.raises(EventError, match="Not an event record"):
        split_record(record)


def test_common_values_of_services_are_converted() -> None:
    """Dates, UUIDs, decimals, enums and dataclasses occur in every service layer."""

    class Severity(Enum):
        HIGH = "high"

    @dataclass
    class Device:
        name: str
        since: date

    identifier = uuid.UUID(int=1)
    data = {
        "at": NOW,
        "id": identifier,
        "load": Decimal("0.5"),
        "severity": Severity.HIGH,
        "device": Device("core1", date(2026, 1, 2)),
    }
    assert json.loads(event(data).envelope(LIMIT))["data"] == {
        "at": "2026-01-02T03:04:05.000678+00:00",
        "id": str(identifier),
        "load": "0.5",
        "severity": "high",
        "device": {"name": "core1", "since": "2026-01-02"},
    }


@dataclass
class Holder:
    """Something a service might send by mistake."""

    owner: object


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"devices": [1, 2, 3, {"owner": object()}]}, r"data\.devices\[3\]\.owner is a object"),
        ({"load": float("nan")}, r"data\.load is nan"),
        ({"text": "\ud800"}, r"data\.text holds half a surrogate pair"),
        ({"text": {"\udfff": 1}}, r"data\.text has a key that holds half a surrogate pair"),
        ({"\ud800": object()}, r"data\.\\ud800 is a object"),
        ({"by": {(1, 2): 3}}, r"data\.by has a key that is not a string"),
        ({"by": {(1, 2): object()}}, r"data\.by\.\(1, 2\) is a object"),
        ({"load": [0.5, {"now": float("inf")}]}, r"data\.load\[1\]\.now is inf"),
        ({"seen": ({"in": {1, 2}},)}, r"data\.seen\[0\]\.in is a set"),
        ({"raw": b"x"}, r"data\.raw is a bytes; convert it"),
        ({"x": Holder(object())}, r"data\.x\.owner is a object"),
        (object(), r"data is a object"),
    ],
)
def test_data_that_is_not_json_is_refused_with_its_key_path(data: Any, path: str) -> None:
    """The developer must find the value in a payload of hundreds."""
    with pytest.raises(EventError, match=path) as caught:
        event(data).envelope(LIMIT)
    assert str(caught.value).isprintable()


def test_data_that_contains_itself_is_refused() -> None:
    """A loop of references must not take the service down."""
    loop: list[Any] = []
    loop.append({"again": loop})
    holder = Holder(None)
    holder.owner = holder
    for data in (loop, holder, {"deep": [loop]}):
        with pytest.raises(EventError, match="contains itself"):
            event(data).envelope(LIMIT)


def test_data_nested_too_deeply_is_refused() -> None:
    """An EventError that services can catch, and no RecursionError."""
    data: Any = None
    for _ in range(100_000):
        data = [data]
    with pytest.raises(EventError, match="nested too deeply"):
        event(data).envelope(LIMIT)


def test_the_limit_counts_the_bytes_of_the_envelope() -> None:
    """Exactly the limit passes, one more does not."""
    size = len(event("").envelope(LIMIT))
    assert len(event("x" * (LIMIT - size)).envelope(LIMIT)) == LIMIT
    with pytest.raises(PayloadTooLarge, match=r"262145 bytes and the limit is 262144.*MAX_EVENT"):
        event("x" * (LIMIT - size + 1)).envelope(LIMIT)


def test_ten_megabytes_are_refused() -> None:
    """A payload like this would be sent to every browser."""
    with pytest.raises(PayloadTooLarge, match=r"'incident\.created' takes 100\d{5} bytes.*fetch"):
        event("x" * 10_000_000).envelope(LIMIT)


@pytest.mark.parametrize(
    "permissions",
    [[], (), frozenset(), {}, "incidents.read", b"a", [""], [1], ["a", None], 7, iter(["a"])],
)
def test_unclear_permissions_are_refused(permissions: Any) -> None:
    """An empty list computed by mistake must not mean everyone."""
    with pytest.raises(EventError, match="permissions"):
        event(permissions=permissions)


@pytest.mark.parametrize("user_id", ["", 7])
def test_unclear_users_are_refused(user_id: Any) -> None:
    """An int never equals the str of an identity, and nobody would see the event."""
    with pytest.raises(EventError, match="user_id"):
        event(user_id=user_id)


class Nowhere(tzinfo):
    """A zone that does not know its offset."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None


@pytest.mark.parametrize("zone", [None, Nowhere()])
def test_a_time_without_zone_is_refused(zone: tzinfo | None) -> None:
    """A browser would read it in its own zone."""
    with pytest.raises(EventError, match=r"timestamp of 'incident\.created' has no time zone"):
        Event("incident.created", None, datetime(2026, 1, 2, tzinfo=zone))


@pytest.mark.parametrize("timestamp", ["2026-01-02T03:04:05Z", 1767323045.0, date(2026, 1, 2)])
def test_a_time_that_is_no_datetime_is_refused(timestamp: Any) -> None:
    """An error of the type of all others, that services can catch."""
    with pytest.raises(EventError, match=r"timestamp of .* is .* pass a datetime"):
        Event("incident.created", None, timestamp)


def test_a_type_that_is_more_than_a_str_is_sent_as_its_text() -> None:
    """Services name theirs in an enum, and markup escapes what it is added to."""

    class Kind(str, Enum):
        CREATED = "incident.created"

    plain = record_of("incident.created", 7, Details(timestamp=NOW), LIMIT)
    for type in (Kind.CREATED, Markup("incident.created")):
        assert record_of(type, 7, Details(timestamp=NOW), LIMIT) == plain


def test_a_time_in_another_zone_is_sent_in_utc() -> None:
    """All browsers then sort the same text in the same order."""
    there = NOW.astimezone(timezone(timedelta(hours=-5)))
    assert Event("incident.created", None, there).envelope(LIMIT) == event().envelope(LIMIT)


@pytest.mark.parametrize(
    "type",
    [
        *("", "incident", "Incident.created", "incident.", ".created", "incident created"),
        *("a.b\n", "a.b\r", "a\r.b", "a\0.b", "a.b\0", "a..b", "incident.*", "é.b", "a.٣"),
        *("a." + "b" * 127, None, 7, b"a.b", ["a.b"], "\ud800"),
    ],
    ids=lambda type: f"{type!r:.20}",
)
def test_malformed_types_are_refused(type: Any) -> None:
    """CR, LF and NUL would forge fields, and wildcards would match themselves."""
    for lenient in (Catalogue(strict=False).register, Catalogue(strict=False).check):
        with pytest.raises(EventError, match="is not an event type"):
            lenient(type)
    with pytest.raises(EventError, match="is not an event type"):
        Event(type, None, NOW)


@pytest.mark.parametrize("type", ["stream.open", "stream.reset", "stream.close"])
def test_control_events_cannot_be_emitted(type: str) -> None:
    """A forged reset would make every browser fetch at once."""
    for lenient in (Catalogue(strict=False).register, Catalogue(strict=False).check):
        with pytest.raises(EventError, match="control event"):
            lenient(type)
    with pytest.raises(EventError, match="control event"):
        Event(type, None, NOW)


def test_the_longest_type_is_accepted() -> None:
    """128 characters, which is what the error says."""
    assert check_type("a." + "b" * 126) == "a." + "b" * 126


def test_the_catalogue_is_that_of_the_product() -> None:
    """Browsers listen to these names: a change breaks pages."""
    assert Catalogue().types() == (
        "automation.completed",
        "automation.started",
        "incident.created",
        "incident.status.changed",
        "incident.updated",
        "log.added",
        "notification.sent",
        "server.status.changed",
    )


def test_unknown_types_are_refused_with_the_known_ones() -> None:
    """A typing error would be an event nobody listens to."""
    with pytest.raises(UnknownTypeError, match=r"'incident\.craeted'.*register_type") as caught:
        Catalogue().check("incident.craeted")
    assert ", ".join(CATALOGUE) in str(caught.value)


def test_registered_types_and_a_lenient_catalogue_are_accepted() -> None:
    """Apps have events of their own."""
    catalogue = Catalogue()
    catalogue.register("link.flapped")
    catalogue.check("link.flapped")
    assert catalogue.types() == tuple(sorted([*CATALOGUE, "link.flapped"]))
    Catalogue(strict=False).check("any.thing")
    with pytest.raises(EventError):
        Catalogue(strict=False).check("not a type")
