"""Whatever breaks, the screen says so, and is live again with nothing missing or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.board import FAULTS, Board, Plant, Settings
from tests.browser.chromium import new_page
from tests.conftest import require

pytestmark = pytest.mark.browser

SOON = {"openTimeout": 1000, "maxDelay": 400}


@pytest.fixture(scope="module")
def board(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Return a page that all tests share, so that none is made good by a reload."""
    for name in ("nginx", "redis-server"):
        require(name)
    with Plant(tmp_path_factory.mktemp("plant"), Settings()) as plant, new_page(browser) as page:
        yield Board(plant, page, **SOON)


def test_a_token_that_expires_is_renewed(page: Any, board: Board) -> None:
    """The stream ends with it, each time; the provider is asked for another."""
    other = Board(board.plant, page, **SOON, lifetime=1)
    page.wait_for_function("board.states.filter(([name]) => name === 'live').length > 3")
    other.wait_for_all()
    assert "unauthorized" in [name for name, _, _ in other.told.states]
    assert other.told.gaps == []
    assert other.wrongs() == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_shown_and_mended_without_a_reload(board: Board, name: str) -> None:
    """Events go on all the while; what the page had and what it said is counted."""
    fault = FAULTS[name]
    began = len(board.told.states)
    gaps = len(board.told.gaps)
    fault.begin(board)
    if fault.lasts:
        board.wait_for(fault.shown)
    fault.end(board)
    board.wait_for_all()
    board.wait_for("live")
    assert fault.shown in [state for state, _, _ in board.told.states[began:]] or not fault.shown
    assert len(board.told.gaps) - gaps == fault.gap
    assert board.wrongs() == []
