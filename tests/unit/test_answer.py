"""Answers travel sealed: what was not sealed for this very key is no answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.answer import Answer

SECRET, KEY = b"secret", b"k" * 16
ANSWER = Answer(200, (("Content-Type", "text/plain"), ("Link", "é")), b"a\nb\x00", "1-0", 1.5)

answers = st.builds(
    Answer,
    st.integers(100, 599),
    st.lists(st.tuples(st.text(), st.text())).map(tuple),
    st.binary(),
    st.text(),
    st.floats(0, 1e10),
)


@given(answers)
def test_what_is_sealed_is_unsealed(answer: Answer) -> None:
    """Whatever the body and the headers hold."""
    assert Answer.unseal(answer.seal(SECRET, KEY), SECRET, KEY) == answer


def test_the_seal_is_of_a_secret_and_a_key() -> None:
    """One page must not be shown in place of another."""
    sealed = ANSWER.seal(SECRET, KEY)
    assert Answer.unseal(sealed, b"other", KEY) is None
    assert Answer.unseal(sealed, SECRET, b"o" * 16) is None


@given(st.data())
def test_any_change_makes_it_a_miss(data: Any) -> None:
    """A byte more, less or other, never an exception."""
    sealed = bytearray(ANSWER.seal(SECRET, KEY))
    at = data.draw(st.integers(0, len(sealed) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if change == "flip":
        sealed[at] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del sealed[at:]
    else:
        sealed.insert(at, data.draw(st.integers(0, 255)))
        if bytes(sealed) == ANSWER.seal(SECRET, KEY):
            return
    assert Answer.unseal(bytes(sealed), SECRET, KEY) is None


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"noc-answer-1\n",
        b"noc-answer-2\n" + ANSWER.seal(SECRET, KEY)[13:],
        json.dumps({"status": 200}).encode(),
        b"\x80\x04\x95cposix\nsystem\n",
        b"x" * 100_000,
    ],
    ids=range(6),
)
def test_what_somebody_planted_is_a_miss(planted: bytes) -> None:
    """Who can write to Redis cannot run code here, nor show a page."""
    assert Answer.unseal(planted, SECRET, KEY) is None
