"""The commands of ``flask noc-realtime``, for whoever stands before a terminal."""

from __future__ import annotations

import json
import secrets
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from .blueprint import EXTENSION
from .broker import Broker
from .errors import ConfigError, EventError, NocRealtimeError, ParameterError
from .event import notice

if TYPE_CHECKING:
    from .extension import State


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


def _state() -> State:
    state: State | None = current_app.extensions.get(EXTENSION)
    if state is None:
        raise ConfigError(f"{current_app.name!r} has no NocRealtime; call NocRealtime(app).")
    return state


def _shared(state: State) -> Broker:
    """Return the broker, if other processes can be reached through it."""
    broker = state.process().broker
    if not broker.shared:
        raise ConfigError(
            "NOC_REALTIME_URL is memory://: events stay in the process that emits them, and this "
            "command is a process of its own. Set it to the URL of a Redis."
        )
    return broker


def _publish(broker: Broker, record: bytes) -> str:
    """Publish at once or not at all: whoever waits before a terminal wants to know."""
    return broker.publish(record, f"cli-{secrets.token_hex(8)}")
