"""One command to Redis and its reply, in two thirds of the time the client's own way takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

AWAY = (redis.RedisError, OSError)
"""What redis-py raises when Redis is away, or does not do what it is told."""

ONCE = Retry(NoBackoff(), 0)
"""Send nothing twice: a second time would do again what was done when only the answer was lost."""


class NoConnection(redis.ConnectionError):
    """Nothing was sent, for the reason that there is no connection."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Script:
    """A Lua script, which Redis knows by its digest once it has run it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def run(
        self, client: Any, keys: Sequence[Any], arguments: Sequence[Any], *, at_once: bool = False
    ) -> Any:
        """Run it with keys and arguments.

        :param at_once: see `ask`.
        :raises redis.RedisError: when it may have run, or not.
        """
        words = (len(keys), *keys, *arguments)
        try:
            return ask(client, "EVALSHA", self.sha, *words, at_once=at_once)
        except NoScriptError:
            return ask(client, "EVAL", self.text, *words)


class Call:
    """A script with keys and first arguments that stay the same, encoded once."""

    def __init__(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> None:
        self._script = script
        self._keys = keys
        self._arguments = arguments
        words = ("EVALSHA", script.sha, str(len(keys)), *keys, *arguments)
        self._count = len(words)
        self._head = _bulks([word.encode() for word in words])

    def run(self, client: Any, arguments: Sequence[bytes]) -> Any:
        """Run it with the rest of its arguments.

        :raises redis.RedisError: when it may have run, or not.
        """
        count = self._count + len(arguments)
        try:
            return ask_packed(client, b"*%d\r\n%b%b" % (count, self._head, _bulks(arguments)))
        except NoScriptError:
            return self._script.run(client, self._keys, (*self._arguments, *arguments))


def ask(client: Any, *words: Any, at_once: bool = False) -> Any:
    """Return the reply to a command; it is sent once, whatever happens.

    :param at_once: whether to wait for it on the spot for a moment, though others could run.
    :raises NoConnection: when it was not sent.
    :raises redis.RedisError: when it may have been carried out, or not.
    """
    return ask_packed(client, _pack([_encoded(word) for word in words]), at_once=at_once)


def ask_packed(client: Any, command: bytes, *, at_once: bool = False) -> Any:
    """Return as `ask` does the reply to a command that is encoded already."""
    pool = client.connection_pool
    connection = _connection(pool)
    try:
        # Both disconnect when they are cut short, so that nobody gets another's reply.
        connection.send_packed_command([command])
        if at_once:
            connection.linger()
        return connection.read_response()
    finally:
        pool.release(connection)


def ask_primary(client: Any, key: str, *words: str, at_once: bool = False) -> Any:
    """Return the reply to a command that reads *key*, a hash, of a node that takes writes.

    A replica, or a primary that was cut off from its replicas, answers with what was. In a
    cluster such a node sends its readers away.

    :param at_once: see `ask`.
    :raises redis.RedisError: when it takes none, or the reply is not known.
    """
    pool = client.connection_pool
    connection = _connection(pool)
    try:
        # No hash has a field without a name, and nothing is written.
        connection.send_packed_command([_packed(words, ("HDEL", key, ""))])
        if at_once:
            connection.linger()
        reply = connection.read_response()
        connection.read_response()
        return reply
    except BaseException:
        # The second reply may be left on it.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _connection(pool: Any) -> Any:
    try:
        return pool.get_connection()
    except AWAY as error:
        raise NoConnection(error) from error


@lru_cache(maxsize=1024)
def _packed(*commands: Sequence[str]) -> bytes:
    """Encode commands as Redis reads them, for once and all: it takes as long as asking."""
    return b"".join([_pack([word.encode() for word in command]) for command in commands])


def _pack(words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(words), _bulks(words))


def _bulks(words: Sequence[bytes]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def _encoded(word: bytes | str | int) -> bytes:
    if isinstance(word, str):
        return word.encode()  # An enum's str() is not its value.
    return word if isinstance(word, bytes) else str(word).encode()
