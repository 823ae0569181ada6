"""A study is data: a question, rows and columns of cells, and what each cell changes in a preset's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import Config, applicable, override, unknown
from ..presets import PRESETS, preset

# A label -> the fields ("section.name", or "method") that it sets.
Axis = Mapping[str, Mapping[str, Any]]

SIMCLR, BALANCED = "simclr", "simclr, balanced"
CONTROLS: Axis = {SIMCLR: {"method": "simclr"}, BALANCED: {"method": "simclr", "data.balanced": True}}


@dataclass(frozen=True)
class Times:
    """A multiple of the preset's own value, or of each of its values where there are several."""

    factor: float

    def of(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self.of, value))
        return round(value * self.factor) if isinstance(value, int) else value * self.factor


def over(name: str, *values: Any, short: str = "") -> Axis:
    """An axis over the values of one field, labelled as in "tau_0=0.2" (multiples of the preset's: "lr x2")."""
    short = short or name.rpartition(".")[2]
    labels = [f"{short} x{v.factor:g}" if isinstance(v, Times) else f"{short}={v}" for v in values]
    return {label: {name: value} for label, value in zip(labels, values)}


def methods(*names: str) -> Axis:
    return {name: {"method": name} for name in names}


def cross(first: Axis, second: Axis) -> Axis:
    """Every label of the one with every label of the other."""
    return {f"{a}, {b}": {**x, **y} for a, x in first.items() for b, y in second.items()}


@dataclass(frozen=True)
class Cell:
    """One setting of a study, by its labels."""

    row: str
    column: str
    changes: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.row}, {self.column}" if self.column else self.row


@dataclass(frozen=True)
class Study:
    """A table or an ablation: `rows` x `columns`, and `extras`, rows of their own outside the columns.

    `base` holds fields that all cells share. Differences are taken to the row `reference`: in the same column where it
    is there, else in `reference_column`. Rows that are `outside` are no competitors: upper bounds. `figure` is bars,
    heat or curve. With `on_features` nothing is trained per cell: the cells are ways to cluster the features of the
    one run that each seed has. `presets`: where the study is defined on its own.
    """

    name: str
    question: str
    rows: Axis
    reference: str
    columns: Axis = field(default_factory=lambda: {"": {}})
    extras: Axis = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    reference_column: str = ""
    presets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("linear", "few-shot", "lt-knn")
    figure: str = "bars"
    on_features: bool = False
    outside: tuple[str, ...] = (BALANCED, "oracle")

    @property
    def cells(self) -> list[Cell]:
        grid = [Cell(r, c, _joined(x, y)) for r, x in self.rows.items() for c, y in self.columns.items()]
        return grid + [Cell(row, "", changes) for row, changes in self.extras.items()]

    def with_headroom(self) -> Study:
        """The same study with SimCLR on the long tail and on a balanced set of equal size among its rows."""
        there = {**self.rows, **self.extras}
        more = {row: changes for row, changes in CONTROLS.items() if row not in there}
        return self if self.on_features else dataclasses.replace(self, extras={**self.extras, **more})

    def only(self, rows: Iterable[str] = (), columns: Iterable[str] = ()) -> Study:
        """The study with these rows and columns only (none named: all); raises ConfigError for unknown ones."""
        rows, columns = list(rows), list(columns)
        _known("row", rows, {**self.rows, **self.extras})
        _known("column", columns, self.columns)
        kept = {"rows": self.rows, "extras": self.extras} if rows else {}
        parts = {name: {row: axis[row] for row in axis if row in rows} for name, axis in kept.items()}
        if columns:
            parts["columns"] = {column: self.columns[column] for column in self.columns if column in columns}
        return dataclasses.replace(self, **parts)

    def against(self, reference: str) -> Study:
        """The study with another row to take differences to; raises ConfigError for an unknown one."""
        _known("row", [reference], {**self.rows, **self.extras})
        return dataclasses.replace(self, reference=reference)

    def config(self, cell: Cell | None, name: str, seed: int, overrides: Mapping[str, Any] | None = None) -> Config:
        """A cell's configuration on the preset `name`: preset, method, `base`, `overrides`, then the cell's changes.

        Without a cell: what the cells of one seed share. Multiples are of what was there before.
        """
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        changes = cell.changes if cell else {}
        plain = {field: value for field, value in changes.items() if not isinstance(value, Times)}
        settled = dict(plain)
        method = settled.pop("method", self.base.get("method", "tase"))
        base = {field: value for field, value in self.base.items() if field != "method"}
        config = preset(name, method, seed, {**base, **applicable(overrides or {}, method), **settled})
        multiples = {field: value for field, value in changes.items() if field not in plain}
        for dotted, times in multiples.items():
            section, leaf = dotted.split(".")
            multiples[dotted] = times.of(getattr(getattr(config, section), leaf))
        return override(config, multiples)


def _joined(row: Mapping[str, Any], column: Mapping[str, Any]) -> Mapping[str, Any]:
    """The changes of both; a field of several values that both set is put together from theirs."""
    return {**row, **column, **{field: row[field] + column[field] for field in row if field in column}}


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


def is_tailed_twin(tailed: Config, balanced: Config) -> bool:
    """Whether the two runs differ in the balance of their training set only."""
    return balanced.data.balanced and tailed == override(balanced, {"data.balanced": False})
