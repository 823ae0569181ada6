"""From a declared study to its folder: which runs it needs, doing what is missing, and what they have shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config, ConfigError, check
from ..data import GROUPS, class_counts
from ..evaluation import FILES
from ..runs import Run, RunError, load_json, load_kept, save_json, tidy, write_atomic
from ._declared import PUBLISHED
from ._grid import Cell, Study, is_tailed_twin
from ._jobs import Job, cost, do_all
from ._table import PSEUDO, to_latex, to_markdown

if TYPE_CHECKING:
    import pandas

COLUMNS = "study kind row column preset subset protocol seed split metric value commit identity".split()  # noqa: SIM905
ACCURACIES = ("all", *GROUPS, "std", "std_classes", "range_classes")


class StudyError(RuntimeError):
    """Some runs of a study have failed; the message says which and why. What is done is kept."""


@dataclass(frozen=True)
class Entry:
    """A cell of the study on one preset, with one seed; `config` is the cell's own, `job` the run that it rests on."""

    cell: Cell
    config: Config
    job: Job


@dataclass(frozen=True)
class Plan:
    """All that a study needs, done or not."""

    study: Study
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    on: str
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]  # cells that cannot be made of these data, and why

    @property
    def jobs(self) -> list[Job]:
        """The runs, seed by seed, so that an unfinished study has whole seeds."""
        unique = {entry.job.folder: entry.job for entry in self.entries}
        return sorted(unique.values(), key=lambda job: job.config.seed)

    @property
    def missing(self) -> list[Job]:
        return [job for job in self.jobs if not job.done]

    def describe(self, at_once: int = 1) -> str:
        """The grid and what it costs, as text."""
        study, missing = self.study, self.missing
        rows, columns = ("; ".join(dict.fromkeys(names)) for names in zip(*((c.row, c.column) for c in study.cells)))
        seconds, basis = cost(missing, at_once)
        lines = [f"{study.name}: {study.question}", f"  rows      {rows}", f"  columns   {columns.strip('; ')}"]
        lines += [f"  presets   {', '.join(self.presets)}", f"  seeds     {', '.join(map(str, self.seeds))}"]
        lines += [f"  protocols {', '.join(study.protocols) or 'quality of the pseudo-labels'}, on {self.on}"]
        lines += [f"  left out  {why}" for why in self.left_out]
        lines += [f"  runs      {len(self.jobs)}, of which {len(missing)} are to be done"]
        took = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
        lines += [f"  cost      about {took} of training, {at_once} at once ({basis})"] if missing else []
        return "\n".join(lines)


def plan(
    study: Study,
    presets: Sequence[str] = (),
    seeds: Iterable[int] = range(5),
    runs: str | Path = "runs",
    overrides: Mapping[str, Any] | None = None,
    on: str = "test",
) -> Plan:
    """Every cell on every preset (none given: the study's own) with every seed, and the run in `runs` that it needs.

    A run in the folder `runs` is found by its configuration, whatever its name. Cells that the data cannot give (no
    image left for a class, none to validate on) are left out. Raises ConfigError where that leaves nothing, and for
    unknown names.
    """
    presets, seeds = tuple(presets) or study.presets, tuple(seeds)
    check(bool(presets), "--preset", presets, f"given: the study '{study.name}' has none of its own")
    check(bool(seeds), "--seeds", seeds, "one or more seeds")
    check(on in FILES, "--on", on, f"one of {', '.join(FILES)}")
    found, entries, left_out = _found(Path(runs)), [], {}
    for preset, seed, cell in ((p, s, c) for p in presets for s in seeds for c in study.cells):
        config = study.config(cell, preset, seed, overrides)
        try:
            class_counts(config)
            held = config.data.rule != "ldam" and config.data.val_per_class > 0
            allowed = f"test: {preset} holds no validation images out (data.val_per_class, data.rule)"
            check(on == "test" or held or not study.protocols, "--on", on, allowed)
        except ConfigError as error:
            left_out[f"{cell.name} on {preset}: {error}"] = error
            continue
        entries.append(Entry(cell, config, _job(study, config, preset, seed, overrides, found, Path(runs), on)))
    if not entries:
        raise next(iter(left_out.values()))
    entries = _with_clusterings(entries) if study.on_features else entries
    return Plan(study, presets, seeds, on, tuple(entries), tuple(left_out))


def _found(folder: Path) -> dict[str, Path]:
    """Folders of the runs that are there, by identity."""
    found = {}
    for path in sorted(folder.glob("*/config.json")):
        with contextlib.suppress(RunError):
            found[Run(path.parent).identity] = path.parent
    return found


def _job(study, config, preset, seed, overrides, found: dict[str, Path], runs: Path, on: str) -> Job:
    if study.on_features:
        config = study.config(None, preset, seed, overrides)
    folder = found.get(config.identity, runs / config.identity)
    return Job(config, folder, study.protocols, on)


def _with_clusterings(entries: list[Entry]) -> list[Entry]:
    """Every job with the clusterings that its cells ask for."""
    from dataclasses import replace

    asked: dict[Path, list[Config]] = {}
    for entry in entries:
        asked.setdefault(entry.job.folder, []).append(entry.config)
    return [replace(e, job=replace(e.job, clusterings=tuple(asked[e.job.folder]))) for e in entries]


# -------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Outcome:
    """A study's folder as it is now."""

    folder: Path
    results: pandas.DataFrame
    about: dict[str, Any]
    done: int = 0  # runs that the call had to do
    failed: list[str] = field(default_factory=list)

    @property
    def markdown(self) -> str:
        return to_markdown(self.results, self.about)


def run_study(
    study: Study,
    presets: Sequence[str] = (),
    seeds: Iterable[int] = range(5),
    out: str | Path = "studies",
    jobs: int = 1,
    overrides: Mapping[str, Any] | None = None,
    on: str = "test",
    runs: str | Path | None = None,
    progress: bool = True,
    keep: bool = False,
) -> Outcome:
    """Do what is missing of a study, `jobs` runs at once, and write its tables into the folder `out`.

    The runs are in `runs` (None: OUT/runs; several studies can share one). `keep` copies what tables need of them to
    OUT/runs, small enough for a repository, from where the study can go on with more seeds or rows. With `on="val"`
    runs are judged on validation images. May be stopped at any moment: the same call goes on. Runs that fail are named
    in `failed`, the tables are of the others. Raises ConfigError for unknown names and impossible values.
    """
    from tqdm.auto import tqdm

    out = Path(out)
    check(jobs >= 1, "--jobs", jobs, "at least 1")
    planned = plan(study, presets, seeds, runs or out / "runs", overrides, on)
    missing, failed = planned.missing, []
    if missing:
        total = sum(job.epochs_left for job in missing)
        with tqdm(total=total, desc=study.name, unit="epoch", disable=not progress, dynamic_ncols=True) as bar:
            failed = do_all(missing, jobs, bar)
    _write(planned, out, overrides or {}, failed)
    for job in planned.jobs if keep else ():
        if job.run and job.folder.parent.resolve() != (out / "runs").resolve():
            job.run.slim(out / "runs" / job.folder.name)
    results, about = read_study(out)
    return Outcome(out, results, about, len(missing) - len(failed), failed)


def _write(planned: Plan, out: Path, overrides: Mapping[str, Any], failed: list[str]) -> None:
    import pandas

    out.mkdir(parents=True, exist_ok=True)
    tidy(out)
    frame = pandas.DataFrame(list(_records(planned)), columns=COLUMNS)
    write_atomic(out / "results.csv", frame.to_csv(index=False, float_format="%.10g").encode())
    save_json(out / "study.json", _about(planned, overrides, failed))
    results, about = read_study(out)
    write_atomic(out / "table.md", to_markdown(results, about).encode())
    write_atomic(out / "table.tex", to_latex(results, about).encode())


def _about(planned: Plan, overrides: Mapping[str, Any], failed: list[str]) -> dict[str, Any]:
    study = planned.study
    names = ("name", "question", "reference", "reference_column", "figure", "outside")
    about = {name: getattr(study, name) for name in names}
    about |= {"rows": list(study.rows), "columns": list(study.columns), "extras": list(study.extras)}
    about |= {"presets": planned.presets, "seeds": planned.seeds, "on": planned.on, "overrides": dict(overrides)}
    return about | {"left_out": planned.left_out, "failed": failed}


def read_study(folder: str | Path) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """results.csv and study.json of a study's folder; raises RunError where there is none."""
    import pandas

    path = Path(folder) / "results.csv"
    if not path.exists():
        raise RunError(f"{folder} is no study: there is no results.csv in it")
    kinds = {name: str for name in COLUMNS} | {"seed": "Int64", "split": "Int64", "value": float}
    results = pandas.read_csv(
        path, dtype=kinds, keep_default_na=False, na_values={"seed": "", "split": "", "value": ""}
    )
    return results, load_json(path.with_name("study.json"))


# ------------------------------------------------------------------------------------------------------- what was found


def _records(planned: Plan) -> Iterator[dict[str, Any]]:
    """The lines of results.csv: the cells', then headroom, baselines and published figures."""
    measured = [(entry, entry.job.run) for entry in planned.entries]
    done = [(entry, run) for entry, run in measured if run is not None and _scores(entry, run, planned.on)]
    for entry, run in done:
        yield from _lines(planned, "cell", entry, run, entry.cell.row, _scores(entry, run, planned.on))
    yield from _headroom(planned, done)
    for kind in ("pixels", "untrained"):
        yield from _baselines(planned, kind, done)
    for p in PUBLISHED if planned.study.protocols else ():
        if p.preset in planned.presets:
            line = {"kind": "published", "row": f"{p.method} ({p.source})", "column": "", "preset": p.preset}
            line |= {"study": planned.study.name, "protocol": f"published: {p.protocol}", "metric": "all"}
            yield line | {"value": p.value}


def _scores(entry: Entry, run: Run, on: str) -> dict[str, dict[str, float]]:
    """protocol -> metric -> value of one cell."""
    if entry.job.clusterings:
        quality = entry.job.qualities.get(entry.config.identity)
        return {PSEUDO: quality} if quality else {}
    saved = _results(run, on)
    protocols = {n: s for n, s in saved.get("protocols", {}).items() if n.split("@")[0] in entry.job.protocols}
    scores = {name: {metric: some[metric] for metric in ACCURACIES} for name, some in protocols.items()}
    last = run.history.quality[-1:]
    return scores | ({PSEUDO: last[0]} if scores and last and last[0] else {})


def _results(run: Run, on: str) -> dict[str, Any]:
    saved = load_kept(run.path / FILES[on])
    return saved if saved.get("identity") == run.config.identity else {}


def _lines(
    planned: Plan, kind: str, entry: Entry, run: Run, row: str, scores: Mapping[str, Mapping[str, Any]], column=None
) -> Iterator[dict[str, Any]]:
    shared = {"study": planned.study.name, "kind": kind, "row": row, "preset": entry.config.preset}
    shared |= {"column": entry.cell.column if column is None else column, "subset": run.environment.get("subset", "")}
    shared |= {"seed": entry.config.seed, "split": entry.config.split, "commit": run.commit}
    shared |= {"identity": entry.config.identity}
    for protocol, metrics in scores.items():
        for metric, value in metrics.items():
            if value is not None:
                yield {**shared, "protocol": protocol, "metric": metric, "value": float(value)}


def _headroom(planned: Plan, done: list[tuple[Entry, Run]]) -> Iterator[dict[str, Any]]:
    """SimCLR on a balanced set minus SimCLR on the long tail, all else equal: what the long tail costs."""
    for entry, run in done:
        twins = (e for e in done if is_tailed_twin(e[0].config, entry.config) and entry.config.method == "simclr")
        for twin, tailed in twins:
            balanced, long_tailed = _scores(entry, run, planned.on), _scores(twin, tailed, planned.on)
            harm = {
                protocol: {m: v - long_tailed[protocol][m] for m, v in metrics.items() if v is not None}
                for protocol, metrics in balanced.items()
                if protocol != PSEUDO
            }
            yield from _lines(planned, "headroom", entry, run, "headroom: balanced - long tail", harm)


def _baselines(planned: Plan, kind: str, done: list[tuple[Entry, Run]]) -> Iterator[dict[str, Any]]:
    """Raw pixels, or the untrained network: once per seed, in each column if the columns change images or network."""
    fields = [name for changes in planned.study.columns.values() for name in changes]
    vary = any(name.split(".")[0] in ("data", "views", "model") for name in fields)
    told = set()
    for entry, run in done:
        column = entry.cell.column if vary else ""
        key = (entry.config.preset, entry.config.seed, column)
        if not entry.config.data.balanced and not entry.job.clusterings and key not in told:
            told.add(key)
            saved = _results(run, planned.on)["baselines"].get(kind, {})
            kept = {name: saved[name] for name in _scores(entry, run, planned.on) if name in saved}
            scores = {name: {metric: some[metric] for metric in ACCURACIES} for name, some in kept.items()}
            yield from _lines(planned, "baseline", entry, run, kind, scores, column)
