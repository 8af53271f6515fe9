"""What was measured, next to what it should be."""

from __future__ import annotations

from collections.abc import Iterator
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
        if self.value is None:
            return "none"
        if isinstance(self.value, float):
            digits = 0 if abs(self.value) >= 1000 else 1 if abs(self.value) >= 10 else 2
            text = f"{self.value:,.{digits}f}"
        else:
            text = f"{self.value:,}" if isinstance(self.value, int) else self.value
        return f"{text} {self.unit}".rstrip()


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
