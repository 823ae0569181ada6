"""Make tables of results: scores over seeds, 95 % intervals, paired differences; as text, Markdown and LaTeX.

Results are long-form rows, one number each, in a pandas frame with the columns COLUMNS: `kind` is cell (a measured row
of the table), headroom, baseline or published; (seed, split) pairs the rows of two methods. Both `evaluate` and the
studies go the same way: rows -> `contrasts` -> `side_by_side` -> blocks of cells -> text, Markdown, LaTeX.

    print(format_table(compare(runs)))                  # evaluated runs: a block per preset and protocol
    study_markdown(*read_study("studies/ablation"))     # a study's results.csv and study.json
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .config import METHODS, ConfigError, fields
from .lazy import torch
from .options import some_of
from .presets import changes_in_words
from .runs import Run

if TYPE_CHECKING:
    import pandas

COLUMNS = "study kind row column preset subset protocol seed split metric value commit identity".split()  # noqa: SIM905
# Blocks that are not protocols: quality of clusters, evenness of the space, what a run costs.
PSEUDO, SPACE, COST = "pseudo-labels", "space", "cost"
BASELINES = ("pixels", "untrained")
SCORES = ("all", "head", "mid", "tail", "std")
ACCURACIES = (*SCORES, "std_classes", "range_classes")
SLOPES = ("by_size", "by_crowding")  # of the classes' accuracies (studies.class_slopes)
EVENNESS = {"spread_cv": "cv_spread", "distance_cv": "cv_centres"}  # metric -> its key in the results' geometry

# Metrics shown of a block, and those of them that are compared with the reference.
_SHOWN = {
    PSEUDO: (
        ("spearman_samples", "spearman_classes", "nmi", "purity", "trust"),
        ("spearman_samples", "spearman_classes"),
    ),
    SPACE: (tuple(EVENNESS), tuple(EVENNESS)),
    COST: (("relative_time", "state_mib"), ()),
}
_NAMES = {
    "state_mib": "State MiB",
    "nmi": "NMI",
    "spread_cv": "Spread CV",
    "distance_cv": "Distance CV",
    "by_size": "Largest over smallest class",
    "by_crowding": "Most over least crowded class",
}

Values = Mapping[Hashable, float | None]  # (seed, split) -> value
Result = Mapping[str, Any]  # what results.json holds


# ----------------------------------------------------------------------------------------------------------- statistics


class Summary(NamedTuple):
    """A mean over seeds: n values, mean, sample standard deviation, half-width of the 95 % confidence interval."""

    n: int
    mean: float
    std: float
    ci95: float


def summary(values: Iterable[float | None]) -> Summary:
    """Summarise values by mean, sample standard deviation and Student's 95 % interval; None entries are left out.

    One value has no deviation (NaN), none has no mean either.
    """
    present = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
    n = len(present)
    if n < 2:
        return Summary(n, float(present[0]) if n else math.nan, math.nan, math.nan)
    from scipy.stats import t

    # torch's order of summation: means that lie between two printed digits stay as published.
    std = float(present.std())
    return Summary(n, float(present.mean()), std, float(t.ppf(0.975, n - 1)) * std / math.sqrt(n))


def paired_difference(a: Values, b: Values) -> Summary:
    """Summarise a - b over the keys (seed and split) that both have; None entries are left out."""
    both = [key for key in a if a[key] is not None and b.get(key) is not None]
    return summary(a[key] - b[key] for key in both)


class Contrast(NamedTuple):
    """One metric of one cell: over its seeds, and paired with the reference's; `best`: surely above all others.

    `base` is the row and column of what a cell is compared with: of the cell itself where it is the reference.
    """

    row: str
    column: str
    kind: str
    over: Summary
    difference: Summary
    best: bool
    base: tuple[str, str] | None = None


def contrasts(
    results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str, metric: str
) -> list[Contrast]:
    """Contrast every cell, headroom and baseline of one preset, protocol and metric, in the order of the rows.

    A cell is compared with the row about["reference"]: in the `reference_column` if there is one, else in its own.
    """
    groups = dict(list(_chosen(results, preset, protocol, metric).groupby(["kind", "row", "column"], sort=False)))
    cells = {(row, column): _by_seed(some) for (kind, row, column), some in groups.items() if kind == "cell"}
    best, found = _best(cells, about, metric), []
    for (kind, row, column), some in groups.items():
        base = _base(cells, about, column) if kind == "cell" else None
        compared = base not in (None, (row, column))
        difference = paired_difference(cells[row, column], cells[base]) if compared else summary([])
        found.append(Contrast(row, column, kind, summary(some["value"]), difference, (kind, row, column) in best, base))
    return found


def _base(cells: Mapping[tuple[str, str], Values], about: Mapping[str, Any], column: str) -> tuple[str, str] | None:
    """Find the cell with which those of a column are compared; None where it has not been measured."""
    places = [(about["reference"], c) for c in (about["reference_column"] or column, column, "")]
    return next((place for place in places if place in cells), None)


def _chosen(results: pandas.DataFrame, preset: str, protocol: str, metric: str) -> pandas.DataFrame:
    return results[(results["preset"] == preset) & (results["protocol"] == protocol) & (results["metric"] == metric)]


def _by_seed(rows: pandas.DataFrame) -> dict[Hashable, float]:
    return dict(zip(zip(rows["seed"], rows["split"]), rows["value"]))


def _best(cells: Mapping[tuple[str, str], Values], about: Mapping[str, Any], metric: str) -> set[tuple[str, str, str]]:
    """Find the best competitors, where the interval of the paired difference to the runner-up is above zero.

    Two seeds do not tell: their differences, of counts of images, may be the same by chance. Competitors are those
    within a column where each column has its own reference, else all.
    """
    sign = -1 if metric in EVENNESS else 1  # the lower a coefficient of variation, the more even
    bases = {_base(cells, about, column) for _, column in cells}
    own = len(bases) > 1 or None in bases
    found = set()
    for competition in {column if own else None for _, column in cells}:
        competitors = [c for c in cells if c[0] not in about["outside"] and competition in (None, c[1])]
        ranked = sorted(competitors, key=lambda c: -sign * summary(cells[c].values()).mean)
        if len(ranked) > 1:
            lead = paired_difference(cells[ranked[0]], cells[ranked[1]])
            found |= {("cell", *ranked[0])} if lead.n >= 3 and sign * lead.mean - lead.ci95 > 0 else set()
    return found


def interactions(
    results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str, metric: str
) -> list[Contrast]:
    """Contrast, per row, (row - reference) in the one column of about["contrast"] with the same in the other.

    The four values are paired by seed and split, `over` is their difference of differences over seeds. It answers
    whether a method's gain depends on the column: whether it comes from the long tail, say, or is there on balanced
    classes too.
    """
    cells = _chosen(results, preset, protocol, metric).query("kind == 'cell'")
    values = cells.pivot(index=["seed", "split"], columns=["column", "row"], values="value")
    reference = about["reference"]
    if any((column, reference) not in values for column in about["contrast"]):
        return []
    first, second = (values[column].sub(values[column][reference], axis=0) for column in about["contrast"])
    gains = (first - second).dropna(axis=1, how="all")  # [seed, row], without the rows that one column lacks
    rows = [row for row in cells["row"].unique() if row in gains and row != reference]
    return [Contrast(row, "", "interaction", summary(gains[row].dropna()), summary([]), False) for row in rows]


# ------------------------------------------------------------------------------------------------ text, Markdown, LaTeX


class Bold(str):
    """A cell in bold."""


class Block(NamedTuple):
    """A table: its title, and lines of cells, the first one the header."""

    title: str
    lines: list[list[str]]


def shown(protocol: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the metrics shown of a protocol, and those of them that are compared with the reference."""
    return _SHOWN.get(protocol, (SCORES, ("all", "tail", "head")))


def name_of(metric: str) -> str:
    """Write a metric as in tables and figures."""
    return _NAMES.get(metric) or metric.replace("_", " ").capitalize()


def as_text(blocks: Iterable[Block]) -> list[str]:
    """Align the blocks for a terminal, all with the same columns; a list of lines."""
    blocks = list(blocks)
    columns = itertools.zip_longest(*(line for block in blocks for line in block.lines), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    text = []
    for title, lines in blocks:
        text.append(title)
        for first, *rest in lines:
            cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
            text.append("  ".join(["  " + first.ljust(widths[0]), *cells]).rstrip())
        text.append("")
    return text


def as_markdown(blocks: Iterable[Block]) -> list[str]:
    """Write the blocks as Markdown tables; a list of lines."""
    text = []
    for title, lines in blocks:
        header, *rest = ["| " + " | ".join(_styled(line, _MARKDOWN, "**%s**")) + " |" for line in lines]
        ruler = "| --- |" + " ---: |" * (len(lines[0]) - 1)
        text += [f"**{title}**", "", header, ruler, *rest, ""]
    return text


def as_latex(blocks: Iterable[Block]) -> list[str]:
    r"""Write the blocks as LaTeX tables for \usepackage{booktabs}; a list of lines."""
    text = []
    for title, lines in blocks:
        header, *rest = [" & ".join(_styled(line, _TEX, r"\textbf{%s}")) + r" \\" for line in lines]
        text += [r"\begin{table}", r"\centering", rf"\caption{{{title.translate(_TEX)}}}"]
        text += [rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"\toprule", header, r"\midrule"]
        text += [*rest, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return text


_MARKDOWN = str.maketrans({"|": r"\|"})
_TEX = str.maketrans(
    {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "τ": r"$\tau$"}
)


def _styled(line: Sequence[str], escaped: Mapping[int, str], bold: str) -> list[str]:
    return [bold % cell.translate(escaped) if isinstance(cell, Bold) else cell.translate(escaped) for cell in line]


# ---------------------------------------------------------------------------------------------- from numbers to a table


def side_by_side(
    results: pandas.DataFrame,
    about: Mapping[str, Any],
    preset: str,
    protocol: str,
    metrics: Sequence[str],
    by=contrasts,
) -> pandas.DataFrame:
    """Put the metrics of every row next to each other; NaN where one was not measured.

    Columns: preset, protocol, kind, row, column, n (runs), and for each metric, say `all`: its mean `all`, and
    `all_sd`, `all_ci`, `all_difference`, `all_difference_ci`, `all_best` as in `Contrast`. `by` may be `interactions`.
    """
    import pandas

    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for metric in metrics:
        for c in by(results, about, preset, protocol, metric):
            start = {"preset": preset, "protocol": protocol, "kind": c.kind, "row": c.row, "column": c.column, "n": 0}
            line = lines.setdefault((c.kind, c.row, c.column), start)
            line["n"] = max(line["n"], c.over.n)
            numbers = (c.over.mean, c.over.std, c.over.ci95, c.difference.mean, c.difference.ci95, c.best)
            line |= {f"{metric}{ending}": number for ending, number in zip(_ENDINGS, numbers)}
    names = [f"{metric}{ending}" for metric in metrics for ending in _ENDINGS]
    return pandas.DataFrame(lines.values(), columns=["preset", "protocol", "kind", "row", "column", "n", *names])


_ENDINGS = ("", "_sd", "_ci", "_difference", "_difference_ci", "_best")


def lines_of(
    frame: pandas.DataFrame, metrics: Sequence[str], compared: Sequence[str], deviations: Sequence[str] = ()
) -> list[list[str]]:
    """Write a frame of `side_by_side` as lines of cells: the metrics, then the differences of those `compared`.

    The latter are bold where they are surely best. Those in `deviations` are followed by their standard deviation.
    """
    crossed = ["column"] if frame["column"].any() else []
    names = [word for m in metrics for word in (name_of(m), *(["s.d."] if m in deviations else []))]
    lines = [["", *(" " for _ in crossed), "runs", *names, *(f"{name_of(m)} - reference" for m in compared)]]
    for row in frame.to_dict("records"):
        cells = [row["row"], *(row[name] for name in crossed), str(row["n"])]
        for m in metrics:
            mean = with_interval(row[m], row[f"{m}_ci"], m, "+" if row["kind"] in ("headroom", "interaction") else "")
            cells.append(Bold(mean) if m in compared and row[f"{m}_best"] is True else mean)
            cells += [with_interval(row[f"{m}_sd"], math.nan, m)] if m in deviations else []
        lines.append(
            cells + [with_interval(row[f"{m}_difference"], row[f"{m}_difference_ci"], m, "+") for m in compared]
        )
    return lines


def with_interval(mean: float, ci95: float, metric: str = "all", sign: str = "") -> str:
    """Write "mean ± half-width of the interval", or what there is of it."""
    digits = 1 if metric in (*SCORES, *SLOPES) else 3
    half = "" if math.isnan(ci95) else f" ± {ci95:.{digits}f}"
    return "" if math.isnan(mean) else f"{mean:{sign}.{digits}f}{half}"


# ---------------------------------------------------------------------------------------------------- tables of studies


def blocks(results: pandas.DataFrame, about: Mapping[str, Any]) -> Iterator[Block]:
    """Make a table for each preset and protocol of a study, then of the published figures of each preset."""
    for preset in about["presets"]:
        here = results[results["preset"] == preset]
        for protocol in here.loc[here["kind"] == "cell", "protocol"].unique():
            title = f"{preset}, {protocol}" + ("" if protocol in (PSEUDO, COST) else f", on {about['on']}")
            measured = set(here.loc[here["protocol"] == protocol, "metric"])
            metrics, compared = ([m for m in some if m in measured] for some in shown(protocol))
            frame = side_by_side(here, about, preset, protocol, metrics)
            yield Block(title, lines_of(frame, metrics, compared, deviations=compared))
            if about.get("contrast"):
                frame = side_by_side(here, about, preset, protocol, compared, by=interactions)
                first, second = about["contrast"]
                what = f"{title}: (row - {about['reference']}) in {first} minus the same in {second}"
                if len(frame):  # any row has all four cells
                    yield Block(what, lines_of(frame, compared, []))
                frame = side_by_side(here, about, preset, protocol, SLOPES)
                frame = frame[frame["by_crowding_difference"].notna()]
                if len(frame):
                    yield Block(f"{title}: who gains, row - {about['reference']}", lines_of(frame, [], SLOPES))
        published = here[here["kind"] == "published"].to_dict("records")
        if published:
            header = ["published, not measured here", "protocol", "All"]
            lines = [[line["row"], line["protocol"], f"{line['value']:g}"] for line in published]
            yield Block(f"{preset}, published figures", [header, *lines])


_LEGEND = "Accuracy in %, mean over classes; Std: over head, mid, tail; ±: 95 % interval over seeds"


def _study_legend(results: pandas.DataFrame, about: Mapping[str, Any]) -> list[str]:
    cells = results[results["kind"] == "cell"]
    there = about["reference_column"] in set(cells.loc[cells["row"] == about["reference"], "column"])
    where = f" in {about['reference_column']}" if about["reference_column"] and there else ""
    lines = [
        f"{_LEGEND}; s.d.: over seeds.",
        f"reference: {about['reference']}{where}, paired by seed and split. Bold: the paired interval to the runner-up "
        f"is above zero (not competing: {', '.join(about['outside'])}).",
        f"seeds {', '.join(map(str, about['seeds']))}; subsets {some_of(cells['subset'])}; "
        f"commit {', '.join(cells['commit'].unique())}.",
    ]
    if SPACE in set(cells["protocol"]):
        lines.append(
            "space: coefficients of variation of the classes' spreads and of their centres' distances, 0: even."
        )
    if about.get("contrast") and set(SLOPES) & set(cells["metric"]):
        lines.append(
            "who gains: accuracies of the classes fitted by log size and by crowding (error on raw pixels, few-shot) "
            "together; the gain of the largest class minus the smallest, and of the most crowded minus the least."
        )
    if COST in set(cells["protocol"]):
        lines.append(
            "cost: wall time of an epoch (median over a run, with all it writes) relative to simclr's median here; "
            "state: weights, momentum and all that is kept of each sample, without activations."
        )
    changed = ", ".join(f"{name}={value}" for name, value in about["overrides"].items())
    lines += [f"changed from the preset: {changed}."] if changed else []
    return lines + [f"left out: {why}" for why in about["left_out"]] + [f"failed: {why}" for why in about["failed"]]


def study_markdown(results: pandas.DataFrame, about: Mapping[str, Any]) -> str:
    """Write all tables of a study in Markdown."""
    head = [f"# {about['name']}", "", about["question"], ""]
    legend = [f"- {line}" for line in _study_legend(results, about)]
    return "\n".join([*head, *as_markdown(blocks(results, about)), *legend, ""])


def study_latex(results: pandas.DataFrame, about: Mapping[str, Any]) -> str:
    r"""Write all tables of a study in LaTeX, for \usepackage{booktabs}."""
    head = [f"% {about['name']}: {about['question']}", "% needs \\usepackage{booktabs}"]
    legend = [f"% {line}" for line in _study_legend(results, about)]
    return "\n".join([*head, *as_latex(blocks(results, about)), *legend, ""])


# ------------------------------------------------------------------------------------------ evaluated runs in one table


def scores_by_protocol(results: Result) -> dict[str, dict[str, float]]:
    """Take from a results.json: protocol -> metric -> value, evenness of the space among them as `space`."""
    protocols, geometry = results.get("protocols", {}), results.get("geometry") or {}
    found = {protocol: {m: scores.get(m) for m in ACCURACIES} for protocol, scores in protocols.items()}
    return found | {SPACE: {metric: geometry.get(key) for metric, key in EVENNESS.items()}}


def long_rows(scores: Mapping[str, Mapping[str, float | None]], **place: Any) -> Iterator[dict[str, Any]]:
    """Yield a row of COLUMNS for every number of protocol -> metric -> value; `place` is common to all."""
    for protocol, metrics in scores.items():
        for metric, value in metrics.items():
            if value is not None:
                yield {**place, "protocol": protocol, "metric": metric, "value": float(value)}


def compare(runs: Any, reference: str = "simclr") -> pandas.DataFrame:
    """Tabulate evaluated runs: per preset and protocol the rows pixels, untrained, and one per method.

    `runs`: runs, their folders or results, one or many; or {label: one or many}. Runs that differ in seed and split
    only are one row. Columns: preset, protocol, method, n (runs), then all, head, mid, tail, std in % and spread_cv,
    distance_cv (evenness of the space), each with its standard deviation and the half-width of its 95 % interval over
    the runs (`all_sd`, `all_ci`; NaN for one run); `difference`, `difference_ci`: of all to the row `reference`, paired
    by seed and split; `subset`: hash of the training images, or how many there are. std is the population standard
    deviation of the three group accuracies. Raises ConfigError for runs not yet evaluated, and for two runs of one seed
    in a row.
    """
    import pandas

    rows = pandas.DataFrame(_compared_rows(_labelled_results(_entries(runs))), columns=COLUMNS)
    _check_seeds(rows[rows["kind"] == "cell"])
    about = {"reference": reference, "reference_column": "", "outside": ()}
    metrics = (*SCORES, *EVENNESS)
    tables = rows.loc[rows["kind"] == "cell", ["preset", "protocol"]].drop_duplicates().itertuples(index=False)
    frame = pandas.concat([side_by_side(rows, about, *table, metrics) for table in tables], ignore_index=True)
    place = ["preset", "protocol", "kind", "row"]
    subsets = rows.groupby(place)["subset"].unique()
    subsets = subsets.map(lambda some: some[0] if len(some) == 1 else f"{len(some)} subsets")
    frame = frame.join(subsets, on=place).rename(columns=_COMPARED)
    numbers = [f"{m}{ending}" for m in metrics for ending in ("", "_sd", "_ci")]
    return frame[["preset", "protocol", "method", "n", *numbers, "difference", "difference_ci", "subset"]]


def _check_seeds(cells: pandas.DataFrame) -> None:
    twice = cells[cells.duplicated(["preset", "protocol", "row", "seed", "split", "metric"])]
    for preset, row, seed in twice[["preset", "row", "seed"]].itertuples(index=False):
        rows = "name the rows yourself, as in compare({'first': runs, 'second': others})"
        raise ConfigError(f"two runs of '{row}' on {preset} have seed {seed}, and would be one row; {rows}")


_COMPARED = {"row": "method", "all_difference": "difference", "all_difference_ci": "difference_ci"}


def _entries(runs: Any) -> list[tuple[str | None, Result]]:
    """List (label given by the caller or None, results) of everything in `runs`."""
    if isinstance(runs, Mapping) and "protocols" not in runs:
        return [(label, result) for label, some in runs.items() for _, result in _entries(some)]
    if isinstance(runs, (str, Path)):
        return _entries(Run(runs))
    if isinstance(runs, Run) and not runs.results:
        raise ConfigError(f"{runs.path} has not been evaluated: tase evaluate {runs.path}")
    if isinstance(runs, Run):
        return [(None, with_changes(runs, runs.results))]
    if isinstance(runs, Mapping):
        return [(None, runs)]
    return [entry for some in runs for entry in _entries(some)]


def with_changes(run: Run, results: Result) -> Result:
    """Return results of a run that say how it differs from its preset now, steering and all.

    What is saved says how it differed from the preset of the time when it was evaluated.
    """
    changed = [*changes_in_words(run.config), *([f"steered={run.steering}"] if run.steered else [])]
    return {**results, "changes": changed}


def _labelled_results(entries: list[tuple[str | None, Result]]) -> list[tuple[str, Result]]:
    """Label each result with the given label, or the method and what tells it apart among these runs."""
    ignored = {result["method"]: _ignored(result["method"]) for _, result in entries}
    named = []
    for label, result in entries:
        own = []
        for change in result["changes"]:
            option = change.split("=")[0]
            having = [other["changes"] for _, other in entries if option not in ignored[other["method"]]]
            if option not in ignored[result["method"]] and any(change not in changes for changes in having):
                own.append(change)
        name = result["method"] + ", balanced" * result["balanced"] + (f" ({', '.join(own)})" if own else "")
        named.append((label or name, result))
    return named


def _ignored(method: str) -> set[str]:
    """Name the options of other methods, which older results also list, and those that shape only the snapshots."""
    if method not in METHODS:
        return set()
    others = {dotted for other in METHODS for dotted in fields(other)} - {*fields(method)}
    return {dotted.partition(".")[2] for dotted in others} | {*METHODS[method].guidance.snapshot_only()}


def _compared_rows(named: Sequence[tuple[str, Result]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of COLUMNS: per preset the baselines, then the runs; evenness of the space next to each score."""
    for preset in dict.fromkeys(result["preset"] for _, result in named):
        block = [(label, result) for label, result in named if result["preset"] == preset]
        # Of the long-tailed runs where there are any; once per split, the untrained network once per seed too.
        tailed = [r for _, r in block if not r["balanced"]] or [r for _, r in block]
        for kind in BASELINES:
            single = {(r["subset"], r["seed"] if kind == "untrained" else 0): r for r in reversed(tailed)}
            for result in reversed(single.values()):
                scores = scores_by_protocol({"protocols": result["baselines"].get(kind, {})})
                yield from long_rows(scores, kind="baseline", row=kind, **_place_of(result))
        for label, result in block:
            scores = scores_by_protocol(result)
            space = scores.pop(SPACE)
            scores = {protocol: {**some, **space} for protocol, some in scores.items()}
            yield from long_rows(scores, kind="cell", row=label, **_place_of(result))


def _place_of(result: Result) -> dict[str, Any]:
    return {"column": "", **{name: result[name] for name in ("preset", "subset", "seed", "split")}}


def format_table(frame: pandas.DataFrame, metrics: Sequence[str] = (*SCORES, "spread_cv")) -> str:
    """Write the frame of `compare` as text for a terminal, a block per preset and protocol."""
    return "\n".join([*as_text(_compared_blocks(frame, metrics)), _compared_legend(frame)])


def to_markdown(frame: pandas.DataFrame, metrics: Sequence[str] = (*SCORES, "spread_cv")) -> str:
    """Write the frame of `compare` as Markdown tables; `metrics` may also name distance_cv."""
    return "\n".join([*as_markdown(_compared_blocks(frame, metrics)), _compared_legend(frame)])


def _compared_blocks(frame: pandas.DataFrame, metrics: Sequence[str]) -> Iterator[Block]:
    frame = frame.rename(columns={new: old for old, new in _COMPARED.items()}).assign(kind="", column="", all_best=None)
    compared = ["all"] if frame["all_difference"].notna().any() else []
    for (preset, protocol), block in frame.groupby(["preset", "protocol"], sort=False):
        lines = lines_of(block, metrics, compared)
        yield Block(f"{preset}, {protocol}", [[*line, s] for line, s in zip(lines, ["subset", *block["subset"]])])


def _compared_legend(frame: pandas.DataFrame) -> str:
    reference = "\nreference: the run of the same seed and split (of simclr, balanced: what the long tail costs)."
    return f"{_LEGEND}." + (reference if frame["difference"].notna().any() else "")
