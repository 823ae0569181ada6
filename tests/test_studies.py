"""Studies on tiny settings: every declared one, its tables and figure, and what is left after it has been killed."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tase
from tase.__main__ import main
from tase.config import ConfigError, fields
from tase.evaluation import lacking
from tase.figures import draw_study, redraw, study_figure
from tase.figures.study import headroom_of
from tase.studies import STUDIES, Job, Multiple, Study, Workers, each_method, engine, over, plan, published, run_study
from tase.studies import jobs as jobs_module
from tase.studies.study import class_slopes
from tase.tables import Bold, blocks, contrasts, interactions

TINY = {
    "optim.epochs": 4,
    "optim.batch": 64,
    "guidance.refresh": 2,
    "guidance.warmup": 0.25,
    "guidance.ramp": 0.25,
    "guidance.clusters": 12,
    "model.channels": "8,8,16,16",
    "model.head_dim": 16,
    "record.features": 100,
    "record.knn_every": 0,
}

# Two cells of every declared study (rows, columns), and the protocols that are quick.
TWO = {
    "six-benchmarks": (["simclr", "tase"], []),
    "constant-tau": (["tau_0=0.1", "tau_0=0.2"], []),
    "group-tau": (["head 0.2", "head 0.5"], ["tail 0.2"]),
    "ablation": (["simclr", "tase, not scaled"], []),
    "tau-range": (["tau_min=0.07"], ["tau_max=0.2", "tau_max=0.5"]),
    "clusters": (["size, centred", "density, centred"], ["clusters=10"]),
    "gamma": (["tase"], ["gamma=0.25", "gamma=1.0"]),
    "imbalance": (["simclr", "tase"], ["rho=10"]),
    "schedule": (["warmup=0.0"], ["refresh=5", "refresh=10"]),
    "label-noise": (["tase"], ["label_noise=0.25", "label_noise=1.0"]),
    "epochs-batch": (["tase"], ["epochs x0.5, batch x0.5", "epochs x1, batch x0.5"]),
    "backbone": (["simclr"], ["conv4", "conv4, twice as wide"]),
    "mechanism": (["simclr", "tase"], ["long tail"]),
    "trust": (["tase", "tase, 4 clusterings"], ["long tail"]),
    "choice": (["tase, 0.1 to 1", "tase, not scaled"], ["long tail"]),
    "scale": (["shuffled"], ["long tail", "balanced"]),
    "headroom": (["simclr"], ["epochs x1", "twice as wide"]),
    "rivals": (["simclr", "tase+bcl-i"], []),
}
HEADROOM = "headroom: balanced - long tail"
SMALL = {  # what the two cells need besides
    "schedule": {"optim.epochs": 11, "guidance.refresh": 0},
    "epochs-batch": {"guidance.refresh": 1},
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """One folder of runs for all tests: what one study has trained, another finds."""
    return tmp_path_factory.mktemp("studies") / "runs"


def quick(name, rows=None, columns=None):
    study = STUDIES[name].only(*((rows, columns or []) if rows else TWO[name]))
    return dataclasses.replace(study, protocols=study.protocols and ("lt-knn",))


def run(study, out, runs, seeds=(0, 1), **more):
    tiny = {**TINY, **SMALL.get(study.name, {})}
    methods = {cell.changes.get("method", study.base.get("method", "tase")) for cell in study.cells}
    if not any("guidance.ramp" in fields(method) for method in methods):
        del tiny["guidance.ramp"]
    more = {"overrides": tiny, "progress": False, **more}
    return run_study(study, ["digits-lt"], seeds, out, runs=runs, **more)


def markdown_tables(text):
    """Every Markdown table of a text as a list of lines of cells."""
    lines = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    starts = [i for i, line in enumerate(lines) if set(line[0]) == {"-"}]
    ends = [*(start - 1 for start in starts[1:]), len(lines)]
    return [[lines[start - 1], *lines[start + 1 : end]] for start, end in zip(starts, ends)]


def latex_tables(text):
    """Every tabular of a text as a list of lines of cells; asserts the booktabs rules."""
    found = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.S):
        assert body.startswith("\\toprule\n") and body.count("\\midrule") == 1 and body.endswith("\\bottomrule\n")
        lines = [line for line in body.splitlines() if line.endswith("\\\\")]
        cells = [re.split(r"(?<!\\)&", line.removesuffix("\\\\")) for line in lines]
        assert {len(line) for line in cells} == {len(columns)}
        found.append([[cell.strip() for cell in line] for line in cells])
    return found


# ------------------------------------------------------------------------------------------------------------- declared


def test_each_study_has_its_question():
    assert set(STUDIES) == set(TWO)
    for study in STUDIES.values():
        assert study.question.endswith((".", "?")) and "\n" not in study.question
        assert study.reference in {**study.rows, **study.extras}
        assert len({cell.name for cell in study.cells}) == len(study.cells)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("preset", ["digits-lt", "fashion-mnist-lt-small", "openclipart", "cifar10-lt"])
def test_every_cell_of_every_study_is_a_configuration_of_its_own(name, preset):
    study = STUDIES[name]
    identities = [study.config(cell, preset, 0).identity for cell in study.cells]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("name", STUDIES)
def test_two_cells_two_seeds(name, tmp_path, runs):
    found = run(quick(name), tmp_path, runs)
    assert not found.failed
    cells = found.results[found.results["kind"] == "cell"]
    metric = "spearman_samples" if name == "clusters" else "all"
    values = cells[cells["metric"] == metric].pivot_table(
        index=["protocol", "row", "column"], columns="seed", values="value"
    )
    assert values.shape[1] == 2 and not values.isna().any(axis=None)
    judged = values.loc["lt-knn@1" if name != "clusters" else "pseudo-labels"].loc[TWO[name][0]]
    assert len(judged) == 2 and (judged.iloc[0] != judged.iloc[1]).any(), "the two cells came to the same"
    assert (cells["commit"] != "").all() and (cells["subset"].str.len() == 8).all()
    _check_tables(found, cells)
    before = draw_study(tmp_path)[-1].read_bytes()
    assert redraw(tmp_path)[-1].read_bytes() == before
    axes = found.about["axes"]
    assert {cell.row for cell in quick(name).cells} | {cell.column for cell in quick(name).cells} == {*axes}
    assert [axes[label] for label in quick(name).axes] == json.loads(json.dumps([*quick(name).axes.values()]))
    figure = study_figure(tmp_path)
    assert figure.axes and all(ax.has_data() for ax in figure.axes)


def _check_tables(found, cells):
    written = (found.folder / "table.md").read_text()
    assert written == found.markdown
    markdown, latex = markdown_tables(written), latex_tables((found.folder / "table.tex").read_text())
    assert len(markdown) == len(latex) == cells["protocol"].nunique()
    for one, other in zip(markdown, latex):
        assert len({len(line) for line in one}) == 1
        assert [[re.sub(r"\*\*", "", cell) for cell in line] for line in one] == [
            [plain(cell) for cell in line] for line in other
        ]
    first = cells[(cells["protocol"] == cells["protocol"].iloc[0]) & (cells["metric"] == cells["metric"].iloc[0])]
    line = markdown[0][1]
    if line[0] == first["row"].iloc[0] and cells["metric"].iloc[0] == "all":
        mean = first[(first["row"] == line[0]) & (first["column"] == first["column"].iloc[0])]["value"].mean()
        place = markdown[0][0].index("All")
        assert float(line[place].split("±")[0].strip("* ")) == pytest.approx(mean, abs=0.051)


def plain(cell):
    cell = re.sub(r"\\textbf\{(.*?)\}", r"\1", cell)
    return re.sub(r"\\([&%_#])", r"\1", cell.replace("$\\pm$", "±"))


def test_costs_are_next_to_accuracy_and_survive_the_kept_copy(tmp_path, runs):
    study = quick("rivals", ["simclr", "sdclr", "bcl-i+gh"])
    outcome = run(study, tmp_path / "study", runs, keep=True, jobs=2)  # in processes: combined methods reach them
    assert not outcome.failed
    cost = outcome.results[outcome.results["protocol"] == "cost"]
    by_row = cost.pivot_table("value", "row", "metric")
    speed = cost[(cost["metric"] == "images_per_second") & (cost["row"] == "simclr")]["value"].median()
    own = cost[(cost["metric"] == "images_per_second") & (cost["row"] == "sdclr")]["value"]
    assert by_row["relative_time"]["sdclr"] == pytest.approx((speed / own).mean(), rel=1e-6)
    assert by_row["state_mib"]["bcl-i+gh"] > by_row["state_mib"]["simclr"] > 0
    assert (
        "| Relative time | State MiB |" in re.sub(" +", " ", outcome.markdown)
        and "- cost: wall time" in outcome.markdown
    )
    assert "cost" not in set(outcome.results[outcome.results["kind"] == "headroom"]["protocol"])
    again = run(study, tmp_path / "study", tmp_path / "study" / "runs.zip")
    assert again.done == 0 and again.markdown == outcome.markdown


# ------------------------------------------------------------------------------------------------------ skip and resume


@pytest.fixture(scope="module")
def pair():
    """A study of two runs a seed."""
    return Study("pair", "Is it one?", rows=each_method("simclr", "tase"), reference="simclr", protocols=("lt-knn",))


def test_the_second_time_nothing_is_trained(pair, tmp_path, runs, monkeypatch):
    first = run(pair, tmp_path, runs)
    files = {name: (tmp_path / name).read_bytes() for name in ("results.csv", "table.md", "table.tex", "study.json")}
    monkeypatch.setattr(jobs_module, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(jobs_module, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    second = run(pair, tmp_path, runs)
    assert second.done == 0
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    pd.testing.assert_frame_equal(first.results, second.results)


def test_a_study_resumes_from_what_it_kept(pair, tmp_path, runs, monkeypatch):
    first = run(pair, tmp_path, runs, keep=True)
    trust = first.results[first.results["metric"] == "trust"]
    whole = {r.identity: r.history.trust[r.trusted_at] for r in tase.runs.kept_runs(runs) if r.finished}
    assert len(trust) == 4 and dict(zip(trust["identity"], trust["value"])).items() <= whole.items()
    assert first.markdown.count(" | Trust | ") == 1 and first.markdown.count("| Spread CV |") == 1
    assert not (tmp_path / "runs").exists() and (tmp_path / "runs.zip").stat().st_size < 4 * 20_000
    monkeypatch.setattr(jobs_module, "train", lambda *_, **__: pytest.fail("trained again"))
    for kept in (tmp_path / "runs", tmp_path / "runs.zip"):
        missing = plan(pair, ["digits-lt"], [0, 1, 2], kept, TINY).missing
        assert [(job.config.seed, job.folder.parent) for job in missing] == [(2, tmp_path / "runs")] * 2
    second = run(pair, tmp_path, None)
    assert second.done == 0
    pd.testing.assert_frame_equal(first.results, second.results)
    monkeypatch.undo()
    more = dataclasses.replace(pair, protocols=("lt-knn", "lt-svm"))  # which needs the weights, that are not kept
    assert {job.folder.parent for job in plan(more, ["digits-lt"], [0, 1], tmp_path / "runs", TINY).missing} == {
        tmp_path / "runs"
    }
    other = run(more, tmp_path, None)
    assert other.done == 4 and not other.failed and "lt-svm" in set(other.results["protocol"])
    same = other.results[other.results["protocol"] != "lt-svm"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.results, same)


def test_keeping_more_seeds_leaves_what_was_kept(pair, tmp_path, runs):
    run(pair, tmp_path, runs, seeds=[0], keep=True)
    run(pair, tmp_path, runs, seeds=[1], keep=True)
    shutil.copy(tmp_path / "runs.zip", tmp_path / "other.zip")
    assert {found.config.seed for found in tase.runs.kept_runs(tmp_path / "other.zip")} == {0, 1}
    assert not plan(pair, ["digits-lt"], [0, 1], tmp_path / "other.zip", TINY).missing


def test_a_plan_lists_a_folder_once_a_seed(tmp_path, monkeypatch):
    import tase.data.splits as splits

    listed, list_source = [], splits.list_source
    monkeypatch.setattr(splits, "list_source", lambda data: listed.append(data) or list_source(data))
    for i in range(30):
        (tmp_path / f"images/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"images/{i % 2}/{i}.png")
    study = Study("pair", "One?", rows=each_method("simclr", "tase", "ts"), reference="simclr", protocols=("lt-knn",))
    given = {"data.root": str(tmp_path / "images"), "optim.batch": 8, "data.cache": str(tmp_path / "cache")}
    planned = plan(study, ["folder"], [0, 1], tmp_path / "runs", given)
    assert len(planned.jobs) == 6 and len(listed) == 2
    assert "runs      6, of which 6 are to be done" in planned.describe() and len(listed) == 4
    with pytest.raises(ConfigError, match="--jobs"):
        planned.describe(at_once=0)


def test_tables_of_what_is_done_so_far(pair, tmp_path, runs, monkeypatch):
    with pytest.raises(ConfigError, match="none of the 4 runs is done yet"):
        run(pair, tmp_path / "nothing", tmp_path / "no runs", only_done=True)
    assert not (tmp_path / "nothing").exists()
    whole = run(pair, tmp_path, runs)
    few = Study("few", "Some?", rows=pair.rows, reference="simclr", protocols=("lt-knn",))
    alone = dataclasses.replace(few, rows=each_method("simclr"))
    run(alone, tmp_path / "few", tmp_path / "few/runs", [0, 1])
    run(few, tmp_path / "few", tmp_path / "few/runs", [1])
    monkeypatch.setattr(jobs_module, "train", lambda *_, **__: pytest.fail("trained"))
    found = run(few, tmp_path / "few", tmp_path / "few/runs", [0, 1, 2], only_done=True, keep=True)
    cells = found.results[(found.results["metric"] == "all") & (found.results["protocol"] == "lt-knn@1")]
    cells = cells[cells["kind"] == "cell"]
    assert list(zip(cells["row"], cells["seed"])) == [("simclr", 0), ("simclr", 1), ("tase", 1)] and found.done == 0
    before = whole.results.merge(cells, on=["row", "kind", "protocol", "metric", "seed"])
    assert len(before) == 3 and (before["value_x"] == before["value_y"]).all()
    table = next(lines for lines in markdown_tables(found.markdown) if len(lines) > 2)
    assert [(line[0], line[1]) for line in table[1:3]] == [("simclr", "2"), ("tase", "1")]
    assert "- seeds 0, 1; " in found.markdown and "left out: 3 of 6 runs, which are not done yet" in found.markdown
    assert draw_study(tmp_path / "few")
    assert len(plan(few, ["digits-lt"], [0, 1, 2], tmp_path / "few/runs.zip", TINY).missing) == 3


def test_points_of_few_rows_are_drawn_whole(pair, tmp_path, runs):
    run(pair, tmp_path, runs)
    figure = study_figure(tmp_path)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    box = axes.get_window_extent().height
    drawn = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
    rows = axes.transData.transform([(0, y) for ys in drawn for y in ys])[:, 1] - axes.get_window_extent().y0
    assert len(rows) == 3 and rows.min() > 4 and rows.max() < box - 4


def test_curves_are_of_paired_differences(pair, tmp_path, runs):
    found = run(dataclasses.replace(pair, figure="curve"), tmp_path, runs)
    cells = found.results.query("kind == 'cell' and protocol == 'lt-knn@1' and metric == 'all'")
    values = cells.pivot_table(index=["seed", "split"], columns="row", values="value")
    ax = next(ax for ax in study_figure(tmp_path).axes if ax.get_title("left") == "lt-knn@1")
    difference = (values["tase"] - values["simclr"]).mean()
    assert difference != 0 and ax.lines[0].get_ydata().tolist() == pytest.approx([0, difference])
    assert ax.get_ylabel() == "All, minus\nSimCLR"


def test_a_map_is_of_paired_differences_to_one_cell_outside_its_columns(tmp_path, runs):
    study = dataclasses.replace(quick("group-tau", ["head 0.5", "simclr"], ["tail 0.2"]), reference="simclr")
    found = run(study, tmp_path, runs)
    cells = found.results.query("kind == 'cell' and protocol == 'lt-knn@1' and metric == 'all'")
    values = cells.pivot_table(index=["seed", "split"], columns="row", values="value")
    difference = (values["head 0.5"] - values["simclr"]).mean()
    figure = study_figure(tmp_path)
    ax = next(ax for ax in figure.axes if ax.get_title("left").startswith("lt-knn@1"))
    assert difference != 0 and ax.collections[0].get_array().item() in map(pytest.approx, (difference, difference / 10))
    assert ax.texts[0].get_text().startswith(f"{difference:+.1f}\n± ")
    assert figure.get_suptitle() == "difference to SimCLR, in points; pale: the interval holds 0"
    line = next(line for line in markdown_tables(found.markdown)[0] if line[0] == "head 0.5")
    assert line[-3].startswith(f"{difference:+.1f} ± ")


def test_what_cannot_be_judged_is_not_trained(pair, tmp_path):
    with pytest.raises(ConfigError, match="holds no validation images out"):
        plan(pair, ["digits-lt"], [0], tmp_path, {**TINY, "data.val_per_class": 0}, on="val")
    assert len(plan(pair, ["digits-lt"], [0], tmp_path, {**TINY, "data.val_per_class": 0}).missing) == 2


def test_another_protocol_needs_no_training(pair, tmp_path, runs, monkeypatch):
    run(pair, tmp_path, runs, seeds=[0])
    monkeypatch.setattr("tase.training.train_step", lambda *_: pytest.fail("trained again"))
    found = run(dataclasses.replace(pair, protocols=("lt-svm",)), tmp_path, runs, seeds=[0])
    assert set(found.results["protocol"]) == {"lt-svm", "pseudo-labels", "space"}


def test_settings_of_the_evaluation_hold_for_runs_that_are_there(pair, tmp_path, monkeypatch):
    pair, runs = dataclasses.replace(pair, protocols=("few-shot", "lt-knn")), tmp_path / "runs"
    run(pair, tmp_path / "before", runs, seeds=[0])
    monkeypatch.setattr("tase.training.train_step", lambda *_: pytest.fail("trained again"))
    other = {**TINY, "evaluation.knn": "3", "evaluation.draws": "4"}
    found = run(pair, tmp_path / "after", runs, seeds=[0], overrides=other)
    judged = set(found.results.query("kind in ('cell', 'baseline')")["protocol"])
    assert found.done == 2 and judged == {"few-shot", "lt-knn@3", "pseudo-labels", "space"}
    job = plan(pair, ["digits-lt"], [0], runs, other).jobs[0]
    assert job.run.results["draws"] == 4 == len(job.run.results["protocols"]["few-shot"]["draws"])
    assert "evaluation.knn=3, evaluation.draws=4" in found.markdown and job.done
    assert not plan(pair, ["digits-lt"], [0], runs, TINY).jobs[0].done


def test_what_is_named_twice_counts_once(pair, tmp_path):
    assert len(plan(pair, ["digits-lt", "digits-lt"], [0, 1, 0], tmp_path, TINY).entries) == 4


def test_an_interrupted_run_goes_on_and_comes_to_the_same(pair, tmp_path, runs, monkeypatch):
    whole = run(pair, tmp_path / "whole", runs)
    steps, step = itertools.count(), tase.training.train_step

    def stopped(t, *batch):
        if next(steps) == 30:
            raise KeyboardInterrupt
        return step(t, *batch)

    monkeypatch.setattr("tase.training.train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(pair, tmp_path / "cut", tmp_path / "runs")
    monkeypatch.undo()
    again = run(pair, tmp_path / "cut", tmp_path / "runs")
    assert again.results["value"].tolist() == whole.results["value"].tolist()
    assert (tmp_path / "cut" / "table.tex").read_text() == (tmp_path / "whole" / "table.tex").read_text()


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


KILLED = {**TINY, "optim.epochs": 15}


def _command(out):
    words = ["study", "gamma", "--preset", "digits-lt", "--seeds", "2", "--jobs", "2", "--out", str(out), "--quiet"]
    words += ["--rows", "tase", "--columns", "gamma=0.5", "--protocols", "lt-knn"]
    return [*words, "--set", *(f"{k}={v}" for k, v in KILLED.items())]


def test_killed_with_two_jobs_it_goes_on_to_the_same_table(tmp_path):
    study = subprocess.Popen([sys.executable, "-m", "tase", *_command(tmp_path / "cut")])
    status, deadline = [], time.time() + 120
    while len(status) < 2 and time.time() < deadline:
        status = list((tmp_path / "cut" / "runs").glob("*/status.json"))
        time.sleep(0.02)
    workers = [json.loads(path.read_text())["pid"] for path in status]
    study.kill()
    study.wait()
    while any(map(_alive, workers)) and time.time() < deadline:
        time.sleep(0.02)
    assert len(workers) == 2 and not any(map(_alive, workers)), "a job has outlived its study"
    assert not (tmp_path / "cut" / "results.csv").exists()
    assert main(_command(tmp_path / "cut")) == 0
    whole = dataclasses.replace(STUDIES["gamma"].only(["tase"], ["gamma=0.5"]), protocols=("lt-knn",))
    whole = run(whole, tmp_path / "whole", tmp_path / "runs", overrides=KILLED)
    cut = tase.studies.read_study(tmp_path / "cut")[0]
    assert cut["value"].tolist() == whole.results["value"].tolist()


def test_sigterm_stops_the_jobs_with_a_checkpoint(pair, tmp_path):
    class Bar:
        def set_postfix_str(self, *_, **__): ...

        def update(self, n):
            if n:
                os.kill(os.getpid(), signal.SIGTERM)

    (job, _) = plan(pair, ["digits-lt"], [0], tmp_path, {**TINY, "optim.epochs": 1000}).jobs
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), engine("local:2", tmp_path) as workers:
        jobs_module.do_all([job], Bar(), workers)
    assert signal.getsignal(signal.SIGTERM) is before
    status = json.loads((job.folder / "status.json").read_text())
    assert status["state"] == "stopped" and 0 < status["epoch"] < 1000
    assert tase.runs.load_checkpoint(job.folder, job.config.identity)["epoch"] == status["epoch"]


def test_in_workers_the_results_are_the_same(pair, tmp_path, runs, monkeypatch):
    opened = []
    monkeypatch.setattr(tase.studies.study, "engine", lambda *given: opened.append(given[0]) or engine(*given))
    one_by_one = run(pair, tmp_path / "one", runs)
    at_once = run(pair, tmp_path / "two", tmp_path / "runs", jobs=2)
    assert opened[-1] == "local:2" and "local:2" not in opened[:-1]
    assert at_once.done == 4 and not at_once.failed
    pd.testing.assert_frame_equal(one_by_one.results, at_once.results, check_exact=True)


def _end_or_double(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number, os.environ["OMP_NUM_THREADS"]


def test_a_killed_worker_fails_its_own_call_only(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    with Workers(2) as workers:
        futures = [workers.submit(_end_or_double, number) for number in range(5)]
        for number, future in enumerate(futures):
            if number == 2:
                with pytest.raises(tase.RunError, match="its process has ended"):
                    future.result()
            else:
                assert future.result() == (2 * number, "3")
    assert os.environ["OMP_NUM_THREADS"] == "1"


class Delayed:
    """An executor of a user's: as little as it may have, and it loses one machine."""

    class Future:
        def __init__(self, call):
            self.call, self.looks = call, 0

        def done(self):
            self.looks += 1
            return self.looks > 2

        def result(self):
            return self.call()

    def submit(self, function, job):
        if job.config.method == "simclr":
            return self.Future(lambda: (_ for _ in ()).throw(ConnectionError("the machine is gone")))
        return self.Future(lambda: function(job))


def test_an_executor_needs_submit_done_and_result(pair, tmp_path, runs):
    expected = run(pair, tmp_path / "here", runs, seeds=[0])
    found = run(pair, tmp_path / "there", tmp_path / "runs", seeds=[0], executor=Delayed())
    (failed,) = found.failed
    assert failed.startswith("simclr on digits-lt") and failed.endswith("the machine is gone")
    same = expected.results.query("row == 'tase'")["value"].tolist()
    assert found.results.query("row == 'tase'")["value"].tolist() == same


def test_runs_that_fail_are_named_and_the_others_kept(pair, tmp_path, monkeypatch):
    work = Job.do
    monkeypatch.setattr(Job, "do", lambda job, **k: work(job, **k) if job.config.method == "tase" else int("x"))
    found = run(pair, tmp_path, tmp_path / "runs", seeds=[0])
    assert len(found.failed) == 1 and found.failed[0].startswith("simclr on digits-lt, seed 0")
    assert set(found.results.loc[found.results["kind"] == "cell", "row"]) == {"tase"}
    assert "failed: simclr" in found.markdown


def test_a_run_that_was_steered_is_no_cell(pair, tmp_path):
    run(pair, tmp_path / "out", tmp_path / "runs", seeds=[0])
    (cell,) = [
        path for path in (tmp_path / "runs").iterdir() if path.name[0] != "." and tase.Run(path).config.method == "tase"
    ]
    event = {"id": "a", "epoch": 2, "step": 12, "set": {"guidance.tau_max": 0.9}}
    (cell / "events.jsonl").write_text(json.dumps(event) + "\n")
    found = run(pair, tmp_path / "out", tmp_path / "runs", seeds=[0])
    assert len(found.failed) == 1 and "was steered while it trained" in found.failed[0]


# -------------------------------------------------------------------------------------------------------------- numbers


def made_up(tmp_path, values, **about):
    """A study's results as a frame: {row: values over the seeds}."""
    lines = [
        {"kind": "cell", "row": row, "column": "", "preset": "p", "protocol": "lt-knn@1", "metric": metric, "value": v}
        | {"seed": seed, "split": seed, "subset": "s", "commit": "c"}
        for row, some in values.items()
        for seed, v in enumerate(some)
        for metric in ("all", "tail", "head")
    ]
    shared = {"name": "n", "question": "q?", "reference": "a", "reference_column": "", "outside": ["upper"]}
    shared |= {"presets": ["p"], "seeds": [0, 1, 2], "on": "test", "overrides": {}, "left_out": [], "failed": []}
    return pd.DataFrame(lines), {**shared, **about}


def test_differences_are_paired_and_intervals_are_students(tmp_path):
    results, about = made_up(tmp_path, {"a": [50, 60, 70], "b": [51, 61.5, 72]})
    found = {c.row: c for c in contrasts(results, about, "p", "lt-knn@1", "all")}
    half = 4.302653 * np.std([1, 1.5, 2], ddof=1) / math.sqrt(3)
    assert found["b"].difference.mean == pytest.approx(1.5)
    assert found["b"].difference.ci95 == pytest.approx(half, rel=1e-5)
    assert found["b"].over.std == pytest.approx(np.std([51, 61.5, 72], ddof=1))
    assert found["a"].difference.n == 0


@pytest.mark.parametrize(
    ("values", "bold"),
    [
        ({"a": [50, 60, 70], "b": [51, 61.5, 72]}, "b"),  # 1.5 - 4.30 * 0.5 / sqrt(3) = 0.26
        ({"a": [50, 60, 70], "b": [51, 61.5, 73]}, None),  # 1.83 - 4.30 * 1.04 / sqrt(3) < 0
        ({"a": [50, 60, 70], "b": [55, 65.1, 75]}, "b"),
        ({"a": [50, 60, 70], "b": [55, 50, 90]}, None),
        ({"a": [50, 60], "b": [50.02, 60.02]}, None),  # two seeds do not tell
        ({"a": [50, 60, 70], "b": [55, 65.1, 75], "c": [55.2, 64.8, 75.2]}, None),  # no winner between b and c
        ({"a": [50, 60, 70], "b": [55, 65.1, 75], "upper": [90, 90, 90]}, "b"),
    ],
)
def test_bold_only_where_the_interval_to_the_runner_up_is_above_zero(values, bold, tmp_path):
    results, about = made_up(tmp_path, values)
    (block,) = blocks(results, about)
    assert {line[0] for line in block.lines[1:] if isinstance(line[2], Bold)} == ({bold} if bold else set())


def test_differences_can_be_taken_to_another_row(pair, tmp_path, runs):
    tables = [run(study, tmp_path / study.reference, runs) for study in (pair, pair.against("tase"))]
    (gain,), (loss,) = (
        [c.difference.mean for c in contrasts(t.results, t.about, "digits-lt", "lt-knn@1", "all") if c.difference.n]
        for t in tables
    )
    assert gain == pytest.approx(-loss) and gain != 0
    with pytest.raises(ConfigError, match="'unheard of'; known: simclr, tase"):
        pair.against("unheard of")
    grid = STUDIES["group-tau"]  # the extras are outside the columns
    assert (grid.against("simclr").reference_column, grid.against("head 0.5").reference_column) == ("", "tail 0.2")


def test_difference_of_differences_is_paired_by_seed():
    values = {("a", "tail"): [50, 60, 70], ("b", "tail"): [53, 64, 75], ("a", "even"): [80, 81, 82]}
    values |= {("b", "even"): [81, 81, 84], ("c", "tail"): [51, 61, 71]}
    rows = [
        {"kind": "cell", "row": row, "column": column, "preset": "p", "protocol": "linear", "metric": metric}
        | {"value": float(v), "seed": seed, "split": seed, "subset": "s", "commit": "c"}
        for (row, column), some in values.items()
        for seed, v in enumerate(some)
        for metric in ("all", "tail", "head")
    ]
    about = {"name": "n", "question": "q?", "reference": "a", "reference_column": "", "outside": [], "presets": ["p"]}
    about |= {"on": "test", "contrast": ["tail", "even"]}
    found = {c.row: c.over for c in interactions(pd.DataFrame(rows), about, "p", "linear", "all")}
    assert set(found) == {"b"}  # c was not measured on the even set
    assert found["b"].mean == pytest.approx(np.mean([3 - 1, 4 - 0, 5 - 2])) and found["b"].n == 3
    assert found["b"].ci95 == pytest.approx(4.302653 * np.std([2, 4, 3], ddof=1) / math.sqrt(3), rel=1e-5)
    main, differences = blocks(pd.DataFrame(rows), about)
    assert differences.title == "p, linear, on test: (row - a) in tail minus the same in even"
    assert differences.lines[1:] == [["b", "3", "+3.0 ± 2.5", "+3.0 ± 2.5", "+3.0 ± 2.5"]]


def test_the_mechanism_study_contrasts_the_long_tail_with_balance(tmp_path, runs):
    study = quick("mechanism", ["simclr", "tase"])
    found = run(study, tmp_path, runs)
    cells = found.results.query("kind == 'cell' and protocol == 'lt-knn@1' and metric == 'all'")
    values = cells.pivot_table(index="seed", columns=["row", "column"], values="value")
    gain = {column: values["tase", column] - values["simclr", column] for column in study.columns}
    expected = (gain["long tail"] - gain["balanced"]).mean()
    text = found.markdown.split("**digits-lt, lt-knn@1, on test: (row - simclr) in long tail minus")[1]
    assert text.splitlines()[4].startswith(f"| tase | 2 | {expected:+.1f} ± ")
    assert "\\caption{digits-lt, lt-knn@1, on test: (row - simclr) in long tail" in (tmp_path / "table.tex").read_text()
    assert not study.only(columns=["long tail"]).contrast


def test_evenness_of_the_space_is_a_block(pair, tmp_path, runs):
    found = run(pair, tmp_path, runs)
    space = found.results.query("protocol == 'space'")
    assert set(space["metric"]) == {"spread_cv", "distance_cv"} and set(space["kind"]) == {"cell"}
    done = plan(pair, ["digits-lt"], [0], runs, TINY).jobs[0].run
    value = space.query("row == @done.config.method and seed == 0").set_index("metric")["value"]
    assert value["spread_cv"] == pytest.approx(done.results["geometry"]["cv_spread"])
    assert "**digits-lt, space, on test**" in found.markdown and "coefficients of variation" in found.markdown


def test_the_most_even_space_is_the_best():
    rows = [
        {"kind": "cell", "row": row, "column": "", "preset": "p", "protocol": "space", "metric": "spread_cv"}
        | {"value": v, "seed": seed, "split": seed, "subset": "s", "commit": "c"}
        for row, some in {"a": [0.3, 0.4, 0.5], "b": [0.1, 0.2, 0.31]}.items()
        for seed, v in enumerate(some)
    ]
    about = {"reference": "a", "reference_column": "", "outside": []}
    found = {c.row: c.best for c in contrasts(pd.DataFrame(rows), about, "p", "space", "spread_cv")}
    assert found == {"a": False, "b": True}


def test_headroom_is_balanced_minus_long_tail_of_the_same_seed(tmp_path, runs):
    study = quick("ablation", ["simclr"]).with_headroom()
    found = run(study, tmp_path, runs)
    shown = found.results[(found.results["metric"] == "all") & (found.results["protocol"] == "lt-knn@1")]
    at = {(kind, row): some.set_index("seed")["value"] for (kind, row), some in shown.groupby(["kind", "row"])}
    harm = at["cell", "simclr, balanced"] - at["cell", "simclr"]
    np.testing.assert_allclose(at["headroom", HEADROOM], harm, atol=1e-7)
    assert {"pixels", "untrained"} <= {row for kind, row in at if kind == "baseline"}


def test_headroom_is_of_one_row_and_of_the_seeds_that_have_it(tmp_path, runs, monkeypatch):
    both = quick("choice", ["simclr", "simclr, tau 0.4"])
    run(both, tmp_path / "whole", runs)

    def lost(job):
        c = job.config
        return c.data.balanced and c.seed == 0 and c.guidance.tau_0 == 0.2

    monkeypatch.setattr(Job, "run", property(lambda job, found=Job.run.fget: None if lost(job) else found(job)))
    monkeypatch.setattr(Job, "do", lambda *_, **__: int("x"))
    found = run(both, tmp_path / "cut", runs)
    headroom = found.results.query("kind == 'headroom' and protocol == 'lt-knn@1' and metric == 'all'")
    assert len(found.failed) == 1 and headroom[["row", "seed"]].values.tolist() == [[HEADROOM, 1]]
    other = run(both.only(["simclr, tau 0.4"]), tmp_path / "other", runs)
    (label,) = set(other.results.query("kind == 'headroom'")["row"])
    assert label == "headroom of simclr, tau 0.4: balanced - long tail"
    assert headroom_of(label) == "headroom: SimCLR, τ 0.4, balanced"
    assert headroom_of(HEADROOM) == "headroom: SimCLR, balanced"


def test_who_gains_is_told_by_size_and_by_crowding():
    """Size and crowding go together in these classes; their shares of a planted gain are told apart."""
    counts, pixels = [500, 200, 80, 30, 10], [80.0, 75.0, 90.0, 60.0, 50.0]
    size = np.log(counts) / np.log(50)
    crowding = (90.0 - np.array(pixels)) / 40

    def judged(gain, balanced=False):
        run = {"counts": [50] * 5 if balanced else counts, "eval_classes": [0, 1, 2, 3, 4], "balanced": balanced}
        run["protocols"] = {"linear": {"per_class": (70 + gain).tolist()}}
        run["baselines"] = {"pixels": {"few-shot": {"per_class": pixels}}}
        return class_slopes(run, "linear")

    assert judged(3 * size - 2 * crowding) == pytest.approx({"by_size": 3, "by_crowding": -2})
    assert judged(-2 * crowding, balanced=True) == pytest.approx({"by_crowding": -2})
    run = {"counts": [*counts, 7], "eval_classes": [*range(6)], "balanced": False}  # no image of the last is judged
    run["protocols"] = {"linear": {"per_class": [*(70 + 3 * size - 2 * crowding).tolist(), None]}}
    run["baselines"] = {"pixels": {"few-shot": {"per_class": [*pixels, None]}}}
    assert class_slopes(run, "linear") == pytest.approx({"by_size": 3, "by_crowding": -2})
    results = {"counts": counts, "balanced": False, "baselines": {"pixels": {"linear": {}}}}
    assert class_slopes(results, "linear") == {}  # without few-shot nobody knows what is crowded
    about = {"contrast": ["tail", "even"], "presets": ["p"], "on": "test", "reference": "a", "reference_column": "",
             "outside": []}  # fmt: skip
    rows = [
        {"kind": "cell", "row": row, "column": column, "preset": "p", "protocol": "linear", "seed": seed, "split": seed,
         "metric": metric, "value": value}
        for row, column, seed in itertools.product("ab", ("tail", "even"), range(3))
        for metric, value in judged((1 + seed) * size * (row == "b"), column == "even").items()
    ]  # fmt: skip
    *_, block = blocks(pd.DataFrame(rows), about)
    assert "who gains, row - a" in block.title and block.lines[0][3].startswith("Largest over smallest class")
    assert [line[:4] for line in block.lines[1:]] == [["b", "tail", "3", "+2.0 ± 2.5"], ["b", "even", "3", ""]]


def test_published_figures_stand_apart_under_their_own_protocol(tmp_path):
    results, about = made_up(tmp_path, {"a": [50.0, 51.0]}, presets=["cifar10-lt"])
    results = pd.concat([results.assign(preset="cifar10-lt"), published(["cifar10-lt"])])
    ours, theirs = blocks(results, about)
    assert "published" in theirs.title and theirs.lines[1] == [
        "SimCLR+TS (TS's notebooks, split 1)",
        "published: kNN@1",
        "61.21",
    ]
    assert not any("published" in cell for line in ours.lines for cell in line)


# --------------------------------------------------------------------------------------------- plans and what they cost


def test_values_of_a_cell_win_over_those_for_all_and_multiples_are_of_these():
    study = Study("s", "q?", over("optim.lr", 0.1, Multiple(2)), "lr=0.1", base={"optim.lr": 0.5, "method": "simclr"})
    low, twice = (study.config(cell, "digits-lt", 3, {"optim.epochs": 9}) for cell in study.cells)
    shorter = STUDIES["epochs-batch"].only(["tase"], ["epochs x0.5, batch x2"])
    shorter = shorter.config(shorter.cells[0], "digits-lt", 0, {"optim.epochs": 8})
    assert (shorter.optim.epochs, shorter.optim.batch, shorter.optim.lr) == (4, 256, 0.6)
    assert (low.optim.lr, low.optim.epochs, low.seed, low.method) == (0.1, 9, 3, "simclr")
    assert twice.optim.lr == 1.0
    assert Multiple(2).of((8, 16)) == (16, 32) and Multiple(0.5).of(5) == 2


def test_a_field_for_all_is_set_where_the_method_has_it():
    study = Study("s", "q?", each_method("simclr", "tase"), "simclr")
    simclr, ours = (study.config(cell, "digits-lt", 0, {"guidance.tau_max": 0.3}) for cell in study.cells)
    assert ours.guidance.tau_max == 0.3 and simclr == tase.preset("digits-lt", "simclr")
    with pytest.raises(ConfigError, match="no method of the study 's' has the field 'guidance.iso_r'"):
        study.config(study.cells[0], "digits-lt", 0, {"guidance.iso_r": 0.3})
    with pytest.raises(ConfigError, match="did you mean 'guidance.tau_max'"):
        study.config(study.cells[1], "digits-lt", 0, {"guidance.tau_maxi": 0.3})


def test_dry_run_trains_nothing_and_tells_the_cost(tmp_path, capsys):
    words = ["study", "imbalance", "--preset", "digits-lt", "--seeds", "3-4", "--out", str(tmp_path / "s"), "--dry-run"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "3, 4" in told and "assuming 1,000 images a second" in told and "left out" in told
    assert "18, of which 18 are to be done" in told and not (tmp_path / "s").exists()


def test_cost_follows_the_speed_of_finished_runs(pair, tmp_path, runs):
    run(pair, tmp_path, runs)
    planned = plan(pair, ["digits-lt"], [0, 7], runs, TINY)
    seconds, basis = tase.studies.cost(planned.missing, 1)
    assert len(planned.missing) == 2 and basis == "speed of the runs that are there" and 0 < seconds < 60
    assert tase.studies.cost(planned.missing, 2)[0] == pytest.approx(seconds / 2)
    others = tmp_path / "others"
    for name, line in (("broken", '{"images_per_second": 5}'), ("foreign", '{"loss": 1}')):
        (others / name).mkdir(parents=True)
        (others / name / "metrics.jsonl").write_text(line + "\n")
        (others / name / "config.json").write_text('{"x"')
    assert "assuming 1,000 images" in plan(pair, ["digits-lt"], [0], others, TINY).describe()


def test_a_run_is_found_by_its_configuration_whatever_its_folder(pair, tmp_path, runs):
    run(pair, tmp_path, runs, seeds=[0])
    for job in plan(pair, ["digits-lt"], [0], runs, TINY).jobs:
        shutil.copytree(job.folder, tmp_path / "named" / f"my {job.config.method}")
    planned = plan(pair, ["digits-lt"], [0, 1], tmp_path / "named", TINY)
    assert [entry.job.folder.name for entry in planned.entries[:2]] == ["my simclr", "my tase"]
    assert [job.config.seed for job in planned.missing] == [1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablaton", "--preset", "digits-lt"], "did you mean 'ablation'?"),
        (["ablation"], "--preset"),
        (["ablation", "--preset", "digit-lt"], "did you mean 'digits-lt'?"),
        (["ablation", "--preset", "digits-lt", "--rows", "orcle"], "did you mean 'oracle'?"),
        (["ablation", "--preset", "digits-lt", "--seeds", "x"], "--seeds takes"),
        (["ablation", "--preset", "digits-lt", "--on", "train"], "--on"),
        (["ablation", "--preset", "digits-lt", "--jobs", "0"], "--jobs"),
        (["ablation", "--preset", "digits-lt", "--dry-run", "--set", "seed=0"], "chosen by --seeds"),
        (["ablation", "--preset", "digits-lt", "--dry-run", "--set", "preset=openclipart"], "chosen by --preset"),
        (["ablation", "--preset", "digits-lt", "--dry-run", "--set", "method=ts"], "chosen by --rows"),
        (["ablation", "--preset", "digits-lt", "--dry-run", "--set", "evaluation.protocols=linear"], "by --protocols"),
    ],
)
def test_wrong_requests_are_told(words, message, tmp_path, capsys):
    assert main(["study", *words, "--out", str(tmp_path / "s")]) == 2
    assert message in capsys.readouterr().err


def test_without_a_name_the_studies_are_listed(capsys):
    assert main(["study"]) == 0
    told = capsys.readouterr().out
    assert all(name in told and study.question in told for name, study in STUDIES.items())


def test_each_process_has_its_share_of_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    shares = [jobs_module.resources(slot, 3) for slot in range(3)]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in shares] == ["3", "5", "3"]
    assert {s["OMP_NUM_THREADS"] for s in shares} == {"2"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "CUDA_VISIBLE_DEVICES" not in jobs_module.resources(0, 1)


def pictures(folder, n=48, side=9):
    rng = np.random.default_rng(side)
    for i in range(n):
        (folder / f"class {i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"class {i % 2}/{i}.png")
    return folder


def test_runs_of_other_images_are_not_taken_for_these(tmp_path, monkeypatch):
    study = Study("one", "Is it one?", each_method("simclr"), protocols=("lt-knn",))
    some = {"optim.epochs": 1, "optim.batch": 32, "data.image_size": 8, "data.test_per_class": 4}
    some |= {"model.channels": "8,8,8,8", "record.knn_every": 0, "data.cache": str(tmp_path / "cache")}
    here, there = pictures(tmp_path / "here"), pictures(tmp_path / "there", side=12)
    (here / "class 0" / "broken.png").write_bytes(b"no image")

    def asked(root, **more):
        return {**some, "data.root": str(root), **more}

    first = run_study(study, ["folder"], [0, 1], tmp_path / "study", overrides=asked(here), progress=False, keep=True)
    assert first.done == 2
    with pytest.raises(ConfigError, match="is of other images than this study"):
        run_study(study, ["folder"], [0, 1], tmp_path / "study", overrides=asked(there), progress=False)
    shutil.move(here, tmp_path / "moved")  # which files are broken is not known there
    kept = tmp_path / "study" / "runs.zip"
    for root in (tmp_path / "moved", tmp_path / "moved" / ".." / "moved"):
        assert not plan(study, ["folder"], [0, 1], kept, asked(root)).missing
    monkeypatch.setattr("tase.studies.study.load_splits", lambda *_, **__: pytest.fail("read what needs no reading"))
    assert not plan(study, ["folder"], [0, 1], kept, asked(tmp_path / "moved")).missing
    monkeypatch.undo()
    pictures(tmp_path / "moved", n=50)
    with pytest.raises(ConfigError, match=r"take another folder for these \(--out, --runs\)"):
        plan(study, ["folder"], [0, 1], kept, asked(tmp_path / "moved"))
    (tmp_path / "moved" / "class 0" / "link.png").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="is of other images"):
        plan(study, ["folder"], [1], kept, asked(tmp_path / "moved"))


def test_arrays_of_another_file_are_other_images(tmp_path):
    """Their labels are alike."""

    def from_file(data):
        pixels = torch.from_numpy(np.load(data.root))
        return tase.ImageSet(pixels, torch.arange(len(pixels)) % 2, ("a", "b")), None

    for seed, name in enumerate(("one", "two")):
        pixels = np.random.default_rng(seed).integers(0, 256, (80, 1, 8, 8), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", pixels)
    some = {"optim.epochs": 1, "optim.batch": 32, "data.n_max": 30, "data.rho": 2, "data.pool_per_class": 0}
    some |= {"model.channels": "8,8,8,8", "record.knn_every": 0, "data.val_per_class": 5, "data.source": "file"}
    study = Study("one", "Is it one?", each_method("simclr"), protocols=())
    tase.SOURCES["file"] = from_file
    try:
        more = {"runs": tmp_path / "runs", "overrides": some | {"data.root": str(tmp_path / "one.npy")}}
        planned = plan(study, ["digits-lt"], [0], **more)
        tase.train(planned.jobs[0].config, planned.jobs[0].folder, progress=False)
        assert not plan(study, ["digits-lt"], [0], **more).missing
        with pytest.raises(ConfigError, match="is of other images than this study"):
            plan(study, ["digits-lt"], [0], tmp_path / "runs", some | {"data.root": str(tmp_path / "two.npy")})
    finally:
        del tase.SOURCES["file"]


def test_plans_do_not_read_images_that_are_the_same_everywhere(pair, tmp_path, runs, monkeypatch):
    run(pair, tmp_path, runs)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: pytest.fail("read the digits"))
    assert not plan(pair, ["digits-lt"], [0, 1], runs, TINY).missing


# -------------------------------------------------------------------------------- validation, and temperatures by group


def test_on_validation_the_test_is_not_touched(pair, tmp_path, runs):
    on_test = run(pair, tmp_path / "test", runs, seeds=[0])
    on_val = run(pair, tmp_path / "val", runs, seeds=[0], on="val")
    assert on_val.about["on"] == "val" and "on val" in on_val.markdown
    job = plan(pair, ["digits-lt"], [0], runs, TINY, "val").jobs[0]
    assert job.done and not lacking(job.run, ["lt-knn"], "val")
    ours = on_val.results[(on_val.results["row"] == "simclr") & (on_val.results["protocol"] == "lt-knn@1")]
    theirs = on_test.results[(on_test.results["row"] == "simclr") & (on_test.results["protocol"] == "lt-knn@1")]
    assert ours["value"].tolist() != theirs["value"].tolist()
    val, run_ = job.run.splits.val, job.run
    encode = [tase.encode(run_.encoder(), images.images) for images in (run_.splits.train, val)]
    predicted = tase.probes.knn_classes(encode[0], run_.splits.train.labels, encode[1], 1)
    accuracy = tase.probes.mean_accuracy(predicted, val.labels, 10)
    assert ours.set_index("metric")["value"]["all"] == pytest.approx(accuracy)


def test_the_temperature_of_a_group_is_that_of_its_samples(tiny, tmp_path):
    config = tiny("oracle", guidance__group_tau=(0.5, 0.3, 0.1), guidance__gamma=0.0, record__knn_every=0)
    done = tase.train(config, tmp_path / "run", progress=False)
    expected = np.array([0.5, 0.3, 0.1], dtype=np.float32)[done.images.sample_groups.numpy()]
    np.testing.assert_allclose(done.history.tau[-1], expected)
    assert (done.history.weight[-1] == 1).all()


def test_group_temperatures_need_true_labels_and_leave_older_identities(tiny):
    for method, value in (("tase", (0.1, 0.2, 0.3)), ("simclr", (0.1, 0.2, 0.3)), ("oracle", (0.1, 0.2))):
        with pytest.raises(ConfigError, match="guidance.group_tau"):
            tiny(method, guidance__group_tau=value)
    with pytest.raises(ConfigError, match="groups are not given"):
        tase.TASE(n=6, labels=torch.arange(6) % 3, group_tau=(0.1, 0.2, 0.3))
    assert tiny("oracle").identity != tiny("oracle", guidance__group_tau=(0.1, 0.2, 0.3)).identity
    old = tiny("oracle", guidance__space="centred", guidance__memory=0.0)
    before = old.to_dict()  # as it was written when there were no such fields
    for name in ("group_tau", "space", "memory"):
        del before["guidance"][name]
    assert tase.Config.from_dict(before) == old
