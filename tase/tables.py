"""Make tables of results: scores over seeds, 95 % intervals, paired differences; as text, Markdown and LaTeX.

Results are long-form rows, one number each, in a pandas frame with the columns COLUMNS: `kind` is cell (a measured row
of the table), headroom, baseline or published; (seed, split) pairs the rows of two methods. Both `evaluate` and the
studies go the same way: rows -> `contrasts` -> blocks of cells -> text, Markdown, LaTeX.

    print(format_table(compare(runs)))                  # evaluated runs: a block per preset and protocol
    study_markdown(*read_study("studies/ablation"))     # a study's results.csv and study.json
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .config import METHODS, ConfigError, fields
from .lazy import torch
from .runs import Run

if TYPE_CHECKING:
    import pandas

COLUMNS = "study kind row column preset subset protocol seed split metric value commit identity".split()  # noqa: SIM905
# Blocks that are not protocols: quality of clusters, evenness of the space, what a run costs.
PSEUDO, SPACE, COST = "pseudo-labels", "space", "cost"
BASELINES = ("pixels", "untrained")
SCORES = ("all", "head", "mid", "tail", "std")
ACCURACIES = (*SCORES, "std_classes", "range_classes")
EVENNESS = {"spread_cv": "cv_spread", "distance_cv": "cv_centres"}  # metric -> its key in the results' geometry

# Metrics shown of a block, and those of them that are compared with the reference.
_SHOWN = {
    PSEUDO: (("spearman_samples", "spearman_classes", "nmi", "purity"), ("spearman_samples", "spearman_classes")),
    SPACE: (tuple(EVENNESS), tuple(EVENNESS)),
    COST: (("relative_time", "state_mib"), ()),
}
_NAMES = {"state_mib": "State MiB", "nmi": "NMI", "spread_cv": "Spread CV", "distance_cv": "Distance CV"}

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
    """One metric of one cell: over its seeds, and paired with the reference's; `best`: surely above all others."""

    row: str
    column: str
    kind: str
    over: Summary
    difference: Summary
    best: bool


def contrasts(
    results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str, metric: str
) -> list[Contrast]:
    """Contrast every cell, headroom and baseline of one preset, protocol and metric, in the order of the rows."""
    chosen = _chosen(results, preset, protocol, metric)
    groups = {place: some for place, some in chosen.groupby(["kind", "row", "column"], sort=False)}
    cells = {(row, column): _by_seed(some) for (kind, row, column), some in groups.items() if kind == "cell"}
    best, found = _best(cells, about, metric), []
    for (kind, row, column), some in groups.items():
        place = (row, column) if kind == "cell" else None
        base = reference_of(column, cells, about) if place else None
        difference = paired_difference(cells[place], cells[base]) if base not in (None, place) else summary([])
        found.append(Contrast(row, column, kind, summary(some["value"]), difference, place in best))
    return found


def _chosen(results: pandas.DataFrame, preset: str, protocol: str, metric: str) -> pandas.DataFrame:
    return results[(results["preset"] == preset) & (results["protocol"] == protocol) & (results["metric"] == metric)]


def _by_seed(rows: pandas.DataFrame) -> dict[Hashable, float]:
    return dict(zip(zip(rows["seed"], rows["split"]), rows["value"]))


def reference_of(column: str, cells: Mapping[tuple[str, str], Any], about: Mapping[str, Any]):
    """Find the cell with which those of a column are compared, or None where it has not been measured."""
    places = [(about["reference"], c) for c in (column, about["reference_column"], "")]
    return next((place for place in places if place in cells), None)


def _best(cells: Mapping[tuple[str, str], Values], about: Mapping[str, Any], metric: str) -> set[tuple[str, str]]:
    """Find the best competitors, where the interval of the paired difference to the runner-up is above zero.

    Two seeds do not tell: their differences, of counts of images, may be the same by chance. Competitors are those
    within a column where each column has its own reference, else all.
    """
    sign = -1 if metric in EVENNESS else 1  # the lower a coefficient of variation, the more even
    own = (about["reference"], "") not in cells and not about["reference_column"]
    competitions: dict[str, list[tuple[str, str]]] = {}
    for row, column in cells:
        if row not in about["outside"]:
            competitions.setdefault(column if own else "", []).append((row, column))
    found = set()
    for competitors in competitions.values():
        first, *rest = sorted(competitors, key=lambda cell: -sign * summary(cells[cell].values()).mean)
        if rest:
            lead = paired_difference(cells[first], cells[rest[0]])
            found |= {first} if lead.n >= 3 and sign * lead.mean - lead.ci95 > 0 else set()
    return found


def interactions(
    results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str, metric: str
) -> dict[str, Summary]:
    """Summarise, per row, (row - reference) in the one column of about["contrast"] minus the same in the other.

    The four values are paired by seed and split, the interval is over seeds. It answers whether a method's gain depends
    on the column: whether it comes from the long tail, say, or is there on balanced classes too.
    """
    first, second = about["contrast"]
    cells = _chosen(results, preset, protocol, metric).query("kind == 'cell'")
    values = {place: _by_seed(some) for place, some in cells.groupby(["row", "column"], sort=False)}
    found = {}
    for row in dict.fromkeys(cells["row"]):
        four = [values.get((r, column), {}) for column in (first, second) for r in (row, about["reference"])]
        keys = [key for key in four[0] if all(key in some for some in four)]
        if row != about["reference"] and keys:
            found[row] = summary((four[0][k] - four[1][k]) - (four[2][k] - four[3][k]) for k in keys)
    return found


# ------------------------------------------------------------------------------------------------ text, Markdown, LaTeX


class Bold(str):
    """A cell in bold."""


class Block(NamedTuple):
    """A table: its title, and lines of cells, the first one the header."""

    title: str
    lines: list[list[str]]


def shown(protocol: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the metrics shown of a protocol, and those of them that are compared with the reference."""
    return _SHOWN.get(protocol, (SCORES, ("all", "tail")))


def name_of(metric: str) -> str:
    """Write a metric as in tables and figures."""
    return _NAMES.get(metric) or metric.replace("_", " ").capitalize()


def with_interval(mean: float, ci95: float, digits: int = 1, sign: str = "") -> str:
    """Write "mean ± half-width of the interval", or what there is of it."""
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.{digits}f}" + ("" if math.isnan(ci95) else f" ± {ci95:.{digits}f}")


def as_text(blocks: Iterable[Block]) -> list[str]:
    """Align the blocks for a terminal, all with the same columns; a list of lines."""
    blocks = list(blocks)
    lines = [line for block in blocks for line in block.lines]
    columns = range(max(map(len, lines), default=0))
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in columns]
    text = []
    for title, some in blocks:
        text.append(title)
        for first, *rest in some:
            cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
            text.append("  ".join(["  " + first.ljust(widths[0]), *cells]).rstrip())
        text.append("")
    return text


def as_markdown(blocks: Iterable[Block]) -> list[str]:
    """Write the blocks as Markdown tables; a list of lines."""
    text = []
    for title, (header, *lines) in blocks:
        ruled = [_markdown_row(header), "|" + " --- |" + " ---: |" * (len(header) - 1), *map(_markdown_row, lines)]
        text += [f"**{title}**", "", *ruled, ""]
    return text


def _markdown_row(line: Sequence[str]) -> str:
    cells = ((cell, cell.replace("|", "\\|")) for cell in line)
    return "| " + " | ".join(f"**{words}**" if isinstance(cell, Bold) else words for cell, words in cells) + " |"


def as_latex(blocks: Iterable[Block]) -> list[str]:
    r"""Write the blocks as LaTeX tables for \usepackage{booktabs}; a list of lines."""
    text = []
    for title, (header, *lines) in blocks:
        text += [r"\begin{table}", r"\centering", rf"\caption{{{_tex(title)}}}"]
        text += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", _tex_row(header), r"\midrule"]
        text += [*map(_tex_row, lines), r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return text


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "τ": r"$\tau$"}


def _tex(words: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in words)


def _tex_row(line: Sequence[str]) -> str:
    cells = ((cell, _tex(cell)) for cell in line)
    return " & ".join(rf"\textbf{{{words}}}" if isinstance(cell, Bold) else words for cell, words in cells) + r" \\"


# ---------------------------------------------------------------------------------------------------- tables of studies


def blocks(results: pandas.DataFrame, about: Mapping[str, Any]) -> Iterator[Block]:
    """Make a table for each preset and protocol of a study, then of the published figures of each preset."""
    for preset in about["presets"]:
        here = results[results["preset"] == preset]
        for protocol in dict.fromkeys(here.loc[here["kind"] == "cell", "protocol"]):
            title = f"{preset}, {protocol}" + ("" if protocol in (PSEUDO, COST) else f", on {about['on']}")
            yield Block(title, _study_lines(results, about, preset, protocol))
            if about.get("contrast"):
                yield from _interaction_block(title, results, about, preset, protocol)
        published = here[here["kind"] == "published"].to_dict("records")
        if published:
            header = ["published, not measured here", "protocol", "All"]
            lines = [[line["row"], line["protocol"], f"{line['value']:g}"] for line in published]
            yield Block(f"{preset}, published figures", [header, *lines])


def _study_lines(results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str) -> list[list[str]]:
    metrics, compared = shown(protocol)
    found = {}
    for metric in metrics:
        found[metric] = {(c.kind, c.row, c.column): c for c in contrasts(results, about, preset, protocol, metric)}
    columns = any(column for _, _, column in found[metrics[0]])
    names = [word for m in metrics for word in (name_of(m), *(["s.d."] if m in compared else []))]
    header = ["", *([" "] if columns else []), "runs", *names, *(f"{name_of(m)} - reference" for m in compared)]
    lines = [header]
    for place in dict.fromkeys(place for some in found.values() for place in some):
        here = {metric: found[metric].get(place) for metric in metrics}
        runs = max(c.over.n for c in here.values() if c)
        first = [place[1], *([place[2]] if columns else []), str(runs)]
        lines.append(first + _study_cells(here, compared, _decimals(protocol)))
    return lines


def _decimals(protocol: str) -> int:
    return 3 if protocol in _SHOWN else 1


def _study_cells(here: Mapping[str, Contrast | None], compared: Sequence[str], digits: int) -> list[str]:
    """Write the means, deviations and differences of one line; "" where a metric was not measured."""
    cells, differences = [], []
    for metric, c in here.items():
        mean = with_interval(c.over.mean, c.over.ci95, digits, "+" if c.kind == "headroom" else "") if c else ""
        cells.append(Bold(mean) if c and c.best and metric in compared else mean)
        if metric in compared:
            cells.append(f"{c.over.std:.{digits}f}" if c and not math.isnan(c.over.std) else "")
            differences.append(with_interval(c.difference.mean, c.difference.ci95, digits, "+") if c else "")
    return cells + differences


def _interaction_block(title: str, results, about: Mapping[str, Any], preset: str, protocol: str) -> Iterator[Block]:
    """Make the table of the difference of differences of the two columns, where any row has all four cells."""
    _, compared = shown(protocol)
    found = {metric: interactions(results, about, preset, protocol, metric) for metric in compared}
    rows = dict.fromkeys(row for some in found.values() for row in some)
    lines = [["", "runs", *map(name_of, compared)]]
    for row in rows:
        over = [some.get(row, summary([])) for some in found.values()]
        values = (with_interval(o.mean, o.ci95, _decimals(protocol), "+") for o in over)
        lines.append([row, str(max(o.n for o in over)), *values])
    first, second = about["contrast"]
    if rows:
        yield Block(f"{title}: (row - {about['reference']}) in {first} minus the same in {second}", lines)


def _study_legend(results: pandas.DataFrame, about: Mapping[str, Any]) -> list[str]:
    cells = results[results["kind"] == "cell"]
    where = f" in {about['reference_column']}" if about["reference_column"] else ""
    lines = [
        "Accuracy in %, mean over classes; Std: over head, mid, tail; ±: 95 % interval over seeds; s.d.: over seeds.",
        f"reference: {about['reference']}{where}, paired by seed and split. Bold: the paired interval to the runner-up "
        f"is above zero (not competing: {', '.join(about['outside'])}).",
        f"seeds {', '.join(map(str, about['seeds']))}; subsets {_few(cells['subset'])}; "
        f"commit {', '.join(dict.fromkeys(cells['commit']))}.",
    ]
    if SPACE in set(cells["protocol"]):
        lines.append(
            "space: coefficients of variation of the classes' spreads and of their centres' distances, 0: even."
        )
    if COST in set(cells["protocol"]):
        lines.append(
            "cost: wall time of an epoch (median over a run, with all it writes) relative to simclr's median here; "
            "state: weights, momentum and all that is kept of each sample, without activations."
        )
    changed = ", ".join(f"{name}={value}" for name, value in about["overrides"].items())
    lines += [f"changed from the preset: {changed}."] if changed else []
    return lines + [f"left out: {why}" for why in about["left_out"]] + [f"failed: {why}" for why in about["failed"]]


def _few(values: Iterable[str]) -> str:
    unique = list(dict.fromkeys(values))
    return ", ".join(unique) if len(unique) <= 5 else f"{', '.join(unique[:3])} and {len(unique) - 3} more"


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
    found = {
        protocol: {m: scores[m] for m in ACCURACIES if scores.get(m) is not None}
        for protocol, scores in results.get("protocols", {}).items()
    }
    geometry = results.get("geometry") or {}
    space = {metric: geometry[key] for metric, key in EVENNESS.items() if geometry.get(key) is not None}
    return found | ({SPACE: space} if space else {})


def compare(runs: Any, reference: str = "simclr") -> pandas.DataFrame:
    """Tabulate evaluated runs: per preset and protocol the rows pixels, untrained, and one per method.

    `runs`: runs, their folders or results, one or many; or {label: one or many}. Runs that differ in seed and split
    only are one row. Columns: preset, protocol, method, n (runs), then all, head, mid, tail, std in % and spread_cv,
    distance_cv (evenness of the space), each with its standard deviation and the half-width of its 95 % interval over
    the runs (`all_sd`, `all_ci`; NaN for one run); `difference`, `difference_ci`: of all to the row `reference`, paired
    by seed and split; `subset`: hash of the training images, or how many there are. std is the population standard
    deviation of the three group accuracies. Raises ConfigError for runs not yet evaluated.
    """
    import pandas

    rows = pandas.DataFrame(list(_compared_rows(_labelled_results(_entries(runs)))), columns=COLUMNS)
    about = {"reference": reference, "reference_column": "", "outside": ()}
    found = []
    for preset in dict.fromkeys(rows["preset"]):
        for protocol in dict.fromkeys(rows.loc[rows["preset"] == preset, "protocol"]):
            found += _wide_rows(rows, about, preset, protocol)
    return pandas.DataFrame(found)


def _entries(runs: Any) -> list[tuple[str | None, Result]]:
    """List (label given by the caller or None, results) of everything in `runs`."""
    if isinstance(runs, Mapping) and "protocols" not in runs:
        return [(label, result) for label, some in runs.items() for _, result in _entries(some)]
    if isinstance(runs, (Run, str, Path, Mapping)):
        return [(None, _results_of(runs))]
    return [entry for some in runs for entry in _entries(some)]


def _results_of(run: Run | str | Path | Result) -> Result:
    if isinstance(run, Mapping):
        return run
    run = run if isinstance(run, Run) else Run(run)
    if not run.results:
        raise ConfigError(f"{run.path} has not been evaluated: tase evaluate {run.path}")
    return run.results


def _labelled_results(entries: list[tuple[str | None, Result]]) -> list[tuple[str, Result]]:
    """Label each result with the given label, or the method and what tells it apart among these runs."""
    ignored = {result["method"]: _ignored(result["method"]) for _, result in entries}

    def particular(change: str, method: str) -> bool:
        """Whether the method has this option, and another run of a method that has it is without this change."""
        option = change.split("=")[0]
        having = [other for _, other in entries if option not in ignored[other["method"]]]
        return option not in ignored[method] and any(change not in other["changes"] for other in having)

    named = []
    for label, result in entries:
        own = [change for change in result["changes"] if particular(change, result["method"])]
        name = result["method"] + (", balanced" if result["balanced"] else "")
        named.append((label or (f"{name} ({', '.join(own)})" if own else name), result))
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
                measured_on = {"protocols": result["baselines"].get(kind, {})}
                yield from _result_rows("baseline", kind, result, scores_by_protocol(measured_on))
        for label, result in block:
            scores = scores_by_protocol(result)
            space = scores.pop(SPACE, {})
            yield from _result_rows("cell", label, result, {p: {**some, **space} for p, some in scores.items()})


def _result_rows(kind: str, row: str, result: Result, scores: Mapping[str, Mapping[str, float]]):
    place = {"kind": kind, "row": row, "column": ""}
    place |= {name: result[name] for name in ("preset", "subset", "seed", "split")}
    for protocol, metrics in scores.items():
        for metric, value in metrics.items():
            yield {**place, "protocol": protocol, "metric": metric, "value": value}


def _wide_rows(rows: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str) -> list[dict[str, Any]]:
    """One row per baseline and method of a preset and protocol, the metrics side by side."""
    here = rows[(rows["preset"] == preset) & (rows["protocol"] == protocol)]
    if not (here["kind"] == "cell").any():
        return []
    subsets = {place: sorted(set(some)) for place, some in here.groupby(["kind", "row"])["subset"]}
    metrics = (*SCORES, *EVENNESS)
    found = {m: {(c.kind, c.row): c for c in contrasts(here, about, preset, protocol, m)} for m in metrics}
    wide = []
    for place, c in found["all"].items():
        row = {"preset": preset, "protocol": protocol, "method": place[1], "n": c.over.n}
        for metric, some in found.items():
            over = some[place].over if place in some else summary([])
            row |= {metric: over.mean, f"{metric}_sd": over.std, f"{metric}_ci": over.ci95}
        row |= {"difference": c.difference.mean, "difference_ci": c.difference.ci95}
        few = subsets[place]
        wide.append(row | {"subset": few[0] if len(few) == 1 else f"{len(few)} subsets"})
    return wide


def format_table(frame: pandas.DataFrame, metrics: Sequence[str] = SCORES) -> str:
    """Write the frame of `compare` as text for a terminal, a block per preset and protocol."""
    return "\n".join([*as_text(_compared_blocks(frame, metrics)), _compared_legend(frame)])


def to_markdown(frame: pandas.DataFrame, metrics: Sequence[str] = SCORES) -> str:
    """Write the frame of `compare` as Markdown tables; `metrics` may also name spread_cv and distance_cv."""
    return "\n".join([*as_markdown(_compared_blocks(frame, metrics)), _compared_legend(frame)])


def _compared_blocks(frame: pandas.DataFrame, metrics: Sequence[str]) -> Iterator[Block]:
    for (preset, protocol), block in frame.groupby(["preset", "protocol"], sort=False):
        paired = block["difference"].notna().any()
        header = ["", "runs", *map(name_of, metrics), *(["paired difference"] if paired else []), "subset"]
        lines = [header]
        for row in block.to_dict("records"):
            cells = [with_interval(row[m], row[f"{m}_ci"], 3 if m in EVENNESS else 1) for m in metrics]
            cells += [with_interval(row["difference"], row["difference_ci"], sign="+")] if paired else []
            lines.append([row["method"], str(row["n"]), *cells, row["subset"]])
        yield Block(f"{preset}, {protocol}", lines)


def _compared_legend(frame: pandas.DataFrame) -> str:
    words = "Accuracy in %, mean over classes; Std: over head, mid, tail (population)."
    words += " ±: 95 % interval over runs." if (frame["n"] > 1).any() else ""
    if frame["difference"].notna().any():
        words += "\nPaired difference: of All to simclr, same seeds (of simclr, balanced: what the long tail costs)."
    return words
