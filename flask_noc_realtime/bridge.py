"""Bridges: events from the signals an app sends already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blinker import Signal

from .recipe import Data, Permissions, Recipe, User

if TYPE_CHECKING:
    from .extension import NocRealtime


class Bridge:
    """Turns a signal into events until it is stopped.

    :param extension: keeps it, for blinker keeps receivers only as long as somebody else does.
    """

    def __init__(
        self,
        extension: NocRealtime,
        signal: Signal,
        type: str,
        data: Data | None,
        permissions: Permissions | None,
        user_id: User | None,
        sender: Any,
    ) -> None:
        self._extension = extension
        self._signal = signal
        self._recipe = Recipe(type, _keywords if data is None else data, permissions, user_id)
        self._sender = sender
        signal.connect(self._receive, sender)
        extension._wires.add(self)

    def stop(self) -> None:
        """Emit no more."""
        self._signal.disconnect(self._receive, self._sender)
        self._extension._wires.discard(self)

    def _receive(self, sender: Any, **keywords: Any) -> None:
        recipe = self._recipe
        state = self._extension._addressed(recipe.type)
        if state is not None:
            try:
                values = {"sender": sender, **keywords}
                recipe.check(values)
                state.emit(recipe.type, *recipe.fill(values))
            except Exception:
                state.forgive(recipe.type)


def _keywords(sender: Any, **keywords: Any) -> dict[str, Any]:
    return keywords
