"""Means, intervals and paired differences of a study's results, as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..probes import Summary, paired_difference, summary

if TYPE_CHECKING:
    import pandas

PSEUDO = "pseudo-labels"
# Shown of each protocol: all metrics, and those that are compared with the reference, deviations beside them.
_ACCURACY = (("all", "head", "mid", "tail", "std"), ("all", "tail"))
_QUALITY = (("spearman_samples", "spearman_classes", "nmi", "purity"), ("spearman_samples", "spearman_classes"))

Values = Mapping[tuple[int, int], float]  # (seed, split) -> value


class Contrast(NamedTuple):
    """One metric of one cell: over its seeds, and paired with the reference's; `best`: surely above all others."""

    row: str
    column: str
    kind: str
    over: Summary
    difference: Summary
    best: bool


def shown(protocol: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The metrics shown of a protocol, and those of them that are compared with the reference."""
    return _QUALITY if protocol == PSEUDO else _ACCURACY


def _paired(a: Values, b: Values) -> Summary:
    both = [key for key in a if key in b]
    return paired_difference([a[key] for key in both], [b[key] for key in both])


def contrasts(results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str, metric: str):
    """A `Contrast` for every cell, headroom and baseline of one preset, protocol and metric, in the file's order."""
    chosen = (results["preset"] == preset) & (results["protocol"] == protocol) & (results["metric"] == metric)
    values: dict[tuple[str, str, str], dict[tuple[int, int], float]] = {}
    for line in results[chosen].to_dict("records"):
        values.setdefault((line["kind"], line["row"], line["column"]), {})[line["seed"], line["split"]] = line["value"]
    cells = {(row, column): found for (kind, row, column), found in values.items() if kind == "cell"}
    best = _best(cells, about)
    for (kind, row, column), found in values.items():
        base = reference_of(column, cells, about) if kind == "cell" else None
        against = {} if base in (None, (row, column)) else cells[base]
        sure = kind == "cell" and (row, column) in best
        yield Contrast(row, column, kind, summary(list(found.values())), _paired(found, against), sure)


def reference_of(column: str, cells: Mapping[tuple[str, str], Any], about: Mapping[str, Any]):
    """The cell with which those of a column are compared, or None where it has not been measured."""
    places = [(about["reference"], c) for c in (column, about["reference_column"], "")]
    return next((place for place in places if place in cells), None)


def _best(cells: Mapping[tuple[str, str], Values], about: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The best competitors, where the interval of the paired difference to the runner-up is above zero.

    Two seeds do not tell: their differences, of counts of images, may be the same by chance. Competitors are those
    within a column where each column has its own reference, else all.
    """
    own = (about["reference"], "") not in cells and not about["reference_column"]
    fields: dict[str, list[tuple[str, str]]] = {}
    for row, column in cells:
        if row not in about["outside"]:
            fields.setdefault(column if own else "", []).append((row, column))
    found = set()
    for competitors in fields.values():
        first, *rest = sorted(competitors, key=lambda cell: -summary(list(cells[cell].values())).mean)
        if rest:
            lead = _paired(cells[first], cells[rest[0]])
            found |= {first} if lead.n >= 3 and lead.mean - lead.ci95 > 0 else set()
    return found


# ----------------------------------------------------------------------------------------------------------------- text


class Text(NamedTuple):
    """What stands in one place of a table."""

    words: str
    bold: bool = False


class Block(NamedTuple):
    """A table: its title, and lines of cells, the first one the header."""

    title: str
    lines: list[list[Text]]


def _value(over: Summary, digits: int, sign: str = "") -> str:
    if math.isnan(over.mean):
        return ""
    return f"{over.mean:{sign}.{digits}f}" + ("" if math.isnan(over.ci95) else f" ± {over.ci95:.{digits}f}")


def blocks(results: pandas.DataFrame, about: Mapping[str, Any]) -> Iterator[Block]:
    """A table for each preset and protocol, then the published figures of each preset."""
    for preset in about["presets"]:
        here = results[results["preset"] == preset]
        for protocol in dict.fromkeys(here.loc[here["kind"] == "cell", "protocol"]):
            where = "" if protocol == PSEUDO else f", on {about['on']}"
            yield Block(f"{preset}, {protocol}{where}", _lines(results, about, preset, protocol))
        published = here[here["kind"] == "published"].to_dict("records")
        if published:
            header = [Text(word) for word in ("published, not measured here", "protocol", "All")]
            lines = [[line["row"], line["protocol"], f"{line['value']:g}"] for line in published]
            yield Block(f"{preset}, published figures", [header, *([Text(w) for w in line] for line in lines)])


def _lines(results: pandas.DataFrame, about: Mapping[str, Any], preset: str, protocol: str) -> list[list[Text]]:
    metrics, compared = shown(protocol)
    digits = 3 if protocol == PSEUDO else 1
    found = {metric: list(contrasts(results, about, preset, protocol, metric)) for metric in metrics}
    columns = any(c.column for c in found[metrics[0]])
    names = [
        word for metric in metrics for word in ((name_of(metric), "s.d.") if metric in compared else (name_of(metric),))
    ]
    header = ["", *([" "] if columns else []), "runs", *names, *(f"{name_of(m)} - reference" for m in compared)]
    by_place = {m: {(c.kind, c.row, c.column): c for c in some} for m, some in found.items()}
    lines = [[Text(word) for word in header]]
    for place in dict.fromkeys(place for some in by_place.values() for place in some):
        here = {metric: by_place[metric].get(place) for metric in metrics}
        runs = max(c.over.n for c in here.values() if c)
        line = [Text(place[1]), *([Text(place[2])] if columns else []), Text(str(runs))]
        lines.append(line + _numbers(here, metrics, compared, digits))
    return lines


def _numbers(here: Mapping[str, Contrast | None], metrics, compared, digits: int) -> list[Text]:
    empty = Contrast("", "", "", summary([]), summary([]), False)
    texts = []
    for metric in metrics:
        c = here[metric] or empty
        sign = "+" if c.kind == "headroom" else ""
        texts.append(Text(_value(c.over, digits, sign), c.best and metric in compared))
        if metric in compared:
            texts.append(Text("" if math.isnan(c.over.std) else f"{c.over.std:.{digits}f}"))
    return texts + [Text(_value((here[metric] or empty).difference, digits, "+")) for metric in compared]


def name_of(metric: str) -> str:
    """A metric as it is written in tables and figures."""
    return metric.replace("_", " ").capitalize() if metric != "nmi" else "NMI"


def _legend(results: pandas.DataFrame, about: Mapping[str, Any]) -> list[str]:
    cells = results[results["kind"] == "cell"]
    where = f" in {about['reference_column']}" if about["reference_column"] else ""
    lines = [
        "Accuracy in %, mean over classes; Std: over head, mid, tail; ±: 95 % interval over seeds; s.d.: over seeds.",
        f"reference: {about['reference']}{where}, paired by seed and split. Bold: the paired interval to the runner-up "
        f"is above zero (not competing: {', '.join(about['outside'])}).",
        f"seeds {', '.join(map(str, about['seeds']))}; subsets {_few(cells['subset'])}; "
        f"commit {', '.join(dict.fromkeys(cells['commit']))}.",
    ]
    changed = ", ".join(f"{name}={value}" for name, value in about["overrides"].items())
    lines += [f"changed from the preset: {changed}."] if changed else []
    lines += [f"left out: {why}" for why in about["left_out"]] + [f"failed: {why}" for why in about["failed"]]
    return lines


def _few(values: pandas.Series) -> str:
    unique = list(dict.fromkeys(values))
    return ", ".join(unique) if len(unique) <= 5 else f"{', '.join(unique[:3])} and {len(unique) - 3} more"


def to_markdown(results: pandas.DataFrame, about: Mapping[str, Any]) -> str:
    """All tables of a study in Markdown."""
    text = [f"# {about['name']}", "", about["question"], ""]
    for title, (header, *lines) in blocks(results, about):
        ruled = [_markdown(header), "|" + " --- |" + " ---: |" * (len(header) - 1), *map(_markdown, lines)]
        text += [f"**{title}**", "", *ruled, ""]
    return "\n".join([*text, *(f"- {line}" for line in _legend(results, about)), ""])


def _markdown(line: list[Text]) -> str:
    cells = (cell.words.replace("|", "\\|") for cell in line)
    return "| " + " | ".join(f"**{w}**" if t.bold else w for w, t in zip(cells, line)) + " |"


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "τ": r"$\tau$"}


def _tex(words: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in words)


def _tex_line(line: list[Text]) -> str:
    cells = (_tex(cell.words) for cell in line)
    return " & ".join(rf"\textbf{{{w}}}" if t.bold else w for w, t in zip(cells, line)) + r" \\"


def to_latex(results: pandas.DataFrame, about: Mapping[str, Any]) -> str:
    r"""All tables of a study in LaTeX, for \usepackage{booktabs}."""
    text = [f"% {about['name']}: {about['question']}", "% needs \\usepackage{booktabs}"]
    for title, (header, *lines) in blocks(results, about):
        text += [r"\begin{table}", r"\centering", rf"\caption{{{_tex(title)}}}"]
        text += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", _tex_line(header), r"\midrule"]
        text += [*map(_tex_line, lines), r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*text, *(f"% {line}" for line in _legend(results, about)), ""])
