"""What operators, engineers and viewers do at the demo's desk, and how it looks and sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.desk import enter, enter_live, row, wait_for_state
from tests.conftest import require
from tests.demo import Demo

pytestmark = pytest.mark.browser

INCIDENT = {
    "server": "core-fra-1",
    "title": "CPU at 99%",
    "severity": "critical",
    "status": "open",
    "opened_at": "2026-01-01T00:00:00.000+00:00",
    "acknowledged_by": None,
    "acknowledged_at": None,
    "comment": None,
    "version": 1,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Return a demo in which nothing happens by itself."""
    with Demo(tmp_path_factory.mktemp("demo"), DEMO_RATE="0.01") as demo:
        yield demo


def test_an_acknowledgement_is_seen_in_all_windows_at_once(
    page: Any, others: Callable[[], Any], demo: Demo
) -> None:
    """With who, when and why; no window is reloaded."""
    windows = [enter_live(page.context.new_page(), demo)]
    windows += [enter_live(others(), demo, name) for name in ("alex", "robin")]
    for window in windows:
        window.evaluate("window.sameDocument = true")
    enter_live(page, demo)
    incident = demo.incident()
    row(page, incident["id"]).get_by_role("button").click()
    page.get_by_label("Comment").fill("cable is being replaced")
    page.keyboard.press("Enter")
    for window in [page, *windows]:
        owner = row(window, incident["id"]).locator(".owner")
        owner.get_by_text("✓ kim").wait_for()
        assert owner.locator(".comment").text_content() == "cable is being replaced"
        assert owner.locator("time").text_content()
    for window in windows:
        assert window.evaluate("window.sameDocument")
    stored = next(i for i in demo.ask("/api/incidents") if i["id"] == incident["id"])
    assert (stored["acknowledged_by"], stored["comment"]) == ("kim", "cable is being replaced")
    assert page.problems == []


def test_whoever_is_slower_is_told_while_writing_a_comment(page: Any, demo: Demo) -> None:
    """And cannot send it any more."""
    enter_live(page, demo)
    incident = demo.incident()["id"]
    row(page, incident).get_by_role("button").click()
    page.get_by_label("Comment").fill("mi")
    demo.acknowledge(incident, "alex", comment="mine")
    page.get_by_role("alert").get_by_text("alex is on it since").wait_for()
    assert "“mine”" in page.get_by_role("alert").text_content()
    assert page.locator("#acknowledgement-send").is_disabled()
    assert page.problems == []


def test_whoever_is_slower_by_a_moment_overwrites_nobody(page: Any, demo: Demo) -> None:
    """The server decides, and the page shows who is on it."""
    enter_live(page, demo)
    incident = demo.incident()["id"]

    def be_quicker(route: Any) -> None:
        demo.acknowledge(incident, "alex", comment="mine")
        route.continue_()

    page.route("**/acknowledge", be_quicker)
    row(page, incident).get_by_role("button").click()
    page.get_by_label("Comment").press("Enter")
    page.get_by_role("alert").get_by_text("alex is on it since").wait_for()
    row(page, incident).get_by_text("✓ alex").wait_for()


def test_an_engineer_takes_over_and_the_other_one_sees_it(
    page: Any, others: Callable[[], Any], demo: Demo
) -> None:
    """A dialog that could not be sent says why, and keeps what was written."""
    engineer = others()
    incident = demo.incident()["id"]
    demo.acknowledge(incident, "kim", comment="on it")
    enter_live(page, demo)
    enter_live(engineer, demo, "alex")
    assert row(page, incident).get_by_role("button").count() == 0
    row(engineer, incident).get_by_role("button", name="Take over").click()
    engineer.get_by_label("Comment").fill("is mine now")
    engineer.route("**/acknowledge", lambda route: route.abort())
    engineer.keyboard.press("Enter")
    engineer.get_by_role("alert").get_by_text("Not sent").wait_for()
    engineer.unroute("**/acknowledge")
    engineer.keyboard.press("Enter")
    row(page, incident).get_by_text("✓ alex").wait_for()
    row(page, incident).get_by_text("is mine now").wait_for()


def test_a_viewer_visibly_sees_less(page: Any, demo: Demo) -> None:
    """No log, no runs, nothing to press in the table, and no request that would be refused."""
    enter_live(page, demo, "robin")
    titles = page.locator("main h2 > span").all_text_contents()
    assert titles == ["Incidents", "Network"]
    assert page.locator("#incidents button").count() == 0
    assert page.locator("#incidents .nobody").count() > 0
    page.keyboard.press("a")
    assert not page.locator("#acknowledgement").is_visible()
    assert page.problems == []


def test_the_table_is_worked_by_keys(page: Any, demo: Demo) -> None:
    """By j and k one moves, a acknowledges, m mutes, ? helps; in a comment they are letters."""
    enter_live(page, demo)
    focused = "document.activeElement.id"
    ids = [
        f"incident-{id}"
        for id in page.evaluate("[...noc.get('incidents').children].map((r) => -r.rank)")
    ]
    for key, at in (("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        assert page.evaluate(focused) == ids[at]
    incident = demo.incident()["id"]
    row(page, incident).focus()
    page.keyboard.press("a")
    page.keyboard.type("jam?")
    assert page.get_by_label("Comment").input_value() == "jam?"
    page.keyboard.press("Enter")
    row(page, incident).get_by_text("jam?").wait_for()
    # Neither the answer nor the event has taken the place from whoever works by keys.
    page.wait_for_function(f"() => {focused} === 'incident-{incident}'")
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("m")
    assert page.locator("#sound").text_content() == "Sound off"
    page.keyboard.press("m")
    assert page.locator("#sound").text_content() == "Sound on"
    assert page.problems == []


def test_only_a_new_critical_incident_nobody_is_on_is_heard(page: Any, demo: Demo) -> None:
    """Not before a gesture, since browsers allow none, and not when it is muted."""
    enter_live(page, demo)

    def arrive(id: int, **differs: Any) -> None:
        demo.emit("incident.created", {**INCIDENT, "id": id, **differs})
        row(page, id).wait_for()

    arrive(9001)
    page.keyboard.press("j")
    arrive(9002)
    arrive(9003, severity="major")
    arrive(9004, acknowledged_by="alex", acknowledged_at=INCIDENT["opened_at"])
    arrive(9005, status="resolved")
    demo.emit(
        "incident.status.changed", {**INCIDENT, "id": 9002, "status": "escalated", "version": 2}
    )
    row(page, 9002).get_by_text("escalated").wait_for()
    page.keyboard.press("m")
    arrive(9006)
    page.locator("#sound").click()
    arrive(9007)
    assert page.evaluate("noc.sound.played") == [9002, 9007]
    # An answer that was overtaken does not bring back what was.
    demo.emit("incident.updated", {**INCIDENT, "id": 9002})
    arrive(9008, severity="minor")
    assert "escalated" in row(page, 9002).text_content()
    assert page.problems == []


def test_the_log_of_a_run_goes_on_while_it_is_read(page: Any, demo: Demo) -> None:
    """In order, each line once, and nothing of other runs."""
    enter_live(page, demo)
    button = page.locator("#automations button", has_text="succeeded").first
    run = int(button.locator("xpath=..").get_attribute("id").removeprefix("run-"))
    button.click()
    drawer = page.get_by_role("dialog")
    lines = drawer.locator("#run-log .text")
    lines.first.wait_for()
    before = lines.all_text_contents()
    line = {"at": INCIDENT["opened_at"], "source": "x", "level": "info"}
    for id, run_id, text in ((9002, run, "second"), (9003, run + 1, "not"), (9001, run, "first")):
        demo.emit("log.added", {**line, "id": id, "run_id": run_id, "text": text})
    page.wait_for_function(
        f"() => document.querySelectorAll('#run-log li').length > {len(before) + 1}"
    )
    assert lines.all_text_contents() == [*before, "first", "second"]
    page.keyboard.press("Escape")
    assert not drawer.is_visible()
    assert page.evaluate("document.activeElement.closest('li').id") == f"run-{run}"
    assert page.problems == []


def test_a_wallboard_has_big_type_and_nothing_to_press(page: Any, demo: Demo) -> None:
    """It goes on where nobody ever touches it, also when the browser thinks it is hidden."""
    page.add_init_script(
        "Object.defineProperty(document, 'visibilityState', { get: () => 'hidden' });"
        "Object.defineProperty(document, 'hidden', { get: () => true });"
    )
    page.set_viewport_size({"width": 1920, "height": 1080})
    enter_live(page, demo, path="/?wallboard=1")
    assert page.locator("button, a, input, dialog, nav").count() == 0
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") > 22
    assert page.evaluate("document.body.scrollHeight <= innerHeight")
    demo.emit("incident.created", {**INCIDENT, "id": 9101})
    row(page, 9101).wait_for()
    assert page.problems == []


def test_severity_is_told_by_a_sign_and_a_word_beside_the_colour(page: Any, demo: Demo) -> None:
    """Of incidents as of devices."""
    enter_live(page, demo)
    cells = set(page.locator("#incidents .severity").all_text_contents())
    assert cells <= {"▲critical", "◆major", "■minor", "●warning"}
    assert len(cells) == 4
    devices = page.locator("#servers span[data-status=down]")
    assert devices.first.text_content() == "✕"
    assert " is down since " in devices.first.get_attribute("aria-label")


# What a theme can do wrong.
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}


@pytest.mark.parametrize(("theme", "rules"), [("dark", {}), ("light", COLOURS)])
def test_axe_finds_no_violation(page: Any, demo: Demo, theme: str, rules: dict[str, Any]) -> None:
    """On no page, for no role, with no dialog open; its rules are those of WCAG 2.2 AA and more."""
    require("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()

    def check(what: str, within: str | None = None) -> None:
        found = axe.run(page, within, {"resultTypes": ["violations"], **rules})
        assert found.violations_count == 0, f"{what}: {found.generate_report()}"

    page.emulate_media(color_scheme=theme)
    page.goto(f"{demo.url}/login")
    check("login")
    for name, path in (("robin", "/"), ("kim", "/?wallboard=1"), ("alex", "/")):
        enter_live(page, demo, name, path)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        check(f"{path} of {name}")
    demo.emit("incident.created", {**INCIDENT, "id": 9301})
    row(page, 9301).focus()
    for key in ("a", "?"):
        page.keyboard.press(key)
        check(f"the dialog of {key}", "dialog[open]")
        page.keyboard.press("Escape")
    page.locator("#automations button").first.click()
    check("a run", "dialog[open]")
    page.evaluate("noc.banner('x', 'critical', 'No connection.', noc.button({}, 'Understood'))")
    check("a banner", "#banners")
    page.evaluate("noc.SOURCES.logs.seen = 1; noc.judge()")
    check("a stale widget", ".log")


def test_nothing_moves_for_those_who_want_it_so(page: Any, demo: Demo) -> None:
    """The theme is changed by hand as well, and stays."""
    page.emulate_media(reduced_motion="reduce", color_scheme="light")
    enter_live(page, demo)
    demo.emit("incident.created", {**INCIDENT, "id": 9201})
    row(page, 9201).wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
    page.get_by_role("button", name="Dark / light").click()
    page.reload()
    wait_for_state(page, "live")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_login_page_gets_each_role_in(page: Any, demo: Demo) -> None:
    """By its form, and by a button each; a wrong password is told."""
    enter(page, demo, "kim")
    page.context.clear_cookies()
    page.goto(demo.url)
    page.get_by_role("textbox", name="Account").fill("alex")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    for name, role in (("kim", "operator"), ("alex", "engineer"), ("robin", "viewer")):
        page.get_by_role("button", name=f"Log in as {name}").click()
        assert page.locator(".user span").text_content() == f"{name} {role}"
        page.get_by_role("button", name="Log out").click()
