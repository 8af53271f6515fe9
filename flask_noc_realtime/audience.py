"""Who sees which event: the one function that decides for live, replay and polling."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum

from .errors import ParameterError
from .event import NOTICES, Rule

MAX_PATTERNS = 32
MAX_FILTER_LENGTH = 1024

_PATTERN = re.compile(r"\*|[a-z][a-z0-9_]*(\.[a-z0-9_]+)*(\.[a-z0-9_]+|\.\*)", re.ASCII)
_VERDICTS_LIMIT = 4096


class Verdict(Enum):
    """What an audience class does with an event."""

    HIDDEN = 0
    SEEN = 1
    PRIVATE = 2


@dataclass(frozen=True, slots=True)
class TypeFilter:
    """Event types a stream asked for: exact names and ``prefix.*`` patterns. Empty is all."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> TypeFilter:
        """Read ``"incident.*,log.added"``.

        :raises ParameterError: for anything else, and for more than MAX_PATTERNS patterns.
        """
        if not text:
            return cls()
        if len(text) > MAX_FILTER_LENGTH:
            raise ParameterError(f"types is longer than {MAX_FILTER_LENGTH} characters")
        patterns = {part.strip(" ") for part in text.split(",")} - {""}
        if len(patterns) > MAX_PATTERNS:
            raise ParameterError(f"types names more than {MAX_PATTERNS} patterns")
        for pattern in patterns:
            if not _PATTERN.fullmatch(pattern):
                raise ParameterError(
                    f"types has {pattern!r:.80}; use names such as incident.created or incident.*"
                )
        if "*" in patterns:
            return cls()
        prefixes = sorted(pattern[:-1] for pattern in patterns if pattern.endswith(".*"))
        return cls(frozenset(p for p in patterns if not p.endswith(".*")), tuple(prefixes))

    def matches(self, type: str) -> bool:
        """Tell whether *type* was asked for."""
        if not self.names and not self.prefixes:
            return True
        return type in self.names or type.startswith(self.prefixes)


@dataclass(frozen=True, slots=True)
class Audience:
    """The rights and the filter of a stream.

    An event with permissions is seen by a stream holding any of them, one with a user_id by
    that user only, one with neither by all; the filter narrows and never widens. Streams whose
    `shared` audience is equal form an audience class and are sent the same bytes.
    """

    permissions: frozenset[str] = frozenset()
    types: TypeFilter = TypeFilter()
    user_id: str | None = None
    _verdicts: dict[Rule, Verdict] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def shared(self) -> Audience:
        """The audience class: the same rights and filter, whoever the user is."""
        return self if self.user_id is None else replace(self, user_id=None)

    def sees(self, rule: Rule) -> bool:
        """Tell whether an event under *rule* belongs on this stream."""
        return self.verdict(rule) is Verdict.SEEN

    def verdict(self, rule: Rule) -> Verdict:
        """Judge *rule*: PRIVATE is seen by the rule's own user among the class."""
        general = rule.general or rule
        verdict = self._verdicts.get(general)
        if verdict is None:
            if len(self._verdicts) >= _VERDICTS_LIMIT:
                self._verdicts.clear()
            # Remembered for all users: a class would keep a verdict on each of thousands.
            verdict = self._verdicts[general] = self._judge(general)
        if rule.user_id is None or verdict is not Verdict.SEEN or rule.user_id == self.user_id:
            return verdict
        return Verdict.PRIVATE if self.user_id is None else Verdict.HIDDEN

    def _judge(self, rule: Rule) -> Verdict:
        """Judge a rule, whatever user it is about."""
        if rule.type in NOTICES:
            return Verdict.PRIVATE if self.user_id is None else Verdict.HIDDEN
        if rule.permissions is not None and self.permissions.isdisjoint(rule.permissions):
            return Verdict.HIDDEN
        return Verdict.SEEN if self.types.matches(rule.type) else Verdict.HIDDEN
