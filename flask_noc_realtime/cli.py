"""The commands of ``flask noc-realtime``, for whoever stands before a terminal."""

from __future__ import annotations

import json
import os
import secrets
import select
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from .audience import TypeFilter
from .blueprint import EXTENSION
from .broker import Broker
from .config import key_of
from .errors import BrokerUnavailable, ConfigError, EventError, NocRealtimeError, ParameterError
from .event import notice
from .eventlog import UNKNOWN
from .process import create_broker
from .tail import Page, Tail

if TYPE_CHECKING:
    from .broker.redis import RedisBroker
    from .doctor import Finding
    from .extension import State
    from .load import Answered, Streamed

_PIPE_CHECK = 0.5
_WIDTH = 96


class Group(AppGroup):
    """Tells our errors in one line, and loads the relay only for an app that can have one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = super().list_commands(ctx)
        return sorted([*names, "relay"] if find_spec("sqlalchemy") else names)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "relay" and find_spec("sqlalchemy"):
            from .relay import relay_command

            return relay_command
        return super().get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (EventError, ParameterError) as error:
            raise click.UsageError(str(error)) from error
        except NocRealtimeError as error:
            raise click.ClickException(str(error)) from error


@click.group("noc-realtime", cls=Group)
def group() -> None:
    """Emit and follow events, and look after the streams.

    Exit codes: 0 when it is done, 1 when it cannot be done now, 2 when it was asked wrongly.
    """


@group.command("emit")
@click.argument("type")
@click.argument("data", metavar="[JSON]", default="null")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    metavar="NAME",
    help="Only streams that hold it see the event; may be given several times, for any of them.",
)
@click.option("--user", metavar="ID", help="Only this user sees the event.")
def emit_command(type: str, data: str, permissions: tuple[str, ...], user: str | None) -> None:
    """Emit an event, and print its position.

    JSON is the event's data; - reads it from the standard input.
    """
    state = _state()
    text = sys.stdin.read() if data == "-" else data
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="JSON") from error
    record = state.encode(type, value, permissions or None, user)
    click.echo(_publish(_shared(state), record))


@group.command("tail")
@click.option("--types", default="", metavar="PATTERNS", help="Such as incident.*,log.added.")
@click.option("--since", metavar="POSITION|DURATION", help="Start there, or so long ago: 1h30m.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line.")
def tail_command(types: str, since: str | None, as_json: bool) -> None:
    """Follow all events, whoever may see them, until Ctrl-C."""
    state = _state()
    _shared(state)
    config = state.config
    tail = Tail(TypeFilter.parse(types), config.history_events, config.history_bytes)
    broker = create_broker(config)
    try:
        position = tail.start(broker, since)
        click.echo(f"Following what comes after {position}.", err=True)
        while _is_read():
            _show(tail.read(_PIPE_CHECK), as_json)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What the interpreter flushes at its end would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        broker.close()


@group.command("stats")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.option("--wait", default=1.0, show_default=True, help="Seconds the workers have to answer.")
def stats_command(as_json: bool, wait: float) -> None:
    """Show the workers: their streams, their positions, and how far they are behind.

    Asks each worker that has served a stream or a position. Ends with 1 when one does not answer.
    """
    broker = _redis(_state())
    newest = broker.newest()
    asked, reports = broker.survey(wait)
    workers = [_with_delay(json.loads(report), newest) for report in reports]
    workers.sort(key=lambda worker: (worker["host"], worker["pid"]))
    silent = 0 if asked is None else asked - len(workers)
    if as_json:
        click.echo(json.dumps({"position": newest, "workers": workers, "silent": silent}))
    else:
        _show_workers(newest, workers)
    if silent:
        click.echo(f"{silent} of {asked} workers did not answer within {wait:g} s.", err=True)
        raise SystemExit(1)


@group.command("types")
def types_command() -> None:
    """List the event types the app knows."""
    for type in _state().catalogue.types():
        click.echo(type)


@group.command("disconnect")
@click.argument("user")
def disconnect_command(user: str) -> None:
    """End every stream of USER, on every worker.

    Withdraw the rights first: a client that still has them comes back.
    """
    if not user:
        raise click.BadParameter("is empty", param_hint="USER")
    broker = _shared(_state())
    _publish(broker, notice("stream.disconnect", user))
    click.echo(f"The streams of {user} end.")


@group.command("rollout")
@click.argument("percent", type=float, required=False)
@click.option("--allow", multiple=True, metavar="USER", help="Give USER streams in any case.")
@click.option("--deny", multiple=True, metavar="USER", help="Leave USER to polling in any case.")
@click.option("--forget", multiple=True, metavar="USER", help="Take USER off both lists.")
@click.option("--reset", is_flag=True, help="Begin with NOC_REALTIME_ROLLOUT and empty lists.")
def rollout_command(
    percent: float | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    forget: tuple[str, ...],
    reset: bool,
) -> None:
    """Show which users have streams, or change it on every worker.

    PERCENT of the users have them, and the others poll. The options add to the lists, and may be
    given several times.
    """
    state = _state()
    _shared(state)
    configured = state.configured_rollout
    before = configured if reset else state.rollout()
    named = {*allow, *deny, *forget}
    try:
        after = replace(
            before,
            percent=before.percent if percent is None else percent,
            allow=(before.allow - named) | set(allow),
            deny=(before.deny - named) | set(deny),
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    changed = percent is not None or bool(named)
    if changed or reset:
        state.store_rollout(after if changed else None)
    origin = "stored" if changed or before is not configured else key_of("rollout")
    click.echo(f"percent: {after.percent:g} ({origin})")
    click.echo(f"allow: {', '.join(sorted(after.allow)) or '-'}")
    click.echo(f"deny: {', '.join(sorted(after.deny)) or '-'}")


_SECONDS = click.FloatRange(0.0, 3600.0)
_PATIENCE = click.FloatRange(0.1, 3600.0)
# Fewer than the ports that one address has for one server.
_STREAMS = click.IntRange(0, 20_000)
_TOKEN = click.option(
    "--token",
    envvar="NOC_REALTIME_TOKEN",
    metavar="JWT",
    help="Sent as a bearer token; NOC_REALTIME_TOKEN in the environment is seen by fewer.",
)
_HEADERS = click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="Sent with each request; may be given several times.",
)


@group.command("doctor")
@click.option("--url", help="Look at the running app too, as it is reached: https://noc.example.")
@_TOKEN
@_HEADERS
@click.option(
    "--wait", type=_SECONDS, default=0.0, metavar="SECONDS", help="Watch the stream for so long."
)
@click.option(
    "--timeout", type=_PATIENCE, default=10.0, show_default=True, help="Seconds an answer may take."
)
@click.option("--streams", default=1000, show_default=True, help="Streams a worker is to hold.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def doctor_command(
    url: str | None,
    token: str | None,
    headers: tuple[str, ...],
    wait: float,
    timeout: float,
    streams: int,
    as_json: bool,
) -> None:
    """Find what is wrong with what the app runs in, and say what to do.

    Run it on a machine of the app, where gunicorn is started, and with --url from where users are.
    Ends with 1 when something fails.
    """
    from . import doctor, surroundings
    from .target import Target
    from .visit import visit

    state = _state()
    config = state.config
    target = Target.parse(url, headers).carrying(token) if url is not None else None
    here = surroundings.look_around(config, identifies=state.identifies, streams=streams)
    found = {"here": doctor.judge_surroundings(here)}
    if config.url != "memory://":
        asked = "redis"
        try:
            found[asked] = doctor.judge_redis(surroundings.ask_redis(config))
            asked = "workers"
            workers = surroundings.ask_workers(_redis(state).survey, streams)
            found[asked] = doctor.judge_workers(workers)
        except BrokerUnavailable as error:
            found[asked] = [doctor.unreachable(error)]
    if target is not None:
        seen = visit(target, config.prefix, patience=timeout, wait=wait)
        found[target.shown] = doctor.judge_visit(seen)
    _show_findings(found, as_json)
    if any(finding.level == doctor.FAIL for each in found.values() for finding in each):
        raise SystemExit(1)


@group.command("load")
@click.option("--url", required=True, help="The app, as it is reached: https://noc.example.")
@_TOKEN
@click.option(
    "--tokens",
    type=click.File(),
    metavar="FILE",
    help="A token a line, one for each user; they take turns.",
)
@_HEADERS
@click.option("--streams", type=_STREAMS, default=1000, show_default=True)
@click.option(
    "--ramp",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    help="Seconds in which streams are begun.",
)
@click.option(
    "--hold",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    help="Seconds for which they are read.",
)
@click.option("--herd", metavar="PATH", help="Ask for this page at once, after the streams.")
@click.option("--callers", type=click.IntRange(1, 5_000), default=500, show_default=True)
@click.option(
    "--timeout", type=_PATIENCE, default=30.0, show_default=True, help="Seconds an answer may take."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def load_command(
    url: str,
    token: str | None,
    tokens: Any,
    headers: tuple[str, ...],
    streams: int,
    ramp: float,
    hold: float,
    herd: str | None,
    callers: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Put load on a running app: many streams, and many who ask for one page at once.

    Ends with 1 when a stream or an answer fails.
    """
    from . import load
    from .target import Target

    prefix = _state().config.prefix
    if not streams and herd is None:
        raise click.UsageError("There is nothing to do: give --streams or --herd.")
    target = Target.parse(url, headers)
    named = [line.strip() for line in tokens or () if line.strip()] or [token]
    targets = [target.carrying(each) for each in named]
    stampede = None if herd is None else load.Herd(herd, callers, timeout)
    found: dict[str, Streamed | Answered] = {}
    if streams:
        plan = load.Ramp(streams, ramp, hold, timeout)
        found["streams"] = load.open_streams(targets, prefix, plan)
    if stampede is not None:
        found["herd"] = load.send_herd(targets, stampede)
    _show_load(found, as_json)
    if not all(each.sound for each in found.values()):
        raise SystemExit(1)


def _state() -> State:
    state: State | None = current_app.extensions.get(EXTENSION)
    if state is None:
        raise ConfigError(f"{current_app.name!r} has no NocRealtime; call NocRealtime(app).")
    return state


def _show(page: Page, as_json: bool) -> None:
    if page.gap:
        click.echo("Events are missing here: they had left the log.", err=True)
    if page.events:
        lines = [event.as_json() if as_json else event.as_text() for event in page.events]
        click.echo("\n".join(lines))


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f} s"


_COLUMNS = (
    ("worker", 24, lambda worker: f"{worker['host']}:{worker['pid']}"),
    ("detached", -9, lambda worker: f"{worker['detached']:,}"),
    ("portable", -9, lambda worker: f"{worker['portable']:,}"),
    ("position", -20, lambda worker: worker["position"]),
    ("delay", -10, lambda worker: _seconds(worker["delay"])),
    ("behind", -7, lambda worker: f"{worker['behind']:,}"),
    ("queued", -7, lambda worker: f"{worker['queued']:,}"),
    ("dropped", -8, lambda worker: f"{worker['dropped']:,}"),
)


def _show_workers(newest: str | None, workers: list[dict[str, Any]]) -> None:
    rows = [[name for name, _, _ in _COLUMNS]]
    rows += [[show(worker) for _, _, show in _COLUMNS] for worker in workers]
    for row in rows:
        cells = zip(row, _COLUMNS, strict=True)
        line = [
            cell.ljust(width) if width > 0 else cell.rjust(-width) for cell, (_, width, _) in cells
        ]
        click.echo(" ".join(line))
    streams = sum(worker["detached"] + worker["portable"] for worker in workers)
    click.echo(f"{len(workers)} workers, {streams:,} streams, newest position {newest or 'none'}.")


def _show_findings(found: dict[str, list[Finding]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({of: [each._asdict() for each in found[of]] for of in found}))
        return
    for of, findings in found.items():
        click.echo(of)
        for level, what, what_to_do in findings:
            click.echo(click.wrap_text(what, _WIDTH, f"  {level:4}  ", " " * 8))
            if what_to_do:
                click.echo(click.wrap_text(what_to_do, _WIDTH, " " * 8 + "-> ", " " * 11))
    levels = Counter(finding.level for findings in found.values() for finding in findings)
    click.echo(", ".join(f"{levels[level]} {level}" for level in ("ok", "warn", "fail")) + ".")


def _show_load(found: dict[str, Streamed | Answered], as_json: bool) -> None:
    bodies = {of: each.body() for of, each in found.items()}
    if as_json:
        click.echo(json.dumps(bodies))
        return
    for of, body in bodies.items():
        click.echo(of)
        for name, value in body.items():
            if isinstance(value, dict):
                value = ", ".join(f"{each} {number:,}" for each, number in value.items())
            shown = f"{value:,}" if isinstance(value, (int, float)) else value or "-"
            click.echo(f"  {name.replace('_', ' '):16} {shown}")


def _with_delay(worker: dict[str, Any], newest: str | None) -> dict[str, Any]:
    """Add the seconds between the newest event and the newest one the worker has."""
    ages = [int(position.partition("-")[0]) for position in (newest or UNKNOWN, worker["position"])]
    known = worker["position"] != UNKNOWN
    return {**worker, "delay": max(0, ages[0] - ages[1]) / 1000 if known else None}


def _is_read() -> bool:
    """Tell whether somebody may read the output: a pipe nothing is written to never breaks."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return not poll.poll(0)


def _shared(state: State) -> Broker:
    """Return the broker, if other processes can be reached through it."""
    broker = state.process().broker
    if not broker.shared:
        raise ConfigError(
            "NOC_REALTIME_URL is memory://: events stay in the process that emits them, and this "
            "command is a process of its own. Set it to the URL of a Redis."
        )
    return broker


def _redis(state: State) -> RedisBroker:
    from .broker.redis import RedisBroker

    broker = _shared(state)
    assert isinstance(broker, RedisBroker)
    return broker


def _publish(broker: Broker, record: bytes) -> str:
    """Publish at once or not at all: whoever waits before a terminal wants to know."""
    return broker.publish(record, f"cli-{secrets.token_hex(8)}")
