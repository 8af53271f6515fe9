"""The cache of TanStack Query follows the events, whatever is being fetched meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.react import TIMEOUT, ReactPage
from tests.processes import wait_until

pytestmark = [
    pytest.mark.browser,
    # What follows events is no part of React.
    pytest.mark.parametrize("module_react_page", ["19"], indirect=True),
]

INCIDENTS = [{"id": 2, "title": "b", "status": "open"}, {"id": 1, "title": "a", "status": "open"}]

# What a query fetches is what `answers` has for it, and a test may hold it back.
PREPARE = """
window.answers = {};
window.fetched = [];
window.held = {};
window.client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: Infinity,
      retry: false,
      queryFn: async ({ queryKey }) => {
        const name = queryKey.join("/");
        fetched.push(name);
        const answer = structuredClone(answers[name]);
        if (held[name]) await held[name];
        if (answer instanceof Error) throw answer;
        return answer;
      },
    },
  },
});
window.hold = (name) => {
  held[name] = new Promise((resolve) => {
    window.release = () => {
      delete held[name];
      resolve();
    };
  });
};
window.get = (...key) => client.getQueryData(key);
window.state = (...key) => client.getQueryState(key);
window.load = (...key) => client.fetchQuery({ queryKey: key, staleTime: 0 });
window.Show = function Show({ of }) {
  return JSON.stringify(useQuery({ queryKey: of }).data ?? null);
};
window.watch = (...keys) => root.render(
  h(QueryClientProvider, { client }, keys.map((of) => h("p", { key: of }, h(Show, { of })))),
);
window.bind = async (updaters, options) => {
  window.stream ??= connect({ since: position, ...options });
  window.unbind = bindQueryClient(client, stream, updaters);
};
"""


@pytest.fixture
def query(react: ReactPage) -> Iterator[ReactPage]:
    """Return a page with a query client of its own."""
    react.run(PREPARE)
    yield react
    react.run("window.unbind?.(); client.clear()")


def answer(query: ReactPage, **answers: Any) -> None:
    """Set what queries fetch."""
    query.page.evaluate("(given) => void Object.assign(answers, given)", answers)


def test_what_is_created_is_at_the_head_of_the_list(query: ReactPage) -> None:
    """Once, even if the list had it already."""
    answer(query, incidents=INCIDENTS)
    query.run("bind({ 'incident.created': prepend(['incidents']) }); await load('incidents')")
    query.emit("incident.created", {"id": 1, "title": "older than what was fetched"})
    query.emit("incident.created", {"id": 3, "title": "c"})
    query.wait("get('incidents').length === 3")
    assert query.value("get('incidents')") == [{"id": 3, "title": "c"}, *INCIDENTS]
    assert query.value("fetched") == ["incidents"]


def test_a_change_of_status_is_in_every_list_and_in_the_item(query: ReactPage) -> None:
    """Whatever has the id; the rest stays the same object, so that it is not rendered."""
    detail = {"id": 1, "title": "a", "status": "open", "notes": ["n"]}
    answer(query, **{"incidents": INCIDENTS, "incidents/open": INCIDENTS, "incidents/1": detail})
    query.run(
        """
        bind({ 'incident.status.changed': patch(['incidents']) });
        await Promise.all([load('incidents'), load('incidents', 'open'), load('incidents', 1)]);
        window.before = get('incidents');
        """
    )
    query.emit("incident.status.changed", {"id": 1, "status": "closed"})
    query.wait("get('incidents', 1).status === 'closed'")
    closed = [INCIDENTS[0], {**INCIDENTS[1], "status": "closed"}]
    assert query.value("[get('incidents'), get('incidents', 'open')]") == [closed, closed]
    assert query.value("get('incidents', 1)") == {**detail, "status": "closed"}
    assert query.value("before[0] === get('incidents')[0] && before !== get('incidents')")


def test_a_log_line_is_at_the_end_of_its_run(query: ReactPage) -> None:
    """The key says of which run; a list grows to its limit, and is not cut by it."""
    lines = [{"id": n, "run": 7} for n in range(3)]
    answer(query, **{"runs/7/log": lines, "runs/8/log": lines[:1]})
    query.run(
        """
        bind({ 'log.added': append(['runs', (line) => line.run, 'log'], { limit: 2 }) });
        await Promise.all([load('runs', 7, 'log'), load('runs', 8, 'log')]);
        """
    )
    for id, run in ((3, 7), (4, 8), (5, 8), (6, 9)):
        query.emit("log.added", {"id": id, "run": run})
    query.wait("get('runs', 8, 'log').at(-1).id === 5")
    assert query.value("get('runs', 7, 'log').map(({ id }) => id)") == [1, 2, 3]
    assert query.value("get('runs', 8, 'log').map(({ id }) => id)") == [4, 5]
    assert query.value("get('runs', 9, 'log') ?? null") is None


def test_a_completed_automation_has_its_queries_fetched_again(query: ReactPage) -> None:
    """What is on screen at once, the rest when it is next."""
    answer(query, **{"runs": ["running"], "runs/7": "running", "servers": "up"})
    query.run(
        """
        bind({ 'automation.completed': invalidate(['runs']) });
        await Promise.all([load('runs', 7), load('servers')]);
        watch(['runs']);
        """
    )
    query.wait("get('runs') !== undefined")
    answer(query, **{"runs": ["done"], "runs/7": "done"})
    query.emit("automation.completed", {"id": 7})
    query.wait("place.textContent === '[\"done\"]'")
    assert query.value("state('runs', 7).isInvalidated") is True
    assert query.value("state('servers').isInvalidated") is False


def test_several_updaters_of_a_type_go_one_after_the_other(query: ReactPage) -> None:
    """On the screen at once, and then as the server says; one may be the app's own."""
    answer(query, incidents=INCIDENTS, stats={"closed": 0})
    query.run(
        """
        const count = {
          keys: [['stats']],
          update(cache, { closed }, { type }) {
            cache.change(['stats'], (old) => ({ ...old, closed, type }));
          },
        };
        const type = 'incident.status.changed';
        bind({ [type]: [patch(['incidents']), invalidate(['incidents'])], 'incident.*': count });
        await load('stats');
        watch(['incidents']);
        """
    )
    query.wait("place.textContent.includes('open')")
    query.run("hold('incidents')")
    query.emit("incident.status.changed", {"id": 1, "status": "closed", "closed": 1})
    query.wait("get('incidents')[1].status === 'closed' && fetched.length === 3")
    query.wait("place.textContent.includes('closed')")
    query.run("release()")
    assert query.value("get('stats')") == {"closed": 1, "type": "incident.status.changed"}


# What is fetched meanwhile.


def test_an_answer_that_is_older_than_an_event_does_not_undo_it(query: ReactPage) -> None:
    """Neither the first answer, nor a later one."""
    answer(query, incidents=INCIDENTS)
    query.run(
        """
        bind({
          'incident.created': prepend(['incidents']),
          'incident.status.changed': patch(['incidents']),
        });
        hold('incidents');
        window.loading = load('incidents');
        """
    )
    query.emit("incident.created", {"id": 3})
    query.emit("incident.status.changed", {"id": 2, "status": "closed"})
    query.wait("stream.snapshot().delivered === 2")
    query.run("release(); await loading")
    closed = {**INCIDENTS[0], "status": "closed"}
    assert query.value("get('incidents')") == [{"id": 3}, closed, INCIDENTS[1]]
    answer(query, incidents=[{"id": 3}, *INCIDENTS])
    query.run("hold('incidents'); window.loading = load('incidents')")
    query.emit("incident.created", {"id": 4})
    query.emit("incident.status.changed", {"id": 2, "status": "closed"})
    query.wait("stream.snapshot().delivered === 4")
    query.run("release(); await loading")
    assert query.value("get('incidents')") == [{"id": 4}, {"id": 3}, closed, INCIDENTS[1]]


def test_a_fetch_that_is_cancelled_takes_nothing_with_it(query: ReactPage) -> None:
    """TanStack Query then goes back to what there was before."""
    answer(query, incidents=INCIDENTS)
    query.run(
        """
        bind({ 'incident.created': prepend(['incidents']) });
        await load('incidents');
        hold('incidents');
        load('incidents').catch(() => {});
        """
    )
    query.emit("incident.created", {"id": 3})
    query.wait("get('incidents').length === 3")
    query.run("await client.cancelQueries({ queryKey: ['incidents'] }); release()")
    assert query.value("get('incidents').map(({ id }) => id)") == [3, 2, 1]


def test_events_that_come_quickly_cost_one_fetch_after_the_other(query: ReactPage) -> None:
    """None is cancelled for the next, and the last begins after the last event."""
    answer(query, runs=0)
    query.run("bind({ 'automation.completed': invalidate(['runs']) }); watch(['runs'])")
    query.wait("place.textContent === '0'")
    query.run("hold('runs')")
    for n in range(1, 21):
        answer(query, runs=n)
        query.emit("automation.completed", {"id": n})
    query.wait("stream.snapshot().delivered === 20")
    query.run("release()")
    query.wait("place.textContent === '20'")
    assert query.value("fetched.length") == 3


def test_more_than_can_be_kept_meanwhile_is_fetched_again(query: ReactPage) -> None:
    """A fetch that hangs must not fill the memory."""
    answer(query, log=[])
    query.run("bind({ 'log.added': append(['log']) }); hold('log'); watch(['log'])")
    query.wait("fetched.length === 1")
    query.emit_all("log.added", [{"id": n} for n in range(1001)])
    query.wait("stream.snapshot().delivered === 1001")
    answer(query, log=["all"])
    query.run("release()")
    query.wait("place.textContent === '[\"all\"]'")


def test_what_failed_or_is_invalid_stays_so(query: ReactPage) -> None:
    """An event brings one row up to date, not the list."""
    answer(query, incidents=INCIDENTS)
    query.run(
        """
        bind({ 'incident.created': prepend(['incidents']) });
        await load('incidents');
        window.age = state('incidents').dataUpdatedAt;
        answers.incidents = new Error('503');
        await load('incidents').catch(() => {});
        client.invalidateQueries({ queryKey: ['incidents'] });
        """
    )
    query.emit("incident.created", {"id": 3})
    query.wait("get('incidents').length === 3")
    assert query.value("[state('incidents').status, state('incidents').isInvalidated]") == [
        "error",
        True,
    ]
    assert query.value("state('incidents').dataUpdatedAt === age")


# Gaps.


def test_a_gap_has_all_that_is_mapped_fetched_again(query: ReactPage) -> None:
    """And once each, however many updaters are about it; nothing else is."""
    answer(query, **{"incidents": INCIDENTS, "incidents/1": 1, "runs/7/log": [], "servers": []})
    query.run(
        """
        for (const key of [['incidents', 1], ['runs', 7, 'log'], ['servers']]) await load(...key);
        watch(['incidents']);
        """
    )
    query.wait("get('incidents') !== undefined")
    answer(query, incidents=[])
    query.run(
        """
        bind({
          'incident.created': prepend(['incidents']),
          'incident.status.changed': [patch(['incidents']), invalidate(['incidents'])],
          'log.added': append(['runs', (line) => line.run, 'log']),
        }, { since: '1-1' });
        """
    )
    query.wait("place.textContent === '[]'")
    assert query.value("[state('incidents', 1).isInvalidated, stream.snapshot().gaps]") == [True, 1]
    assert query.value("state('runs', 7, 'log').isInvalidated") is True
    assert query.value("state('servers').isInvalidated") is False
    assert query.value("fetched.filter((name) => name === 'incidents').length") == 2


def test_what_was_fetched_before_a_stream_began_is_fetched_again(query: ReactPage) -> None:
    """Where the page does not say since when: something may have happened between."""
    answer(query, incidents=INCIDENTS)
    query.run("watch(['incidents'])")
    query.wait("get('incidents') !== undefined")
    answer(query, incidents=[])
    query.run("bind({ 'incident.created': prepend(['incidents']) }, { since: null })")
    query.wait("place.textContent === '[]'")
    query.run("stream.close(); stream = null; unbind()")
    answer(query, incidents=INCIDENTS)
    query.run("bind({ 'incident.created': prepend(['incidents']) })")
    query.emit("incident.created", {"id": 3})
    query.wait("place.textContent === '[{\"id\":3}]'")
    assert query.value("fetched.length") == 2


def test_after_unbinding_nothing_is_changed(query: ReactPage) -> None:
    """Neither by events, nor when a fetch ends."""
    answer(query, incidents=INCIDENTS)
    query.run(
        """
        bind({ 'incident.created': prepend(['incidents']) });
        hold('incidents');
        window.loading = load('incidents');
        """
    )
    query.emit("incident.created", {"id": 3})
    query.wait("stream.snapshot().delivered === 1")
    query.run("unbind(); release(); await loading")
    query.emit("incident.created", {"id": 4})
    query.wait("stream.snapshot().delivered === 2")
    assert query.value("get('incidents')") == INCIDENTS


# Shapes, and mistakes.


def test_lists_are_found_in_what_wraps_them(query: ReactPage) -> None:
    """Under a name, and in the pages of an infinite query, of which the first gets what is new."""
    page = {"rows": INCIDENTS, "total": 2}
    endless = {"pages": [INCIDENTS[:1], INCIDENTS[1:]], "pageParams": [0, 1]}
    wrapped = {"pages": [page, {"rows": [], "total": 2}], "pageParams": [0, 1]}
    answer(query, **{"a/rows": page, "a/pages": endless, "a/both": wrapped})
    query.run(
        """
        const rows = ['rows', 'pages', 'both'].map((name) => prepend(['a', name], { at: 'rows' }));
        bind({
          'incident.created': rows,
          'incident.status.changed': patch(['a'], { at: 'rows', id: (row) => `${row.id}` }),
        });
        for (const name of ['rows', 'pages', 'both']) await load('a', name);
        """
    )
    query.emit("incident.created", {"id": 3})
    query.emit("incident.status.changed", {"id": 1, "status": "closed"})
    query.wait("stream.snapshot().delivered === 2")
    closed = {**INCIDENTS[1], "status": "closed"}
    rows = [{"id": 3}, INCIDENTS[0], closed]
    assert query.value("get('a', 'rows')") == {"rows": rows, "total": 2}
    assert query.value("get('a', 'pages').pages") == [rows[:2], [closed]]
    assert query.value("get('a', 'both').pages.map(({ rows }) => rows)") == [rows, []]


def test_what_has_no_list_is_fetched_again(query: ReactPage) -> None:
    """Rather than left as it was."""
    answer(query, incidents={"rows": []})
    query.run("bind({ 'incident.created': append(['incidents']) }); watch(['incidents'])")
    query.wait("place.textContent === '{\"rows\":[]}'")
    answer(query, incidents={"rows": [3]})
    query.emit("incident.created", {"id": 3})
    query.wait("place.textContent === '{\"rows\":[3]}'")


def test_an_item_may_be_a_part_of_the_event(query: ReactPage) -> None:
    """With an identity of its own."""
    answer(query, log=[])
    query.run(
        """
        bind({ 'log.added': append(['log'], { item: (data) => data.line, id: (line) => line.n }) });
        await load('log');
        """
    )
    query.emit("log.added", {"line": {"n": 1}})
    query.wait("get('log').length === 1")
    assert query.value("get('log')") == [{"n": 1}]


def test_an_event_without_an_id_says_what_to_pass(query: ReactPage) -> None:
    """To the page, and the others go on."""
    answer(query, log=[])
    query.run("bind({ 'log.added': append(['log']), 'log.*': invalidate() }); await load('log')")
    query.emit("log.added", "a line")
    query.emit("log.added", {"id": 1})
    query.wait("get('log').length === 1")
    told = query.page.problems
    wait_until(lambda: query.value("1") and told, TIMEOUT, "the page is told")
    problems, query.page.problems[:] = list(query.page.problems), []
    assert len(problems) == 1
    assert 'An event for ["log"] has no id' in problems[0]


def test_an_updater_that_is_none_is_refused(query: ReactPage) -> None:
    """When it is bound: without keys there would be nothing to fetch after a gap."""
    for wrong in ("() => {}", "undefined", "{ update() {} }", "prepend"):
        query.run(f"try {{ await bind({{ 'log.added': {wrong} }}) }} catch (e) {{ seen.push(e) }}")
    messages = query.value("seen.map(({ message }) => message)")
    assert len(messages) == 4
    assert all("use prepend, append, patch or invalidate" in message for message in messages)
    query.run("window.unbind = undefined")
