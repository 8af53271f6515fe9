"""The hooks in a real browser, with each React they are for, as an import map brings them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.react import TIMEOUT, ReactPage
from tests.processes import wait_until

pytestmark = pytest.mark.browser


def test_a_component_shows_the_state_and_takes_events(react: ReactPage) -> None:
    """The provider owns the stream, and those below use it."""
    react.run("root.render(h(NocProvider, null, h(State), h(Log)))")
    react.wait("place.textContent === 'live'")
    react.emit_logs(3)
    react.wait("seen.length >= 3")
    assert react.value("seen") == [0, 1, 2]


def test_strict_mode_leaves_one_stream_and_one_handler(react: ReactPage) -> None:
    """It mounts everything twice; unmounting then leaves none."""
    react.run("root.render(strict(h(NocProvider, null, h(State), h(Log))))")
    react.wait("place.textContent === 'live'")
    wait_until(lambda: react.streams == 1, TIMEOUT, "one stream is left")
    react.emit_logs(3)
    react.wait("seen.length >= 3")
    assert react.value("seen") == [0, 1, 2]
    react.run("root.unmount()")
    wait_until(lambda: react.streams == 0, TIMEOUT, "no stream is left")


def test_what_happened_since_the_page_reaches_handlers_once(react: ReactPage) -> None:
    """They are there before the stream opens, and a second mount goes on from the first."""
    react.emit_logs(5)
    react.run("root.render(strict(h(NocProvider, { since: position }, h(Log))))")
    react.wait("seen.length >= 5")
    react.emit_logs(1)
    react.wait("seen.includes(5)")
    assert react.value("seen") == [0, 1, 2, 3, 4, 5]


def test_components_come_and_go_without_leaving_handlers(react: ReactPage) -> None:
    """On a stream that was opened elsewhere, and stays open."""
    react.run("window.stream = connect()")
    for _ in range(10):
        react.run("root.render(strict(h(NocProvider, { stream }, h(State), h(Log))))")
        react.wait("place.textContent !== ''")
        react.run("root.render(null)")
        react.wait("place.textContent === ''")
    react.run("root.render(h(NocProvider, { stream }, h(State), h(Log)))")
    react.wait("place.textContent === 'live'")
    react.emit_logs(2)
    react.wait("seen.length >= 2")
    assert react.value("seen") == [0, 1]
    react.run("root.unmount()")
    assert react.value("stream.snapshot().name") == "live"
    react.run("stream.on('log.added', ({ n }) => seen.push(`after ${n}`))")
    react.emit_logs(1)
    react.wait("seen.includes('after 2')")
    assert react.value("seen") == [0, 1, "after 2"]


def test_the_handler_is_that_of_the_last_rendering(react: ReactPage) -> None:
    """What it closes over is never old, and the stream is not opened again for it."""
    react.run(
        """
        window.App = function App({ word }) {
          const stream = useNocStream({ onState: ({ name }) => seen.push(`${word} ${name}`) });
          useNocEvents(stream, ["log.*", "log.added"], ({ n }) => seen.push(`${word} ${n}`));
          return word;
        };
        root.render(h(App, { word: "old" }));
        """
    )
    react.wait("seen.includes('old live')")
    react.run("root.render(h(App, { word: 'new' }))")
    react.wait("place.textContent === 'new'")
    react.emit_logs(2)
    react.wait("seen.includes('new 1')")
    react.run("root.unmount(); root = createRoot(place)")
    assert react.value("seen") == ["old live", "new 0", "new 1", "new closed"]


def test_the_state_is_the_same_object_until_it_changes(react: ReactPage) -> None:
    """Events render nothing again but what selects from them."""
    react.run(
        """
        window.states = [];
        window.counts = [];
        window.Footer = function Footer() {
          states.push(useNocState(useNocStream()));
          return null;
        };
        window.Count = function Count() {
          counts.push(useNocState(useNocStream(), ({ delivered }) => delivered));
          return null;
        };
        window.stream = connect();
        root.render(h(NocProvider, { stream }, h(Footer), h(Count), h(Log)));
        """
    )
    react.wait("states.at(-1)?.name === 'live'")
    shown = react.value("states.length")
    react.emit_logs(3)
    react.wait("counts.at(-1) === 3")
    assert react.value("[states.length, new Set(states).size]") == [shown, shown]
    assert react.value("Object.keys(states.at(-1))") == [
        "name",
        "attempt",
        "reason",
        "since",
        "gaps",
    ]
    react.run("stream.close()")
    react.wait("states.at(-1).name === 'closed'")


def test_other_options_reopen_the_stream_from_where_it_was(react: ReactPage) -> None:
    """What happens between the two is not lost."""
    react.run(
        """
        const since = position;
        window.show = (types) => root.render(h(NocProvider, { since, types }, h(State), h(Log)));
        show(["incident.*"]);
        """
    )
    react.wait("place.textContent === 'live'")
    react.run("root.render(h(NocProvider, { types: [] }, h(State), h(Log)))")
    react.emit_logs(3)
    react.wait("seen.length >= 3")
    assert react.value("seen") == [0, 1, 2]
    wait_until(lambda: react.streams == 1, TIMEOUT, "the first stream is gone")


def test_an_element_among_the_options_is_no_obstacle(react: ReactPage) -> None:
    """What React renders into refers to itself, as JSON cannot."""
    react.run("root.render(h(NocProvider, { dom: place }, h(State)))")
    react.wait("place.textContent === 'live'")


@pytest.mark.parametrize("module_react_page", ["19"], indirect=True)
def test_what_is_hidden_has_no_stream_and_misses_nothing(react: ReactPage) -> None:
    """An Activity that is shown again goes on from where it was."""
    react.run(
        """
        window.show = (mode) =>
          root.render(h(Activity, { mode }, h(NocProvider, { share: false }, h(State), h(Log))));
        show("visible");
        """
    )
    react.wait("place.textContent === 'live'")
    react.emit_logs(2)
    react.wait("seen.length >= 2")
    react.run("show('hidden')")
    wait_until(lambda: react.streams == 0, TIMEOUT, "a hidden page has no stream")
    react.emit_logs(2)
    held: list[Any] = []
    react.page.route("**/stream*", lambda route: held.append(route))
    react.run("show('visible')")
    react.wait("place.textContent === 'connecting'")
    react.page.unroute("**/stream*")
    for route in held:
        route.continue_()
    react.wait("seen.length >= 4")
    assert react.value("seen") == [0, 1, 2, 3]


def test_rendering_on_a_server_opens_nothing(react: ReactPage) -> None:
    """It shows what a browser shows first."""
    react.run(
        """
        const { fetch } = window;
        window.fetch = (...asked) => seen.push(asked);
        window.html = renderToString(h(NocProvider, null, h(State), h(Log)));
        await new Promise((resolve) => setTimeout(resolve));
        window.fetch = fetch;
        """
    )
    assert react.value("[html, seen]") == ["connecting", []]


def test_a_stream_without_a_provider_says_what_is_missing(react: ReactPage) -> None:
    """Instead of a TypeError about null."""
    react.run("try { renderToString(h(State)) } catch (error) { window.error = error.message }")
    assert "put one above, or pass options" in react.value("error")
