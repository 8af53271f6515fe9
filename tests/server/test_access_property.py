"""Whatever users, rights and connections do: who is given what equals a reference model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import GunicornFactory, RedisFactory
from tests.processes import wait_until
from tests.server.client import Site
from tests.sse_client import ServerEvent, SSEClient

APP = "tests.server.transport_apps:create_app()"
DELIVERIES = int(os.environ.get("NOC_REALTIME_TEST_DELIVERIES", "40000"))
"""Over all four; 100,000 take five minutes."""
TIMEOUT = 20.0

USERS = ("ada", "bob", "cyd")
RIGHTS = ("", "a", "b", "a,b")
TYPES = ("incident.created", "incident.status.changed", "log.added", "server.status.changed")
FILTERS = ("", "*", "incident.*", "log.added", "log.*,incident.created", "server.status.changed")
SPECS = tuple(
    {"type": type, "permissions": permissions, "user_id": user_id}
    for type, permissions, user_id in product(
        TYPES, (None, ["a"], ["b"], ["a", "b"], ["c"]), (None, *USERS)
    )
)
# Whatever a stream filters, the end of these is the end of what it is to be given.
MARKERS = [{"type": type, "permissions": None, "user_id": None} for type in TYPES]

batches = st.lists(st.sampled_from(SPECS), min_size=10, max_size=50)
users = st.sampled_from(USERS)
filters = st.sampled_from(FILTERS)


class Emitted(NamedTuple):
    """An event of the model, or a notice when it has no type."""

    position: str
    number: int
    type: str | None = None
    permissions: Sequence[str] | None = None
    user_id: str | None = None


class Who(NamedTuple):
    """What a client had when it was let in."""

    user_id: str
    rights: str
    filter: str


def sees(who: Who, event: Emitted) -> bool:
    """Say what the documentation says, in the fewest words: this is the reference."""
    if event.type is None:
        return False
    if event.permissions is not None and not set(event.permissions) & set(who.rights.split(",")):
        return False
    if event.user_id is not None and event.user_id != who.user_id:
        return False
    return not who.filter or any(fnmatchcase(event.type, part) for part in who.filter.split(","))


def shown(answer: Any) -> list[tuple[str, int]]:
    """Return the positions and numbers of the events in the answer to a poll."""
    return [(event["id"], event["data"]["n"]) for event in answer["events"]]


@dataclass
class Session:
    """A client and what it was given since it was let in.

    :ivar last: the id a browser would come back with.
    :ivar start: how many events of the model there were up to where `given` begins.
    :ivar noticed: how many events there were when its user was told to leave.
    """

    who: Who
    client: SSEClient
    last: str
    start: int
    given: list[tuple[str, int]] = field(default_factory=list)
    noticed: int | None = None

    def next_event(self) -> ServerEvent:
        """Return the next event, and keep it."""
        event = self.client.next_event(TIMEOUT)
        assert event.type != "stream.reset", event
        self.last = event.id
        if event.type in TYPES:
            self.given.append((event.id, event.json["data"]["n"]))
        return event


class Access(RuleBasedStateMachine):
    """Random users on a real server; a subclass says which."""

    site: Site
    workers: int
    deliveries: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.emitted: list[Emitted] = []
        self.index: dict[str, int] = {}
        self.rights = dict.fromkeys(USERS, "")
        self.sessions: list[Session] = []

    @initialize(rights=st.tuples(*[st.sampled_from(RIGHTS)] * len(USERS)))
    def begin(self, rights: tuple[str, ...]) -> None:
        """Give the users their rights, and the model a first position."""
        self.rights = dict(zip(USERS, rights, strict=True))
        self.emit(MARKERS)
        knowing: set[str] = set()

        def known() -> bool:
            answer = self.site.ask("GET", "/state")
            if answer.headers["X-Noc-Position"] in self.index:
                knowing.add(answer.headers["X-Worker"])
            return len(knowing) == self.workers

        wait_until(known, TIMEOUT, "every worker knows the first events")

    def teardown(self) -> None:
        """Check what is left, and close it."""
        try:
            self.settle()
        finally:
            for session in self.sessions:
                session.client.close()

    # What happens.

    @rule(batch=batches)
    def emit(self, batch: Sequence[dict[str, Any]]) -> None:
        """Emit events of random rules."""
        events = self._numbered(batch)
        self._keep(batch, self.site.post("/emit-all", events)["positions"])

    @precondition(lambda self: len(self.sessions) < 12)
    @rule(user=users, filter=filters, back=st.integers(0, 300), resumes=st.booleans())
    def connect(self, user: str, filter: str, back: int, resumes: bool) -> None:
        """Open a stream from now on, or from a while ago."""
        who = Who(user, self.rights[user], filter)
        start = max(1, len(self.emitted) - back) if resumes else None
        self.sessions.append(self._open(who, start))

    @precondition(lambda self: self.sessions)
    @rule(choice=st.integers(0, 11), reads=st.integers(0, 5), batch=batches)
    def reconnect(self, choice: int, reads: int, batch: Sequence[dict[str, Any]]) -> None:
        """Lose a connection with events in it, and come back."""
        session = self.sessions[choice % len(self.sessions)]
        self.emit(batch)
        for _ in range(reads):
            if not session.client.silent_for(0.01):
                session.next_event()
        self._resume(session)

    @rule(user=users, rights=st.sampled_from(RIGHTS), batch=batches)
    def refresh(self, user: str, rights: str, batch: Sequence[dict[str, Any]]) -> None:
        """Change rights: what is emitted after is for those who have the new ones."""
        self.rights[user] = rights
        self._give_notice("/refresh", user, batch)
        for session in [each for each in self.sessions if each.who.user_id == user]:
            self._end(session)
            self._resume(session)

    @rule(user=users, batch=batches)
    def disconnect(self, user: str, batch: Sequence[dict[str, Any]]) -> None:
        """Tell a user to leave: the streams end."""
        self._give_notice("/disconnect", user, batch)
        for session in [each for each in self.sessions if each.who.user_id == user]:
            self._end(session)
            self.sessions.remove(session)

    @rule(user=users, filter=filters, back=st.integers(0, 600))
    def poll(self, user: str, filter: str, back: int) -> None:
        """Ask again and again until the newest position is reached."""
        who = Who(user, self.rights[user], filter)
        start = max(1, len(self.emitted) - back)
        self._poll_on(who, start, start, [])

    @rule(user=users, filter=filters, batch=batches)
    def long_poll(self, user: str, filter: str, batch: Sequence[dict[str, Any]]) -> None:
        """Wait for what has not been emitted yet."""
        who = Who(user, self.rights[user], filter)
        start = len(self.emitted)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self._poll, who, start, wait=TIMEOUT)
            self.emit([*batch, *MARKERS])
            answer = asked.result(2 * TIMEOUT)
        self._poll_on(who, start, self.index[answer["position"]], shown(answer))

    @rule()
    def settle(self) -> None:
        """Let every stream have everything."""
        self.emit(MARKERS)
        for session in list(self.sessions):
            while not self._reaches_end(session):
                self._check(session)
                self._resume(session)
            self._check(session)

    # How it is done.

    def _poll(self, who: Who, at: int, wait: float = 0.0) -> Any:
        query = f"after={self.emitted[at - 1].position}&types={who.filter}&wait={wait}"
        headers = {"X-User": who.user_id, "X-Permissions": who.rights}
        reply: Any = self.site.ask("GET", f"/api/v1/events/poll?{query}", headers=headers)
        answer = json.loads(reply.text)
        assert (reply.status, answer["reset"]) == (200, None), answer
        return answer

    def _poll_on(self, who: Who, start: int, at: int, given: list[tuple[str, int]]) -> None:
        def reached() -> bool:
            nonlocal at
            answer = self._poll(who, at)
            given.extend(shown(answer))
            at = self.index[answer["position"]]
            return at == len(self.emitted)

        wait_until(reached, TIMEOUT, "the poll reaches the newest event")
        self._compare(who, start, at, given)

    def _numbered(self, batch: Sequence[dict[str, Any]], skip: int = 0) -> list[dict[str, Any]]:
        first = len(self.emitted) + skip
        return [{**spec, "data": {"n": first + i}} for i, spec in enumerate(batch)]

    def _keep(self, batch: Sequence[dict[str, Any]], positions: Sequence[str]) -> None:
        for spec, position in zip(batch, positions, strict=True):
            number = len(self.emitted)
            self.emitted.append(Emitted(position, number, **spec))
            self.index[position] = number + 1

    def _give_notice(self, path: str, user: str, batch: Sequence[dict[str, Any]]) -> None:
        for session in self.sessions:
            if session.who.user_id == user:
                session.noticed = len(self.emitted)
        # The events follow in the same request: there is no moment between.
        wanted = {"user_id": user, "then": self._numbered(batch, 1)}
        positions = self.site.post(path, wanted)["positions"]
        self.emitted.append(Emitted(positions[0], len(self.emitted)))
        self.index[positions[0]] = len(self.emitted)
        self._keep(batch, positions[1:])

    def _open(self, who: Who, start: int | None) -> Session:
        last = None if start is None else self.emitted[start - 1].position
        client = self.site.stream(
            f"?types={who.filter}",
            headers={"X-User": who.user_id, "X-Permissions": who.rights},
            last_event_id=last,
        )
        opening = client.next_event(TIMEOUT)
        assert opening.type == "stream.open"
        # Another worker may not know the newest yet; it says from where on it tells.
        begun = self.index[opening.id]
        assert start is None or begun == start
        return Session(who, client, opening.id, begun)

    def _resume(self, session: Session) -> None:
        """Come back as a browser does: after the last id that was seen, with today's rights."""
        self._check(session)
        session.client.close()
        user_id, _, filter = session.who
        who = Who(user_id, self.rights[user_id], filter)
        resumed = self._open(who, self.index[session.last])
        self.sessions[self.sessions.index(session)] = resumed

    def _end(self, session: Session) -> None:
        """See a stream end, and before anything that was emitted after the notice."""
        event = session.next_event()
        while event.type != "stream.close":
            event = session.next_event()
        assert event.json["reason"] in ("disconnected", "refresh")
        assert session.client.until_end(TIMEOUT) == []
        assert not session.client.truncated
        assert session.noticed is not None
        assert self.index[session.last] <= session.noticed
        self._check(session)
        session.client.close()

    def _reaches_end(self, session: Session) -> bool:
        """Read to the last event that is for the stream; False when it ended before."""
        mine = (event for event in reversed(self.emitted) if sees(session.who, event))
        last = next(mine).position
        while session.last != last:
            event = session.next_event()
            if event.type == "stream.close":
                # A worker let it in that had not heard of an earlier notice yet.
                assert event.json["reason"] in ("disconnected", "refresh")
                assert self.workers > 1
                return False
        return True

    def _check(self, session: Session) -> None:
        stop = self.index[session.last]
        self._compare(session.who, session.start, stop, session.given)
        session.start, session.given = stop, []

    def _compare(self, who: Who, start: int, stop: int, given: Sequence[tuple[str, int]]) -> None:
        wanted = [(e.position, e.number) for e in self.emitted[start:stop] if sees(who, e)]
        assert list(given) == wanted, f"{who} from {start} to {stop}"
        self.deliveries[0] += len(given)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("worker_class", ["gevent", "gthread"], ids=["detached", "portable"])
@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_everybody_is_given_what_they_may_see_and_nothing_else(
    broker: str, worker_class: str, gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """Live, replayed and polled, across refreshes and disconnects, on one worker or two."""
    url, workers = ("memory://", 1) if broker == "memory" else (redis_server().url, 2)
    args = ["--threads", "200"] if worker_class == "gthread" else []
    env = {"NOC_REALTIME_URL": url}
    server = gunicorn(APP, worker_class=worker_class, workers=workers, args=args, env=env)
    count = [0]
    machine = type(
        "Machine",
        (Access,),
        {"site": Site(server.address), "workers": workers, "deliveries": count},
    )
    effort = settings(
        max_examples=5,
        stateful_step_count=40,
        deadline=None,
        derandomize=False,  # Or each round would repeat the first, on a CI machine.
        # To shrink an example on a real server takes longer than to read it.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    while count[0] < DELIVERIES / 4:
        run_state_machine_as_test(machine, settings=effort)
