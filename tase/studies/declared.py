"""Studies as data: a question, rows and columns of cells, and what each cell changes in a preset's configuration.

The declared ones are in STUDIES.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import ESTIMATORS, Config, ConfigError, applicable, fields, override, unknown
from ..presets import preset

# A label -> the fields ("section.name", or "method") that it sets.
Axis = Mapping[str, Mapping[str, Any]]

SIMCLR, BALANCED = "simclr", "simclr, balanced"
CONTROLS: Axis = {SIMCLR: {"method": "simclr"}, BALANCED: {"method": "simclr", "data.balanced": True}}


@dataclass(frozen=True)
class Multiple:
    """A multiple of the preset's own value, or of each of its values where there are several."""

    factor: float

    def of(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(map(self.of, value))
        return round(value * self.factor) if isinstance(value, int) else value * self.factor

    def __str__(self) -> str:
        return f"x{self.factor:g}"


def over(name: str, *values: Any) -> Axis:
    """Make an axis over the values of one field, labelled as in "tau_0=0.2" (multiples of the preset's: "lr x2")."""
    short = name.rpartition(".")[2]
    return {f"{short} {v}" if isinstance(v, Multiple) else f"{short}={v}": {name: v} for v in values}


def each_method(*names: str) -> Axis:
    """Make an axis of methods."""
    return {name: {"method": name} for name in names}


def cross(first: Axis, second: Axis) -> Axis:
    """Cross every label of the one axis with every label of the other."""
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

    `base` holds fields that all cells share. Differences are taken to the row `reference`: in `reference_column`, if
    one is named, else in the same column. `contrast` names two columns: the table then also has the difference of
    the differences, (row - reference) in the one minus the same in the other. Rows that are `outside` are no
    competitors: upper bounds. `costs` adds time and memory next to accuracy. `figure` is bars, heat or curve. With
    `on_features` nothing is trained per cell: the cells are ways to cluster the features of the one run that each
    seed has. `presets`: where the study is defined on its own.
    """

    name: str
    question: str
    rows: Axis
    reference: str = SIMCLR
    columns: Axis = field(default_factory=lambda: {"": {}})
    extras: Axis = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    reference_column: str = ""
    contrast: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("linear", "few-shot", "lt-knn")
    figure: str = "bars"
    on_features: bool = False
    costs: bool = False
    outside: tuple[str, ...] = (BALANCED, "oracle")

    @property
    def cells(self) -> list[Cell]:
        grid = [Cell(r, c, _merged_changes(x, y)) for r, x in self.rows.items() for c, y in self.columns.items()]
        return grid + [Cell(row, "", changes) for row, changes in self.extras.items()]

    @property
    def axes(self) -> dict[str, dict[str, Any]]:
        """What each label of a row or column sets, as JSON has it; multiples of a preset's value as "x2"."""
        labels = {**self.rows, **self.extras, **self.columns}
        return {
            label: {name: str(v) if isinstance(v, Multiple) else v for name, v in changes.items()}
            for label, changes in labels.items()
        }

    def with_headroom(self) -> Study:
        """Add SimCLR on the long tail and on a balanced set of equal size to the rows."""
        there = {**self.rows, **self.extras}
        more = {row: changes for row, changes in CONTROLS.items() if row not in there}
        return self if self.on_features else dataclasses.replace(self, extras={**self.extras, **more})

    def only(self, rows: Iterable[str] = (), columns: Iterable[str] = ()) -> Study:
        """Keep these rows and columns only (none named: all); raises ConfigError for unknown ones."""
        rows, columns = list(rows), list(columns)
        _check_labels("row", rows, {**self.rows, **self.extras})
        _check_labels("column", columns, self.columns)
        parts = {}
        for part, chosen in (("rows", rows), ("extras", rows), ("columns", columns)):
            axis = getattr(self, part)
            parts[part] = {label: axis[label] for label in axis if label in chosen or not chosen}
        contrast = self.contrast if {*self.contrast} <= {*parts["columns"]} else ()
        return dataclasses.replace(self, **parts, contrast=contrast)

    def against(self, reference: str) -> Study:
        """Take differences to another row; raises ConfigError for an unknown one."""
        _check_labels("row", [reference], {**self.rows, **self.extras})
        column = "" if reference in self.extras else self.reference_column  # extras lie outside the columns
        return dataclasses.replace(self, reference=reference, reference_column=column)

    def config(self, cell: Cell | None, name: str, seed: int, overrides: Mapping[str, Any] | None = None) -> Config:
        """Build a cell's configuration on the preset `name`: preset, method, `base`, `overrides`, the cell's changes.

        Without a cell: what the cells of one seed share. Multiples are of what was there before. A cell whose method
        does not have a field of `base` or `overrides` does without it; raises ConfigError where no cell has it.
        """
        changes = cell.changes if cell else {}
        shared = {**self.base, **(overrides or {})}
        method = changes.get("method", shared.get("method", "tase"))
        kept = applicable(shared, method)  # raises where no method at all has a field
        methods = {{**self.base, **other.changes}.get("method", "tase") for other in self.cells}
        for dotted in shared.keys() - kept.keys():
            if not any(dotted in fields(other) for other in methods):
                raise ConfigError(f"no method of the study '{self.name}' has the field '{dotted}'")
        multiples = {dotted: value for dotted, value in changes.items() if isinstance(value, Multiple)}
        plain = {dotted: value for dotted, value in changes.items() if dotted not in multiples}
        config = preset(name, method, seed, {**kept, **plain, "method": method})
        before = config.flat()
        return override(config, {dotted: multiple.of(before[dotted]) for dotted, multiple in multiples.items()})


def _merged_changes(row: Mapping[str, Any], column: Mapping[str, Any]) -> Mapping[str, Any]:
    """Join the changes of both; a field of several values that both set is put together from theirs."""
    return {**row, **column, **{field: row[field] + column[field] for field in row if field in column}}


def _check_labels(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


# ------------------------------------------------------------------------------------------------------------- declared

_PAIR = {**CONTROLS, **each_method("tase")}  # what shows whether a gain depends on a setting
_SIMCLR = each_method(SIMCLR)
_UNSCALED: Axis = {"tase, not scaled": {"method": "tase", "guidance.scale_by_tau": False}}
# TASE's mean temperature for all, and headness in the weights alone.
_WEIGHT_ALONE: Axis = {
    "tase-weight, tau 0.4": {"method": "tase-weight", **{f"guidance.tau_{end}": 0.4 for end in ("0", "min", "max")}}
}
_FOUR_CLUSTERINGS: Axis = {"tase, 4 clusterings": {"method": "tase", "guidance.clusterings": 4}}
_BOTH: Axis = {"long tail": {}, "balanced": {"data.balanced": True}}
_TAUS = (0.1, 0.2, 0.5)
_MERGED = {"guidance.estimator": "merged", "guidance.space": "sqrt"}

_ALL = (
    Study(
        "six-benchmarks",
        "Does TASE help on the benchmarks of the paper, against the methods that move temperatures?",
        rows={**_PAIR, **each_method("ts", "mm-ts", "isogclr-tau", "shuffled", "oracle")},
        presets=("cifar10-lt", "cifar100-lt", "imagenet100-lt"),
        protocols=("linear", "few-shot"),
    ),
    Study(
        "constant-tau",
        "Which constant temperature is best for SimCLR? A fair baseline is a tuned one.",
        rows=over("guidance.tau_0", 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        extras={BALANCED: CONTROLS[BALANCED]},
        base={"method": SIMCLR},
        reference="tau_0=0.2",
        figure="curve",
    ),
    Study(
        "group-tau",
        "Which temperature is best for whom? True groups, temperature only, mid at 0.2.",
        rows={
            f"head {tau}": {"method": "oracle", "guidance.gamma": 0.0, "guidance.group_tau": (tau,)} for tau in _TAUS
        },
        columns={f"tail {tau}": {"guidance.group_tau": (0.2, tau)} for tau in _TAUS},
        extras=CONTROLS,
        reference="head 0.2",
        reference_column="tail 0.2",
        figure="heat",
    ),
    Study(
        "ablation",
        "Temperature, weight, or both: what helps, how near is it to true labels, and is it the guidance at all?",
        rows={
            **CONTROLS,
            **each_method("tase-tau", "tase-weight", "tase"),
            **_UNSCALED,
            **each_method("shuffled", "reversed", "oracle"),
        },
    ),
    Study(
        "tau-range",
        "How wide should the range of temperatures be?",
        rows=over("guidance.tau_min", 0.07, 0.1),
        columns=over("guidance.tau_max", 0.2, 0.5, 1.0),
        extras=_SIMCLR,
        figure="heat",
    ),
    Study(
        "clusters",
        "Which clusters and which estimator of quantity follow the true class sizes best?",
        rows={
            **cross(
                {name: {"guidance.estimator": name} for name in ESTIMATORS},
                {space: {"guidance.space": space, "guidance.memory": 0.7} for space in ("centred", "sqrt")},
            ),
            "merged, sqrt, hard": {**_MERGED, "guidance.memory": 0.7, "guidance.assignment_confidence": 1.0},
            "merged, sqrt, no memory": {**_MERGED, "guidance.memory": 0.0},
            "merged, sqrt, mean of 4": {**_MERGED, "guidance.memory": 0.7, "guidance.clusterings": 4},
        },
        columns=over("guidance.clusters", 10, 30, 100),
        base={"method": SIMCLR},
        reference="size, centred",
        protocols=(),
        figure="heat",
        on_features=True,
    ),
    Study(
        "gamma",
        "How strong should the weights be, alone and next to the temperatures?",
        rows=each_method("tase", "tase-weight"),
        columns=over("guidance.gamma", 0.0, 0.25, 0.5, 1.0),
        extras=_SIMCLR,
        figure="curve",
    ),
    Study(
        "imbalance",
        "Does the gain grow with the imbalance, as the harm of the long tail does?",
        rows=_PAIR,
        columns=over("data.rho", 10, 50, 100, 200),
        figure="curve",
    ),
    Study(
        "schedule",
        "How long should the guidance wait, and how often should it look again?",
        rows=over("guidance.warmup", 0.0, 0.1, 0.2, 0.4),
        columns=over("guidance.refresh", 5, 10, 20, 40),
        extras=_SIMCLR,
        figure="heat",
    ),
    Study(
        "label-noise",
        "How much of the gain is left when a share of the pseudo-labels is wrong?",
        rows=each_method("tase", "oracle"),
        columns=over("guidance.label_noise", 0.0, 0.1, 0.25, 0.5, 1.0),
        extras=_SIMCLR,
        figure="curve",
    ),
    Study(
        "epochs-batch",
        "Does the gain outlive longer training and other batches (learning rate in proportion)?",
        rows=_PAIR,
        columns={
            f"epochs x{epochs:g}, batch x{batch:g}": {
                "optim.epochs": Multiple(epochs),
                "optim.batch": Multiple(batch),
                "optim.lr": Multiple(batch),
            }
            for epochs in (0.5, 1, 2)
            for batch in (0.5, 1, 2)
        },
    ),
    Study(
        "backbone",
        "Does the gain depend on the network?",
        rows=_PAIR,
        columns={
            "conv4": {"model.backbone": "conv4"},
            "conv4, twice as wide": {"model.backbone": "conv4", "model.channels": Multiple(2)},
            "resnet18": {"model.backbone": "resnet18"},
            "resnet50": {"model.backbone": "resnet50"},
        },
    ),
    Study(
        "mechanism",
        "Does the gain come from the long tail, or is it there on a balanced set of equal size too?",
        rows={
            **each_method(SIMCLR),
            "simclr at TASE's mean temperature": {"method": SIMCLR, "guidance.tau_0": 0.4},
            **each_method("tase", "tase-tau", "tase-weight", "shuffled", "oracle", "crowding"),
        },
        columns=_BOTH,
        contrast=tuple(_BOTH),
    ),
    Study(
        "trust",
        "Should several clusterings be averaged, and should guidance act only as far as they share what they see?",
        rows={
            **each_method(SIMCLR, "tase"),
            **_FOUR_CLUSTERINGS,
            "tase, trust": {"method": "tase", "guidance.trust": True},
            "tase, 4 clusterings, trust": {"method": "tase", "guidance.clusterings": 4, "guidance.trust": True},
        },
        columns=_BOTH,
        contrast=tuple(_BOTH),
    ),
    Study(
        "choice",
        "Which range, which scale and which part of the guidance? To be judged with --on val, before a confirmation.",
        rows={
            **each_method(SIMCLR, "tase"),
            "simclr, tau 0.4": {"method": SIMCLR, "guidance.tau_0": 0.4},
            # Half the temperatures: about SimCLR's 0.2 on average, so that only their differences act.
            "tase, 0.05 to 0.25": {"method": "tase", "guidance.tau_min": 0.05, "guidance.tau_max": 0.25},
            "tase, 0.1 to 1": {"method": "tase", "guidance.tau_max": 1.0},
            **_UNSCALED,
            "tase, gamma=1": {"method": "tase", "guidance.gamma": 1.0},
            **_WEIGHT_ALONE,
        },
        columns=_BOTH,
        contrast=tuple(_BOTH),
    ),
    Study(
        "scale",
        "Does TASE gain more where each loss is scaled by its temperature, and is it the guidance?",
        rows={
            **each_method(SIMCLR),
            "simclr, tau 0.4": {"method": SIMCLR, "guidance.tau_0": 0.4},
            # TASE's mean temperature, loss and ramp, the same for all samples: all of TASE but the choice of samples.
            "tase, tau 0.4 for all": {"method": "tase-tau", "guidance.tau_min": 0.4, "guidance.tau_max": 0.4},
            **_WEIGHT_ALONE,
            **_UNSCALED,
            **each_method("tase-tau", "tase-weight", "tase"),
            **_FOUR_CLUSTERINGS,
            **each_method("shuffled", "crowding", "oracle"),
        },
        columns=_BOTH,
        contrast=tuple(_BOTH),
    ),
    Study(
        "headroom",
        "How much does the long tail cost, and does longer training or another network make it cost more?",
        rows=CONTROLS,
        columns={
            **{f"epochs x{factor}": {"optim.epochs": Multiple(factor)} for factor in (1, 2, 4)},
            "twice as wide": {"model.channels": Multiple(2)},
        },
    ),
    Study(
        "rivals",
        "What do SDCLR, BCL and GH give under one protocol, with each other and with TASE, and is it what they claim?",
        rows={
            **CONTROLS,
            **each_method("tase", "sdclr", "bcl-i", "bcl-d", "gh", "sdclr+gh", "bcl-i+gh"),
            **each_method("tase+sdclr", "tase+bcl-i", "tase+gh"),
            **each_method("sdclr-random", "bcl-constant", "bcl-shuffled", "gh-uniform"),
            # SDCLR's released run has three layers where its baseline has two.
            **{f"{name}, three-layer head": {"method": name, "model.head_layers": 3} for name in (SIMCLR, "sdclr")},
        },
        costs=True,
    ),
)

STUDIES: dict[str, Study] = {study.name: study for study in _ALL}
