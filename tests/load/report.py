"""What was measured, next to what it should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Value = float | int | str | None


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    value: Value
    unit: str = ""
    target: str = ""

    def __str__(self) -> str:
        return "none" if self.value is None else f"{shown(self.value)} {self.unit}".rstrip()


class Report:
    """The figures of one scenario."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.figures: list[Figure] = []

    def add(self, name: str, value: Value, unit: str = "", target: str = "") -> None:
        """Append a row."""
        self.figures.append(Figure(name, value, unit, target))

    def __getitem__(self, name: str) -> Value:
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(name)

    def values(self) -> dict[str, Value]:
        """Return the figures as JSON holds them."""
        return {figure.name: figure.value for figure in self.figures}

    def lines(self) -> Iterator[str]:
        """Yield the table."""
        rows = [(figure.name, str(figure), figure.target) for figure in self.figures]
        rows.insert(0, (self.title, "measured", "target"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            name, value, target = (
                row[0].ljust(widths[0]),
                row[1].rjust(widths[1]),
                row[2].ljust(widths[2]),
            )
            yield f"{name}  {value}  {target}".rstrip()


class Comparison:
    """Figures of several libraries side by side.

    :param names: of the libraries.
    """

    def __init__(self, title: str, names: Sequence[str]) -> None:
        self.title = title
        self.names = names
        self._rows: dict[str, dict[str, Value]] = {}
        self._targets: dict[str, str] = {}

    def add(self, row: str, name: str, value: Value, target: str = "") -> None:
        """Note a figure; rows are in the order in which they are first named."""
        self._rows.setdefault(row, {})[name] = value
        self._targets[row] = target

    def __getitem__(self, row: str) -> dict[str, Value]:
        return self._rows[row]

    def values(self) -> dict[str, dict[str, Value]]:
        """Return the figures as JSON holds them."""
        return self._rows

    def lines(self) -> Iterator[str]:
        """Yield the table; what a library does not do is a dash."""
        rows = [(self.title, "target", *self.names)]
        for row, values in self._rows.items():
            cells = [values.get(name) for name in self.names]
            texts = ["-" if cell is None else shown(cell) for cell in cells]
            rows.append((row, self._targets[row], *texts))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            first, *others = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
            yield "  ".join([row[0].ljust(len(first)), *others])


def shown(value: float | int | str) -> str:
    """Return *value* with as many digits as mean something."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
