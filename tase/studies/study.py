"""From a declared study to its folder: which runs it needs, doing what is missing, and what they have shown."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import Config, ConfigError, check, override
from ..data import class_counts, is_fixed, listed_hash, load_splits
from ..evaluation import saved_results, score_names
from ..files import RunError, load_json, load_optional_json, save_json, tidy, write_atomic
from ..runs import RESULTS, Run, keep_runs, kept_runs
from ..tables import (
    BASELINES,
    COLUMNS,
    COST,
    PSEUDO,
    SPACE,
    long_rows,
    scores_by_protocol,
    study_latex,
    study_markdown,
)
from .declared import BALANCED, CONTROLS, SIMCLR, Cell, Study
from .engines import engine
from .jobs import Job, cost, do_all

if TYPE_CHECKING:
    import pandas


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
    entries: list[Entry]
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
        """Write the grid and what it costs, as text."""
        study, missing = self.study, self.missing
        seconds, basis = cost(missing, at_once)
        lines = [f"{study.name}: {study.question}", f"  rows      {'; '.join([*study.rows, *study.extras])}"]
        lines += [f"  columns   {'; '.join(study.columns)}"]
        lines += [f"  presets   {', '.join(self.presets)}", f"  seeds     {', '.join(map(str, self.seeds))}"]
        lines += [f"  protocols {', '.join(study.protocols) or 'quality of the pseudo-labels'}, on {self.on}"]
        lines += [f"  left out  {why}" for why in self.left_out]
        lines += [f"  runs      {len(self.jobs)}, of which {len(missing)} are to be done"]
        took = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
        lines += [f"  cost      about {took} of training, {at_once} at a time ({basis})"] if missing else []
        lines += [line for job in missing if (line := _state_line(job))]
        return "\n".join(lines)


def _state_line(job: Job) -> str:
    """Say of a run that is to be done where it runs now, or why it failed; nothing where neither is so."""
    status, owner = load_optional_json(job.folder / "status.json"), job.claim.owner
    if owner:
        where = f"{owner['host'].split('/')[0]}, process {owner.get('pid', '?')}"
        return f"  running   {job}: epoch {status.get('epoch', 0)} of {job.config.optim.epochs} on {where}"
    return f"  failed    {job}: {status.get('error', '')}" if status.get("state") == "failed" else ""


def plan(
    study: Study,
    presets: Sequence[str] = (),
    seeds: Iterable[int] = range(5),
    runs: str | Path = "runs",
    overrides: Mapping[str, Any] | None = None,
    on: str = "test",
) -> Plan:
    """Pair every cell, preset (none given: the study's own) and seed with the run in `runs` that it needs.

    `runs` is a folder, or a zip of kept runs; new runs of x.zip go to the folder x. A run is found by its
    configuration, not by its name; where a kept copy lacks what is asked for, the run is trained again. Cells that the
    data cannot give (no image left for a class, none to validate on) are left out. Raises ConfigError where that leaves
    nothing, for unknown names, and where a run is of other images than are there now.
    """
    presets, seeds = tuple(dict.fromkeys(presets or study.presets)), tuple(dict.fromkeys(seeds))
    check(bool(presets), "--preset", presets, f"given: the study '{study.name}' has none of its own")
    check(bool(seeds), "--seeds", seeds, "one or more seeds")
    check(on in RESULTS, "--on", on, f"one of {', '.join(RESULTS)}")
    _check_overrides(study, overrides or {})
    folder = Path(runs).with_suffix("") if Path(runs).suffix == ".zip" else Path(runs)
    found, planned, wanted, left_out, drawn = _found_runs(folder), [], {}, {}, set()
    for preset, seed, cell in itertools.product(presets, seeds, study.cells):
        config = study.config(cell, preset, seed, overrides)
        try:
            if (config.data, config.split) not in drawn:  # listing a folder takes its time
                class_counts(config)
                drawn.add((config.data, config.split))
            held = config.data.rule != "ldam" and config.data.val_per_class > 0
            allowed = f"test: {preset} holds no validation images out (data.val_per_class, data.rule)"
            check(on == "test" or held or not study.protocols, "--on", on, allowed)
        except ConfigError as error:
            left_out[f"{cell.name} on {preset}: {error}"] = error
            continue
        trained = study.config(None, preset, seed, overrides) if study.on_features else config
        wanted.setdefault(trained.identity, (trained, []))[1].extend([config] if study.on_features else [])
        planned.append((cell, config, trained.identity))
    if not planned:
        raise next(iter(left_out.values()))
    jobs, hashes = {}, {}
    for identity, (trained, clusterings) in wanted.items():
        if identity in found:
            _check_same_images(Run(found[identity]), trained, hashes)
        new = Job(trained, folder / identity, study.protocols, on, tuple(clusterings))
        old = dataclasses.replace(new, folder=found.get(identity, new.folder))
        jobs[identity] = new if old.run and old.run.is_slim and not old.done else old
    entries = [Entry(cell, config, jobs[identity]) for cell, config, identity in planned]
    return Plan(study, presets, seeds, on, entries, tuple(left_out))


def _check_overrides(study: Study, overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError for a field that cells, presets, seeds or protocols decide: it would be told, and not hold."""
    others = {"preset": "--preset", "seed": "--seeds", "evaluation.protocols": "--protocols"}
    if any("method" in changes for changes in (*study.rows.values(), *study.columns.values())):
        others["method"] = "--rows"
    for name in overrides:
        check(name not in others, f"--set {name}", overrides[name], f"chosen by {others.get(name)}, not for all cells")


def _check_same_images(run: Run, config: Config, hashes: dict[tuple, tuple[str, bool]]) -> None:
    """Raise ConfigError where a run was trained on other images than `data.root` holds: its identity does not tell.

    `hashes` are those of the training sets that have been listed so far.
    """
    data, before, key = config.data, run.environment.get("subset", ""), (config.data, config.split)
    if is_fixed(data) or not before:
        return
    try:
        hashes[key] = hashes.get(key) or listed_hash(config)
        if hashes[key][0] != before and data.on_bad_image == "skip":  # which files are skipped, decoding alone tells
            hashes[key] = load_splits(config, parts=("train",)).train.hash, hashes[key][1]
    except ConfigError:  # the data are not here: there is nothing to hold the run against
        return
    now, telling = hashes[key]
    there, here = (os.path.realpath(os.path.expanduser(root)) for root in (run.config.data.root, data.root))
    if now != before or (there != here and not telling):
        raise ConfigError(
            f"the run {run.name} is of other images than this study (subset {before} of {there}, now {now or '?'} of "
            f"{here}): take another folder for these (--out, --runs)"
        )


def _found_runs(folder: Path) -> dict[str, Path]:
    """Find the folders of the runs that are there, by identity: in the folder, and kept ones in its zip."""
    kept = folder.with_name(f"{folder.name}.zip")
    found = {run.identity: run.path for run in (kept_runs(kept) if kept.exists() else ())}
    for path in sorted(folder.glob("*/config.json")):
        with contextlib.suppress(RunError):
            run = Run(path.parent)
            if run.finished or run.identity not in found:  # a whole run comes before its kept copy
                found[run.identity] = run.path
    return found


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
        return study_markdown(self.results, self.about)


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
    executor: Any = None,
    only_done: bool = False,
) -> Outcome:
    """Do what is missing of a study, `jobs` runs at a time, and write its tables into the folder `out`.

    The runs are in `runs` (None: OUT/runs, and OUT/runs.zip where some are kept; several studies can share a folder).
    `keep` writes what tables need of them to OUT/runs.zip, small enough for a repository, from which the study resumes
    with more seeds or rows. With `on="val"` runs are judged on validation images. May be stopped at any moment: the
    same call resumes. Runs that fail are named in `failed`, the tables are of the others. `only_done` runs nothing: the
    tables are of the runs of which nothing is missing, each row of its own number, each difference of the seeds that
    both have. Raises ConfigError for unknown names and invalid values, and where `only_done` finds none.

    With `jobs` > 1 runs go to worker processes of this machine; a script of your own then must call this under
    `if __name__ == "__main__"`. An `executor` in their place is the name of an engine, as `--executor` takes it, or
    anything that has `submit(function, *args)` and whose futures have `done()` and `result()`, and which sees the same
    file system. The same call may run several times at once, on machines that share the folder: each run is done once.
    """
    from tqdm.auto import tqdm

    out = Path(out)
    check(jobs >= 1, "--jobs", jobs, "at least 1")
    planned = plan(study, presets, seeds, runs or out / "runs", overrides, on)
    if only_done:
        there = [entry for entry in planned.entries if entry.job.done]
        check(bool(there), "--only-done", only_done, f"left out: none of the {len(planned.jobs)} runs is done yet")
        lacking = f"{len(planned.missing)} of {len(planned.jobs)} runs, which are not done yet"
        left_out = (*planned.left_out, *([lacking] if planned.missing else []))
        some = {entry.job.config.seed for entry in there}
        seeds = tuple(seed for seed in planned.seeds if seed in some)
        planned = dataclasses.replace(planned, entries=there, seeds=seeds, left_out=left_out)
    missing, failed = planned.missing, []
    total = sum(job.epochs_left for job in missing)
    if executor is None and jobs > 1:
        executor = f"local:{jobs}"
    if missing:
        with (
            engine(executor, missing[0].folder.parent / ".logs") as opened,
            tqdm(total=total, desc=study.name, unit="epoch", disable=not progress, dynamic_ncols=True) as bar,
        ):
            failed = do_all(missing, bar, opened)
    _write_tables(planned, out, overrides or {}, failed)
    if keep:
        kept = out / "runs.zip"
        before = {run.path for run in kept_runs(kept)} if kept.exists() else set()
        done = (job.run for job in planned.jobs)
        keep_runs([run for run in done if run and run.path not in before], kept, tables_only=True)
    results, about = read_study(out)
    return Outcome(out, results, about, len(missing) - len(failed), failed)


def _write_tables(planned: Plan, out: Path, overrides: Mapping[str, Any], failed: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tidy(out)
    csv = _long_form(planned).to_csv(index=False, float_format="%.10g")
    write_atomic(out / "results.csv", csv.encode())
    study = planned.study
    names = ("name", "question", "reference", "reference_column", "contrast", "figure", "outside", "axes")
    about = {name: getattr(study, name) for name in names}
    about |= {axis: list(getattr(study, axis)) for axis in ("rows", "columns", "extras")}
    about |= {"presets": planned.presets, "seeds": planned.seeds, "on": planned.on, "overrides": dict(overrides)}
    save_json(out / "study.json", about | {"left_out": planned.left_out, "failed": failed})
    write_tables(out)


def write_tables(folder: str | Path) -> list[Path]:
    """Write table.md and table.tex of a study's folder from its results.csv; returns their paths."""
    results, about = read_study(folder)
    paths = [Path(folder) / "table.md", Path(folder) / "table.tex"]
    for path, text in zip(paths, (study_markdown(results, about), study_latex(results, about))):
        write_atomic(path, text.encode())
    return paths


def read_study(folder: str | Path) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """Read results.csv and study.json of a study's folder; raises RunError where there is none."""
    import pandas

    path = Path(folder) / "results.csv"
    if not path.exists():
        raise RunError(f"{folder} is no study: there is no results.csv in it")
    types = {name: str for name in COLUMNS} | {"seed": "Int64", "split": "Int64", "value": float}
    empty = {"seed": "", "split": "", "value": ""}  # else a method named "nan" or "null" would be a missing label
    results = pandas.read_csv(path, dtype=types, keep_default_na=False, na_values=empty)
    return results, load_json(path.with_name("study.json"))


# ------------------------------------------------------------------------------------------------------- what was found


def _long_form(planned: Plan) -> pandas.DataFrame:
    """Collect the rows of results.csv: the cells', then headroom, baselines and published figures."""
    import pandas

    cells, baselines = [], []
    for entry in planned.entries:
        if (run := entry.job.run) and (scores := _scores_of_cell(entry, run, planned.on, planned.study.costs)):
            cells += long_rows(scores, kind="cell", row=entry.cell.row, column=entry.cell.column, **_place(entry, run))
            baselines += _baseline_rows(planned, entry, run, scores)
    cells, baselines = (pandas.DataFrame(rows, columns=[*COLUMNS, "twin"]) for rows in (cells, baselines))
    # Once per seed, in each column: runs of a seed share them.
    baselines = baselines.drop_duplicates(["row", "column", "preset", "seed", "protocol", "metric"])
    baselines = baselines.sort_values("row", key=lambda row: row.map(BASELINES.index), kind="stable")
    others = published(planned.presets if planned.study.protocols else ())
    cells = _with_relative_times(cells)
    parts = [part for part in (cells, _headroom(cells, planned), baselines, others) if len(part)] or [cells]
    rows = pandas.concat(parts).assign(study=planned.study.name)
    return rows[COLUMNS].astype({"seed": "Int64", "split": "Int64"})


def published(presets: Sequence[str]) -> pandas.DataFrame:
    """Read the figures that others have published, accuracies in %, under their own protocols, as rows of COLUMNS.

    They are of one run each, unless the source says otherwise.
    """
    import pandas

    found = pandas.read_csv(Path(__file__).with_name("published.csv"), dtype={"value": float})
    found = found[found["preset"].isin(presets)].assign(kind="published", column="", metric="all")
    found["row"] = found["method"] + " (" + found["source"] + ")"
    return found.assign(protocol="published: " + found["protocol"]).reindex(columns=COLUMNS)


def _with_relative_times(cells: pandas.DataFrame) -> pandas.DataFrame:
    """Add the time of each run relative to the median of SimCLR's on the same preset, in the same column."""
    import pandas

    speeds = cells[cells["metric"] == "images_per_second"]
    typical = speeds[speeds["row"] == SIMCLR].groupby(["preset", "column"])["value"].median().rename("typical")
    typical = speeds.join(typical, on=["preset", "column"])["typical"]
    times = speeds.assign(metric="relative_time", value=typical / speeds["value"]).dropna(subset=["value"])
    return pandas.concat([cells, times]) if len(times) else cells


def _headroom(cells: pandas.DataFrame, planned: Plan) -> pandas.DataFrame:
    """SimCLR on a balanced set minus SimCLR on the long tail, all else equal: what the long tail costs.

    Of one row, the preset's own SimCLR where the study has it, for the seeds that have both; another row is named.
    """
    study, keys = planned.study, ["protocol", "metric"]
    axis = {**study.rows, **study.extras}
    rows = dict.fromkeys(entry.cell.row for entry in planned.entries if _is_control(entry.config))
    own = {row for row in rows if axis[row].keys() <= CONTROLS[BALANCED].keys()}
    chosen = min(rows, key=lambda row: (row not in own, row != study.reference), default="")
    label = f"headroom{'' if chosen in own else f' of {chosen}'}: balanced - long tail"
    pairs = cells[(cells["row"] == chosen) & (cells["twin"] != "") & ~cells["protocol"].isin([PSEUDO, SPACE, COST])]
    tailed = cells.drop_duplicates(["identity", *keys])[["identity", *keys, "value"]]
    pairs = pairs.merge(tailed, left_on=["twin", *keys], right_on=["identity", *keys], suffixes=("", "_tailed"))
    value = pairs["value"] - pairs["value_tailed"]
    return pairs.assign(kind="headroom", row=label, value=value)[cells.columns]


def _is_control(config: Config) -> bool:
    return config.method == SIMCLR and config.data.balanced


def _scores_of_cell(entry: Entry, run: Run, on: str, costs: bool) -> dict[str, dict[str, float]]:
    """Read protocol -> metric -> value of one cell; nothing where it has not been evaluated."""
    if entry.job.clusterings:
        quality = entry.job.qualities.get(entry.config.identity)
        return {PSEUDO: quality} if quality else {}
    results = saved_results(run, on)
    scores = scores_by_protocol(results)
    space, quality = scores.pop(SPACE), _quality_of(run)
    names = {name for protocol in entry.job.protocols for name in score_names(protocol, entry.job.config)}
    wanted = {name: some for name, some in scores.items() if name in names}
    scores = {name: {**some, **class_slopes(results, name)} for name, some in wanted.items()}
    return {**scores, PSEUDO: quality, SPACE: space, COST: _cost_of(run) if costs else {}} if scores else {}


def class_slopes(results: Mapping[str, Any], protocol: str) -> dict[str, float]:
    """Fit the accuracies of the classes by their log size and their crowding together, by least squares.

    A class's crowding is its error on raw pixels under `few-shot`: how easily it is mistaken for another before
    anything is learned. Returns `by_size`, accuracy of the largest class minus the smallest in points (not on a
    balanced set), and `by_crowding`, the most crowded class minus the least, each with the other held fixed. Nothing
    where few-shot was not evaluated. Both are linear in the accuracies, so their differences say who gains.
    """
    pixels = results["baselines"].get("pixels", {}).get("few-shot")
    if pixels is None:
        return {}
    counts = torch.tensor(results["counts"], dtype=torch.float64)[results["eval_classes"]]
    judged = (results["protocols"][protocol], pixels)
    accuracies, known = (torch.from_numpy(np.array(x["per_class"], dtype=np.float64)) for x in judged)
    there = ~(accuracies + known).isnan()  # a class of which no image is judged has no accuracy
    counts, accuracies, known = counts[there], accuracies[there], known[there]
    fitted = {**({} if results["balanced"] else {"by_size": counts.log()}), "by_crowding": -known}
    spans = {name: x.max() - x.min() for name, x in fitted.items() if len(x) > 2 and x.max() > x.min()}
    if not spans:
        return {}
    x = torch.stack([torch.ones_like(known), *(fitted[name] / span for name, span in spans.items())], 1)
    return dict(zip(spans, torch.linalg.lstsq(x, accuracies).solution[1:].tolist()))


def _quality_of(run: Run) -> dict[str, float]:
    """Read the quality of the last clusters, and the trust at the end of the warm-up, where it was measured."""
    history = run.history
    if not len(history):
        return {}
    trust = history.trust[run.trusted_at]
    return {**history.quality[-1], **({} if np.isnan(trust) else {"trust": trust})}


def _cost_of(run: Run) -> dict[str, float]:
    """Read what a finished run cost; nothing of runs of an older tase, which did not write it down."""
    size = run.status.get("state_bytes")
    return {"images_per_second": run.status["images_per_second"], "state_mib": size / 2**20} if size else {}


def _place(entry: Entry, run: Run) -> dict[str, Any]:
    """Collect what all rows of a cell's run share; `twin`: for balanced SimCLR the identity of the long-tailed run."""
    config = entry.config
    place = {"preset": config.preset, "subset": run.environment.get("subset", ""), "commit": run.commit}
    place["twin"] = override(config, {"data.balanced": False}).identity if _is_control(config) else ""
    return {**place, "seed": config.seed, "split": config.split, "identity": config.identity}


def _baseline_rows(planned: Plan, entry: Entry, run: Run, scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of raw pixels and the untrained network, in each column if the columns change images or network."""
    names = [name for changes in planned.study.columns.values() for name in changes]
    vary = any(name.split(".")[0] in ("data", "views", "model") for name in names)
    if entry.config.data.balanced or entry.job.clusterings:
        return
    for kind, protocols in saved_results(run, planned.on)["baselines"].items():
        saved = scores_by_protocol({"protocols": {name: some for name, some in protocols.items() if name in scores}})
        column = entry.cell.column if vary else ""
        yield from long_rows(saved, kind="baseline", row=kind, column=column, **_place(entry, run))
