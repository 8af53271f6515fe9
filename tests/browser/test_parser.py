"""How the browser's module reads a stream: WHATWG HTML, section 9.2.6, case by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.network import Network

pytestmark = pytest.mark.browser

SOURCES = Path(__file__).parents[2] / "flask_noc_realtime/static/src"

Event = tuple[str, str, str]
"""Type, data and id."""

# Each is read whole, letter by letter, and cut in two at every place.
PARSE = """async (cases) => {
  const { EventParser } = await import("/api/v1/events/client.js");
  const parse = (pieces) => {
    const events = [];
    const parser = new EventParser(({ type, data, id }) => events.push([type, data, id]));
    for (const piece of pieces) parser.feed(piece);
    return events;
  };
  return cases.map((text) => {
    const whole = JSON.stringify(parse([text]));
    const ways = [[...text]];
    const step = Math.ceil(text.length / 200);
    for (let at = 0; at <= text.length; at += step) ways.push([text.slice(0, at), text.slice(at)]);
    const other = ways.find((pieces) => JSON.stringify(parse(pieces)) !== whole);
    return { events: JSON.parse(whole), other: other ?? null };
  });
}"""

RETRIES = """async (text) => {
  const { EventParser } = await import("/api/v1/events/client.js");
  const retries = [];
  new EventParser(() => {}, (retry) => retries.push(retry)).feed(text);
  return retries;
}"""

LONG = "x" * 2048


def message(data: str, id: str = "") -> Event:
    """Return an event without a type."""
    return ("message", data, id)


RULES: dict[str, tuple[str, list[Event]]] = {
    "one line": ("data: a\n\n", [message("a")]),
    "several lines": ("data: a\ndata: b\n\n", [message("a\nb")]),
    "no space after the colon": ("data:a\n\n", [message("a")]),
    "one space is taken away": ("data:  a\n\n", [message(" a")]),
    "a tab is not": ("data:\ta\n\n", [message("\ta")]),
    "CRLF": ("data: a\r\ndata: b\r\n\r\n", [message("a\nb")]),
    "CR": ("data: a\rdata: b\r\r\n", [message("a\nb")]),
    "all line ends at once": ("data: a\rdata: b\ndata: c\r\n\n", [message("a\nb\nc")]),
    "no other line ends": ("data: a\u2028\x0c\x85b\n\n", [message("a\u2028\x0c\x85b")]),
    "no data is no event": ("event: x\nid: 1\n\ndata: a\n\n", [message("a", "1")]),
    "empty data is one": ("data\n\ndata:\n\n", [message(""), message("")]),
    "two empty lines of data": ("data\ndata\n\n", [message("\n")]),
    "an event that does not end": ("data: a\n\ndata: b\n", [message("a")]),
    "a comment": (": a\n:\ndata: b\n\n", [message("b")]),
    "a type": ("event: x\ndata: a\n\ndata: b\n\n", [("x", "a", ""), message("b")]),
    "the last type counts": ("event: x\nevent: y\ndata: a\n\n", [("y", "a", "")]),
    "an empty type is none": ("event: x\nevent\ndata: a\n\n", [message("a")]),
    "an id stays": ("id: 1\n\ndata: a\n\n", [message("a", "1")]),
    "an empty id is one": ("id: 1\n\nid\ndata: a\n\n", [message("a")]),
    "an id with NUL is none": ("id: 1\nid: 2\x002\ndata: a\n\n", [message("a", "1")]),
    "names are case-sensitive": (
        "Data: a\nDATA: b\n data: c\ndata: d\n\n",
        [message("d")],
    ),
    "unknown names are ignored": ("datas: a\nfoo\ndata: b\n\n", [message("b")]),
    "a leading mark": ("\ufeffdata: a\n\n", [message("a")]),
    "one leading mark only": ("\ufeff\ufeffdata: a\n\ndata: b\n\n", [message("b")]),
    "a mark amid": ("data: a\n\n\ufeffdata: b\n\n", [message("a")]),
    "a colon in the value": ("data: a: b\n\n", [message("a: b")]),
    "beyond the basic plane": ("data: \U0001f6a8\n\n", [message("\U0001f6a8")]),
}

# What web-platform-tests check under the same names, in eventsource/.
FORMATS: dict[str, tuple[str, list[Event]]] = {
    "format-bom": (
        "\ufeffdata:1\n\n\ufeffdata:2\n\ndata:3\n\n",
        [message("1"), message("3")],
    ),
    "format-bom-2": (
        "\ufeff\ufeffdata:1\n\ndata:2\n\ndata:3\n\n",
        [message("2"), message("3")],
    ),
    "format-comments": (
        f"data:1\r:\0\n:\r\ndata:2\n:{LONG}\rdata:3\n:data:no\r:{LONG}\ndata:4\n\n",
        [message("1\n2\n3\n4")],
    ),
    "format-data-before-final-empty-line": (
        "retry:1000\ndata:test1\n\nid:test\ndata:test2",
        [message("test1")],
    ),
    "format-field-data": (
        "data:\n\ndata\ndata\n\ndata:test\n\n",
        [message(""), message("\n"), message("test")],
    ),
    "format-field-event": (
        "event:test\ndata:x\n\ndata:x\n\n",
        [("test", "x", ""), message("x")],
    ),
    "format-field-event-empty": ("event: \ndata:data\n\n", [message("data")]),
    "format-field-id": ("id: \u2026\ndata: 1\n\n", [message("1", "\u2026")]),
    "format-field-id-2": (
        "id: a\ndata:1\n\ndata:2\n\nid\ndata:3\n\ndata:4\n\n",
        [message("1", "a"), message("2", "a"), message("3"), message("4")],
    ),
    "format-field-id-3": (
        "id: a\n\nid: b\n\nevent: x\n\ndata:1\n\nid:\n\ndata:2\n\n",
        [message("1", "b"), message("2")],
    ),
    "format-field-id-null": (
        "".join(
            f"id:7\nid: {id}\ndata:x\n\n" for id in ("\0\0", "x\0", "\0x", "x\0x", " \0", "\x00 ")
        ),
        [message("x", "7")] * 6,
    ),
    "format-field-parsing": (
        "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n"
        " data:32\ndata:4\n\n",
        [message("\0\n 2\n1\n3\n\n4")],
    ),
    "format-field-unknown": (
        "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacomment\ndata:test\n\n",
        [message("test\n\ntest")],
    ),
    "format-leading-space": ("data:\ttest\rdata: \ndata:test\n\n", [message("\ttest\n\ntest")]),
    "format-newlines": ("data:test\r\ndata\ndata:test\r\n\r\n", [message("test\n\ntest")]),
    "format-null-character": ("data:\0\n\n\n\n", [message("\0")]),
    "format-utf-8": ("data:ok\u2026\n\n", [message("ok\u2026")]),
}


def test_a_stream_is_read_by_the_rules_of_the_specification(network: Network) -> None:
    """Whole, letter by letter, and cut anywhere."""
    cases = {**RULES, **FORMATS}
    parsed = network.page.evaluate(PARSE, [text for text, _ in cases.values()])
    for (name, (_, events)), found in zip(cases.items(), parsed, strict=True):
        assert found["events"] == [list(event) for event in events], name
        assert found["other"] is None, name


RETRY_FORMATS = {
    "format-field-retry": ("retry:03000\ndata:x\n\n", [3000]),
    "format-field-retry-bogus": ("retry:3000\nretry:1000x\ndata:x\n\n", [3000]),
    "format-field-retry-empty": ("retry\ndata:test\n\n", []),
    "digits": ("retry: 10\nretry: 1x\nretry:\nretry: -5\nretry: 1.5\nretry:7\n\n", [10, 7]),
}


def test_a_retry_is_digits_only(network: Network) -> None:
    """What is not is ignored."""
    for name, (text, retries) in RETRY_FORMATS.items():
        assert network.page.evaluate(RETRIES, text) == retries, name


KINDS = {
    "plain": ("text/event-stream", True),
    "format-mime-trailing-semicolon": ("text/event-stream;", True),
    "format-mime-valid-bogus": ("text/event-stream;x=bogus", True),
    "format-utf-8": ("Text/Event-Stream; charset=windows-1252", True),
    "format-mime-bogus": ("x bogus", False),
    "a longer name": ("text/event-streams", False),
    "another": ("text/plain", False),
}


def test_only_a_stream_is_read_and_always_as_utf_8(network: Network) -> None:
    """Whatever its media type says beyond its name."""
    opened = {"position": "a-1", "retry": 200, "heartbeat": 400}
    event = {"type": "log.added", "data": {"n": "ok\u2026"}, "timestamp": ""}
    body = "".join(
        f"id: {id}\nevent: {type}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        for id, type, data in (("a-1", "stream.open", opened), ("a-2", "log.added", event))
    )
    for name, (kind, read) in KINDS.items():
        network.page.unroute_all()
        network.answer("**/events/stream*", headers={"Content-Type": kind}, body=body.encode())
        network.connect()
        network.page.wait_for_function("(read) => (read ? numbers : states).length > 0", arg=read)
        network.page.evaluate("stream.close()")
        assert network.page.evaluate("numbers") == (["ok\u2026"] if read else []), name
        assert network.states[0] == ("live" if read else "reconnecting"), name


@pytest.fixture
def ring(network: Network) -> Any:
    """Return a page that has the ring's module."""
    network.page.route("**/src/*.js", lambda route: route.fulfill(path=SOURCES / "ring.js"))
    network.page.evaluate("async () => Object.assign(window, await import('/src/ring.js'))")
    return network.page


ORDERS: list[tuple[str, str, int | None]] = [
    ("1700000000000-9", "1700000000000-10", -1),
    ("1700000000001-0", "1700000000000-10", 1),
    ("1700000000000-0", "1700000000000-0", 0),
    ("a1b2c3d4e5f6-9", "a1b2c3d4e5f6-10", -1),
    ("a1b2c3d4e5f6-9", "f6e5d4c3b2a1-1", None),
    ("123456789012-9", "210987654321-1", None),
    ("0-0", "1700000000000-0", None),
]


def test_positions_are_compared_where_that_is_sure(ring: Any) -> None:
    """Those of Redis, and those of one process; of two processes only the server can tell."""
    for one, other, expected in ORDERS:
        for sign, pair in ((1, [one, other]), (-1, [other, one])):
            found = ring.evaluate("([one, other]) => Math.sign(order(one, other)) + ''", pair)
            assert found == ("NaN" if expected is None else str(sign * expected)), pair


def test_a_ring_knows_what_follows_a_position_or_that_it_does_not(ring: Any) -> None:
    """It keeps the newest events, so many and so large, and says where it begins."""
    found = ring.evaluate(
        """() => {
          const ring = new Ring("a-0");
          for (let n = 1; n <= 3; n++) ring.add({ id: `a-${n}` }, 10);
          ring.mark("a-5");
          const ids = (position) => ring.after(position)?.map(({ id }) => id) ?? null;
          const few = ["a-0", "a-2", "a-4", "a-9", "b-1"].map(ids);
          for (let n = 6; n <= 3000; n++) ring.add({ id: `a-${n}` }, 10);
          const many = [ids("a-0"), ids(ring.start).length, ring.start];
          for (let n = 3001; n <= 3010; n++) ring.add({ id: `a-${n}` }, 1024 * 1024);
          const large = ids(ring.start);
          ring.reset("b-1");
          return { few, many, large, anew: [ids("a-3010"), ids("b-1")] };
        }"""
    )
    assert found["few"] == [["a-1", "a-2", "a-3"], ["a-3"], [], [], None]
    assert found["many"] == [None, 1024, "a-1976"]
    assert found["large"] == ["a-3007", "a-3008", "a-3009", "a-3010"]
    assert found["anew"] == [None, []]
