"""Framing: the literal bytes on the wire."""

from __future__ import annotations

import codecs
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.errors import EventError
from flask_noc_realtime.frame import LAST_CHUNK, chunk, control, frame, happened, unframe


class Message(NamedTuple):
    """An event as a page gets it."""

    last_event_id: str
    type: str
    data: str


class Browser:
    """The parser of WHATWG HTML, section 9.2.6, letter by letter and in its words."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.retry: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._after_cr = False
        self._data = self._type = self._last = ""

    def feed(self, part: bytes) -> None:
        for letter in self._decoder.decode(part):
            if letter == "\n" and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = letter == "\r"
            if letter in "\r\n":
                line, self._line = self._line, ""
                self._take(line)
            else:
                self._line += letter

    def _take(self, line: str) -> None:
        if line == "":
            self._dispatch()
            return
        if line[0] == ":":
            return
        field, _, value = line.partition(":")
        if value[:1] == " ":
            value = value[1:]
        if field == "event":
            self._type = value
        elif field == "data":
            self._data += value + "\n"
        elif field == "id":
            if "\0" not in value:
                self._last = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)

    def _dispatch(self) -> None:
        data, type = self._data, self._type
        self._data = self._type = ""
        if data:
            self.messages.append(Message(self._last, type or "message", data[:-1]))


def parse(stream: bytes) -> list[Message]:
    """Return what a browser makes of *stream*."""
    browser = Browser()
    browser.feed(stream)
    return browser.messages


def test_a_frame_is_these_bytes() -> None:
    """Position, type and data, and an empty line that dispatches them."""
    assert (
        frame(b'{"a":1}', type="incident.created", id="1-0")
        == b'id: 1-0\nevent: incident.created\ndata: {"a":1}\n\n'
    )


def test_a_control_event_is_these_bytes() -> None:
    """A retry comes first; a control event without id leaves the browser's position alone."""
    assert (
        control("stream.close", {"reason": "shutdown"}, retry=1500)
        == b'retry: 1500\nevent: stream.close\ndata: {"reason":"shutdown"}\n\n'
    )


def test_empty_data_still_dispatches() -> None:
    """Without a data field the browser drops the event."""
    assert frame(b"", type="a.b") == b"event: a.b\ndata: \n\n"


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
def test_lines_end_in_crlf_cr_and_lf(end: bytes) -> None:
    """Each line of data is a field of its own."""
    assert frame(b"a" + end + b"b") == b"data: a\ndata: b\n\n"


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\u0085", "\v", "\f", "\x1c"])
def test_lines_end_in_nothing_else(text: str) -> None:
    """str.splitlines would break the data here."""
    assert frame(f"a{text}b".encode()) == f"data: a{text}b\n\n".encode()


@pytest.mark.parametrize("bad", ["\r", "\n", "\0"])
def test_what_would_forge_a_field_is_refused(bad: str) -> None:
    """An id with a line end could carry a whole event of an attacker's."""
    with pytest.raises(EventError, match="CR, LF or NUL"):
        frame(b"", id=f"1{bad}data: x")
    with pytest.raises(EventError, match="CR, LF or NUL"):
        frame(b"", type=f"a{bad}b")


awkward = st.sampled_from("\r\n\0 :x\u2028\u2029\u0085\v\f\x1c\ufeff")
texts = st.text(awkward | st.characters(blacklist_categories=["Cs"]), max_size=20)
fields = st.text(
    st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), max_size=20
)


@given(st.lists(st.tuples(fields, fields, texts), max_size=5), st.lists(st.integers(0, 300)))
def test_what_is_framed_is_what_is_parsed(
    events: list[tuple[str, str, str]], cuts: list[int]
) -> None:
    """For any data, however the network cuts it, but that line ends become LF."""
    wire = b"".join(frame(data.encode(), type=type, id=id) for id, type, data in events)
    browser = Browser()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    for start, stop in pairwise(bounds):
        browser.feed(wire[start:stop])
    assert browser.messages == [
        Message(id, type or "message", data.replace("\r\n", "\n").replace("\r", "\n"))
        for id, type, data in events
    ]


def test_data_that_looks_like_fields_stays_data() -> None:
    """A log line can hold a whole event of an attacker's."""
    data = "x\n\nevent: stream.reset\rid: 9\r\n\r\ndata: y\n"
    wire = frame(data.encode(), type="log.added", id="1-0")
    assert wire == (
        b"id: 1-0\nevent: log.added\ndata: x\ndata: \ndata: event: stream.reset\n"
        b"data: id: 9\ndata: \ndata: data: y\ndata: \n\n"
    )
    assert [(m.last_event_id, m.type) for m in parse(wire)] == [("1-0", "log.added")]


def test_a_retry_is_milliseconds_and_no_id_keeps_the_last() -> None:
    """A browser that reconnects later still says where it was."""
    browser = Browser()
    browser.feed(frame(b"1", id="1-0"))
    browser.feed(control("stream.close", {"reason": "shutdown"}, retry=1500))
    assert browser.retry == 1500
    assert browser.messages[-1] == ("1-0", "stream.close", '{"reason":"shutdown"}')


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_chunks_carry_their_bodies_and_end_with_the_last(bodies: list[bytes]) -> None:
    """Whatever the bytes, none ends the response early."""
    wire = b"".join(map(chunk, bodies)) + LAST_CHUNK
    got = b""
    while True:
        head, _, wire = wire.partition(b"\r\n")
        size = int(head, 16)
        got += wire[:size]
        assert wire[size : size + 2] == b"\r\n"
        wire = wire[size + 2 :]
        if size == 0:
            break
    assert (got, wire) == (b"".join(bodies), b"")


def test_a_chunk_has_its_length_in_hexadecimal() -> None:
    """RFC 9112, section 7.1."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_nothing_is_no_chunk() -> None:
    """An empty chunk would end the response."""
    assert chunk(b"") == b""


one_line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))


@given(st.lists(st.tuples(st.text("0123456789-", min_size=1), one_line)))
def test_frames_are_taken_apart_to_ids_and_data(events: list[tuple[str, str]]) -> None:
    """As they were put together, for whoever wants them without a stream."""
    frames = [frame(data.encode(), type="log.added", id=id) for id, data in events]
    assert list(unframe(b"".join(frames))) == [(id, data.encode()) for id, data in events]


def test_when_an_event_happened_is_read_from_its_frame() -> None:
    """From the first one's envelope, whatever its data says."""
    data = b'{"type":"a.b","data":{"timestamp":"1999-01-01T00:00:00Z"},"timestamp":"%b"}'
    first = frame(data % b"1970-01-02T00:00:00.250000Z", type="a.b", id="1-1")
    second = frame(data % b"2026-01-02T00:00:00.250000Z", type="a.b", id="1-2")
    assert happened(first + second) == 86400.25
    assert happened(second + first) == 1767312000.25


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data: 1\n\n",
        control("heartbeat", {"position": "1-1"}),
        frame(b'{"timestamp":"2026-13-40T00:00:00.000000Z"}'),
        frame(b'{"timestamp":"1999-01-01T00:00:00.000000Z","data":1}'),
        b'data: {"timestamp":"1999-01-01T00:00:00.000000Z"}',
    ],
)
def test_an_event_that_does_not_say_when_it_happened_is_none(body: bytes) -> None:
    """Other versions may write to the same Redis."""
    assert happened(body) is None
