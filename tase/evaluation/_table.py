"""Runs side by side: one row per protocol and method, mean and 95 % interval over seeds; as text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import probes
from ..config import METHODS, ConfigError
from ..runs import Run

if TYPE_CHECKING:
    import pandas

SCORES = ("all", "head", "mid", "tail", "std")
BASELINES = ("pixels", "untrained")

Result = Mapping[str, Any]


def compare(runs: Any, reference: str = "simclr") -> pandas.DataFrame:
    """A table of evaluated runs: per preset and protocol the rows pixels, untrained, and one per method.

    `runs`: runs, their folders or results, one or many; or {label: one or many}. Runs that differ in seed and split
    only are one row. Columns: preset, protocol, method, n (runs), then all, head, mid, tail, std in %, each with its
    standard deviation and the half-width of its 95 % interval over the runs (`all_sd`, `all_ci`; NaN for one run);
    `difference`, `difference_ci`: of all to the row `reference`, paired by seed and split; `subset`: hash of the
    training images, or how many there are. std is the population standard deviation of the three group accuracies.
    Raises ConfigError for runs not yet evaluated.
    """
    import pandas

    rows = []
    named = _labelled(_entries(runs))
    for name in dict.fromkeys(r["preset"] for _, r in named):
        block = [(label, r) for label, r in named if r["preset"] == name]
        for protocol in dict.fromkeys(key for _, r in block for key in r["protocols"]):
            rows += _rows(protocol, [(label, r) for label, r in block if protocol in r["protocols"]], reference)
    return pandas.DataFrame(rows)


def _entries(runs: Any) -> list[tuple[str | None, Result]]:
    """(label given by the caller or None, results) of everything in `runs`."""
    if isinstance(runs, Mapping) and "protocols" not in runs:
        return [(label, result) for label, some in runs.items() for _, result in _entries(some)]
    if isinstance(runs, (Run, str, Path, Mapping)):
        return [(None, _results(runs))]
    return [entry for some in runs for entry in _entries(some)]


def _results(run: Run | str | Path | Result) -> Result:
    if isinstance(run, Mapping):
        return run
    run = run if isinstance(run, Run) else Run(run)
    if not run.results:
        raise ConfigError(f"{run.path} has not been evaluated: python -m tase evaluate {run.path}")
    return run.results


def _labelled(entries: list[tuple[str | None, Result]]) -> list[tuple[str, Result]]:
    """Each result with its row's label: the given one, or the method and what is particular to it among these runs."""
    every = [set(result["changes"]) for _, result in entries]
    shared = set.intersection(*every) if every else set()
    return [(label or _label(result, shared), result) for label, result in entries]


def _label(result: Result, shared: set[str]) -> str:
    name = result["method"] + (", balanced" if result["balanced"] else "")
    unseen = METHODS[result["method"]].guidance.snapshot_only() if result["method"] in METHODS else ()
    own = [change for change in result["changes"] if change not in shared and change.split("=")[0] not in unseen]
    return f"{name} ({', '.join(own)})" if own else name


def _rows(protocol: str, block: list[tuple[str, Result]], reference: str) -> list[dict[str, Any]]:
    """The rows of one preset and protocol."""
    rows = [_row(kind, protocol, _baselines(kind, protocol, block)) for kind in BASELINES]
    methods: dict[str, list[tuple[Result, Mapping]]] = {}
    for label, result in block:
        methods.setdefault(label, []).append((result, result["protocols"][protocol]))
    for label, some in methods.items():
        against = methods.get(reference) if label != reference else None
        rows.append(_row(label, protocol, some) | _difference(some, against))
    return [row for row in rows if row["n"]]


def _baselines(kind: str, protocol: str, block: list[tuple[str, Result]]) -> list[tuple[Result, Mapping]]:
    """A baseline once per split (and seed, for the network): of the long-tailed runs where there are any."""
    tailed = [r for _, r in block if not r["balanced"]] or [r for _, r in block]
    own = {(r["subset"], r["seed"] if kind == "untrained" else 0): r for r in reversed(tailed)}
    found = [(r, r["baselines"].get(kind, {}).get(protocol)) for r in reversed(own.values())]
    return [(r, scores) for r, scores in found if scores]


def _row(label: str, protocol: str, some: list[tuple[Result, Mapping]]) -> dict[str, Any]:
    if not some:
        return {"n": 0}
    subsets = sorted({result["subset"] for result, _ in some})
    row = {"preset": some[0][0]["preset"], "protocol": protocol, "method": label, "n": len(some)}
    for score in SCORES:
        over = probes.summary([scores[score] for _, scores in some])
        row |= {score: over.mean, f"{score}_sd": over.std, f"{score}_ci": over.ci95}
    nothing = {"difference": math.nan, "difference_ci": math.nan}
    return row | nothing | {"subset": subsets[0] if len(subsets) == 1 else f"{len(subsets)} subsets"}


def _difference(some: list[tuple[Result, Mapping]], against: list[tuple[Result, Mapping]] | None) -> dict[str, float]:
    """All minus the reference's, over the seeds and splits that both have."""
    ours, theirs = ({(r["seed"], r["split"]): scores["all"] for r, scores in rows} for rows in (some, against or []))
    both = [key for key in ours if key in theirs]
    over = probes.paired_difference([ours[key] for key in both], [theirs[key] for key in both])
    return {"difference": over.mean, "difference_ci": over.ci95}


# ---------------------------------------------------------------------------------------------------------------- text


def _value(mean: float, half: float, sign: str = "") -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def _blocks(frame: pandas.DataFrame) -> Iterable[tuple[str, list[list[str]]]]:
    """A title and lines of cells, the first one the header, for each preset and protocol."""
    for (preset, protocol), block in frame.groupby(["preset", "protocol"], sort=False):
        compared = bool(block["difference"].notna().any())
        header = [
            "",
            "runs",
            "All",
            "Head",
            "Mid",
            "Tail",
            "Std",
            *(["paired difference"] if compared else []),
            "subset",
        ]
        lines = [header]
        for row in block.to_dict("records"):
            cells = [_value(row[score], row[f"{score}_ci"]) for score in SCORES]
            paired = [_value(row["difference"], row["difference_ci"], "+")] if compared else []
            lines.append([row["method"], str(row["n"]), *cells, *paired, row["subset"]])
        yield f"{preset}, {protocol}", lines


def format_table(frame: pandas.DataFrame) -> str:
    """The frame of `compare` as text for a terminal, a block per preset and protocol."""
    text = []
    blocks = list(_blocks(frame))
    columns = [max((len(lines[0]) for _, lines in blocks), default=0)]
    widths = [0] * columns[0]
    for _, lines in blocks:
        widths = [max(w, *(len(line[i]) for line in lines if i < len(line)), 0) for i, w in enumerate(widths)]
    for title, lines in blocks:
        text.append(title)
        for line in lines:
            cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
            text.append("  ".join(["  " + line[0].ljust(widths[0]), *cells]).rstrip())
        text.append("")
    return "\n".join([*text, _legend(frame)])


def to_markdown(frame: pandas.DataFrame) -> str:
    """The frame of `compare` as Markdown tables."""
    text = []
    for title, lines in _blocks(frame):
        ruled = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
        text += [f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in ruled), ""]
    return "\n".join([*text, _legend(frame)])


def _legend(frame: pandas.DataFrame) -> str:
    words = "Accuracy in %, mean over classes; Std: over head, mid, tail (population)."
    words += " ±: 95 % interval over runs." if (frame["n"] > 1).any() else ""
    if frame["difference"].notna().any():
        words += "\nPaired difference: of All to simclr, same seeds (of simclr, balanced: what the long tail costs)."
    return words
