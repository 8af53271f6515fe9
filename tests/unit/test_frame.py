"""Framing: the literal bytes on the wire."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.errors import EventError
from flask_noc_realtime.frame import chunk, control, frame


def parse(stream: bytes) -> list[tuple[str | None, str | None, str]]:
    """Parse by the rules of WHATWG HTML, section 9.2.6, written anew from its text."""
    events = []
    type: str | None = None
    last: str | None = None
    data: list[str] = []
    for line in re.split("\r\n|\r|\n", stream.decode()):
        if line == "":
            if data:
                events.append((last, type, "\n".join(data)))
            type, data = None, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            type = value
        elif name == "id":
            last = value
    return events


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


@given(
    data=st.text(),
    type=st.text(
        st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), min_size=1
    ),
    id=st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"])),
)
def test_what_is_framed_is_what_is_parsed(data: str, type: str, id: str) -> None:
    """For any data, but that line ends become LF."""
    data = data.encode("utf-8", "replace").decode()
    wire = frame(data.encode(), type=type, id=id)
    assert parse(wire) == [(id, type, re.sub("\r\n|\r", "\n", data))]


def test_a_chunk_has_its_length_in_hexadecimal() -> None:
    """RFC 9112, section 7.1."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_nothing_is_no_chunk() -> None:
    """An empty chunk would end the response."""
    assert chunk(b"") == b""
