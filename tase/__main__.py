"""The command line: `tase VERB`; `--json` prints one JSON object, progress goes to stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from . import __version__, use
from .config import METHODS, Config, ConfigError, applicable, fields, unknown
from .presets import PRESETS, preset

DEMO = (  # name of the run, method, balanced?
    ("simclr-balanced", "simclr", True),
    ("simclr", "simclr", False),
    ("tase", "tase", False),
)


def _field_help(method: str) -> str:
    lines = [f"fields for --set with method {method}, and the defaults that a preset starts from:", ""]
    for name, field in fields(method).items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        lines.append(f"  {name}={default}\n      {field.help}")
    return "\n".join(lines)


class _HelpFields(argparse.Action):
    """Print every field of the chosen method (`--method M --help-fields`) and end."""

    def __call__(self, parser, args, values, option_string=None):
        print(_field_help(getattr(args, "method", "tase")))
        parser.exit()


def _assignments(pairs: list[str]) -> dict[str, str]:
    overrides = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes field=value, not '{pair}'")
        overrides[name] = value
    return overrides


def _config(args: argparse.Namespace) -> Config:
    return preset(args.preset, args.method, args.seed, _assignments(args.set))


def _say(text: str = "") -> None:
    print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)  # a word may be no text


def _train(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)  # checked before torch is loaded
    from .training import train

    out = args.out or f"runs/{args.preset}-{args.method}-{args.seed}"
    run = train(config, out, resume=args.resume, progress=not args.quiet)
    if run is None:  # not rank 0, which reports
        return {}
    last = run.metrics.iloc[-1].dropna().to_dict()
    if not args.json:
        judged = run.splits.test is not None and run.splits.test.labels is not None
        _say(f"{run}\nnext: tase {'evaluate' if judged else 'report'} {out}")
    return {"run": str(out), "identity": config.identity, **last}


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from .evaluation import compare, evaluate, format_table
    from .runs import Run
    from .tables import with_changes

    runs = [Run(path) for path in args.runs]
    results = {str(run.path): evaluate(run, args.protocols, args.force, not args.quiet, args.on) for run in runs}
    if not args.json:
        print(format_table(compare([with_changes(run, results[str(run.path)]) for run in runs])))
    return results


def _figures(args: argparse.Namespace) -> dict[str, Any]:
    from . import figures
    from .runs import Run, keep_runs

    if args.redraw:
        if args.runs or args.out or args.keep:
            raise ConfigError("figures --redraw FOLDER draws into FOLDER what is kept there: no RUN, --out or --keep")
        from .bench import redraw_bench

        note = not args.no_footer
        written = [*figures.redraw(args.redraw, note), *redraw_bench(args.redraw, note)]
    else:
        if not args.runs:
            raise ConfigError("figures needs one or more run folders, or --redraw FOLDER")
        runs = [Run(path) for path in args.runs]
        out = Path(args.out) if args.out else figures.figures_folder(runs)
        label = "" if args.keep else None  # a folder that keeps its runs is theirs: plain names, as when redrawn
        written = figures.all_figures(runs, out, footer=not args.no_footer, label=label)
        if args.keep:
            keep_runs(runs, out / "runs.zip")
    if not args.json:
        _say("\n".join(str(path) for path in written))
    return {"figures": [str(path) for path in written]}


def _seed_range(text: str) -> range:
    """ "5" are the seeds 0 to 4, "5-9" are those five."""
    first, dash, last = text.partition("-")
    if not first.isdigit() or not (last.isdigit() if dash else True):
        raise ConfigError(f"--seeds takes a number (5: seeds 0 to 4) or a range (5-9), not '{text}'")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def _study(args: argparse.Namespace) -> dict[str, Any]:
    from . import studies

    if not args.name:
        if not args.json:
            print("\n".join(f"{name:15} {study.question}" for name, study in studies.STUDIES.items()))
        return {"studies": list(studies.STUDIES)}
    if args.name not in studies.STUDIES:
        raise unknown("study", args.name, studies.STUDIES)
    study = studies.STUDIES[args.name].only(args.rows, args.columns)
    study = study.with_headroom() if args.headroom else study
    study = study.against(args.reference) if args.reference else study
    study = dataclasses.replace(study, protocols=tuple(args.protocols)) if args.protocols else study
    out = Path(args.out or "-".join(["studies/" + args.name, *args.preset]))
    where = {"overrides": _assignments(args.set), "on": args.on, "runs": args.runs or out / "runs"}
    if args.dry_run:
        planned = studies.plan(study, args.preset, _seed_range(args.seeds), **where)
        if not args.json:
            print(planned.describe(args.jobs))
        seconds, basis = studies.cost(planned.missing, args.jobs)
        return {"runs": len(planned.jobs), "missing": len(planned.missing), "seconds": seconds, "basis": basis}
    how = {"keep": args.keep, "executor": args.executor, "only_done": args.only_done, "progress": not args.quiet}
    found = studies.run_study(study, args.preset, _seed_range(args.seeds), out, args.jobs, **how, **where)
    return _told(found, args)


def _told(found, args: argparse.Namespace) -> dict[str, Any]:
    from .figures import draw_study
    from .studies import StudyError

    draw_study(found.folder)
    if not args.json:
        print(found.markdown)
    if found.failed:
        raise StudyError(f"{len(found.failed)} runs failed:\n" + "\n".join(found.failed))
    return {"study": str(found.folder), "done": found.done, "results": len(found.results)}


def _info(args: argparse.Namespace) -> dict[str, Any]:
    if not args.run_folder:
        return _info_preset(args)
    from .runs import Run

    run = Run(args.run_folder)
    facts = run.describe()
    if not args.json:
        print("\n".join(f"{name:12} {value}" for name, value in facts.items()))
    return facts


def _info_preset(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)
    from .data import class_counts

    info = {"preset": args.preset, **class_counts(config)}
    if not args.json:
        data = config.data
        print(f"{args.preset}: {info['n']:,} images of {data.source}, rule {data.rule}, split {config.split}")
        peak = max(info["counts"], default=1)
        if not info["counts"]:
            print("  no labels: training, clustering and exploring work without; there are no classes to count")
        for name, count, group in zip(info["classes"], info["counts"], info["groups"]):
            print(f"  {name[:18]:18} {group:4} {count:6,} {'#' * max(1, round(50 * count / peak))}")
    return info


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from .runs import Run
    from .widgets import report

    out = args.out or str(Path(args.runs[0]) / "report.html")
    path = report(*(Run(folder) for folder in args.runs), out=out, progress=not args.quiet)
    if not args.json:
        _say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB): open it in a browser")
    return {"report": str(path)}


def _trust(args: argparse.Namespace) -> dict[str, Any]:
    from .runs import Run
    from .verdict import read_labels, run_trust

    run, labels = Run(args.run_folder), None
    if args.labels == "own":
        if run.history.labels is None:
            raise ConfigError(f"--labels own: the images of {run.path} have no labels; give a CSV of some")
        labels = {str(i): str(label) for i, label in enumerate(run.history.labels)}
    elif args.labels:
        labels = read_labels(args.labels)
    facts = run_trust(run, labels)
    if not args.json:
        print("\n".join(f"{name:12} {value}" for name, value in facts.items() if value is not None))
    return facts


def _rare(args: argparse.Namespace) -> dict[str, Any]:
    from .runs import Run
    from .widgets import rare
    from .widgets.rarity import remarks, sentences

    run = Run(args.run_folder)
    table = rare(run)
    if args.csv:
        table.to_csv(args.csv if args.csv != "-" else sys.stdout, index=False)
    elif not args.json:
        columns = ["image", "file", "class", "headness", "tau", "weight", "cluster", "duplicate_of"]
        print(f"the 20 rarest of {len(table):,}; --csv has all:\n{table[columns].head(20).to_string(index=False)}")
    said = [*sentences(run), *remarks(table)]
    if not args.json:
        _say("\n".join(said))
    rarest = table.head(20).astype(object).where(table.head(20).notna(), None)  # JSON has no NaN
    return {"rows": len(table), "rarest": rarest.to_dict("records"), "remarks": said}


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    """The main job on the embedded images: three trainings, evaluated, compared and drawn."""
    from . import figures
    from .evaluation import compare, evaluate, format_table
    from .training import train

    out = Path(args.out)
    overrides = _assignments(args.set)
    runs = []
    for name, method, balanced in DEMO:
        config = preset(args.preset, method, args.seed, {"data.balanced": balanced, **applicable(overrides, method)})
        runs.append(train(config, out / name, resume=True, progress=not args.quiet))
    for run in runs:
        evaluate(run, progress=not args.quiet)
    table = format_table(compare(runs))
    written = figures.all_figures(runs, out / "figures", label="")
    if not args.json:
        print(f"\n{table}\n\nfigures: {out / 'figures'} ({len(written)} files)")
        print(
            "\nnext:\n"
            "  make lab                                    the notebooks, on these runs\n"
            "  tase train --preset fashion-mnist-lt-small  a larger preset (see also: info, --help)\n"
            "  tase train --preset folder --set data.root=MY_IMAGES   your own images\n"
            "One run per method on 405 images shows that everything works; it does not rank the methods."
        )
    return {"runs": [str(run.path) for run in runs], "results": [run.results for run in runs]}


def _bench(args: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # read with torch: its profiler else writes when it starts and stops
    from .bench import bench_text, benchmark

    report = benchmark(args.quick, args.only, args.out, args.device, (lambda line: None) if args.quiet else _say)
    if not args.json:
        print(bench_text(report))
    return report


def _with_config(parser: argparse.ArgumentParser, default: str | None = None, method: bool = True) -> None:
    parser.add_argument("--preset", default=default, required=default is None, help=f"one of {', '.join(PRESETS)}")
    if method:
        parser.add_argument("--method", default="tase", help=f"one of {', '.join(METHODS)} (default tase)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="FIELD=VALUE", help="override fields")
    parser.add_argument("--help-fields", nargs=0, action=_HelpFields, help="list the method's fields, then end")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tase", description=__doc__)
    parser.add_argument("--version", action="version", version=f"tase {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run, help: str) -> argparse.ArgumentParser:
        p = verbs.add_parser(name, help=help, description=help)
        p.set_defaults(run=run)
        p.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        p.add_argument("--quiet", action="store_true", help="no progress bars")
        p.add_argument("--import", dest="files", nargs="+", default=[], metavar="FILE", help="Python files of your own")
        return p

    p = verb("train", _train, "pre-train one run")
    _with_config(p)
    p.add_argument("--out", help="the run's folder (default runs/PRESET-METHOD-SEED)")
    p.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, exactly")

    p = verb("evaluate", _evaluate, "evaluate finished runs and print their table")
    p.add_argument("runs", nargs="+", metavar="RUN")
    p.add_argument("--protocols", nargs="+", help="default: the configuration's")
    p.add_argument("--force", action="store_true", help="measure again what results.json has")
    p.add_argument("--on", default="test", help="the images that are judged: test, or val to choose without seeing it")

    p = verb("figures", _figures, "draw the figures of evaluated runs (PDF and PNG)")
    p.add_argument("runs", nargs="*", metavar="RUN")
    p.add_argument("--out", help="folder of the figures (default: RUN/figures, or figures next to several runs)")
    p.add_argument(
        "--redraw", metavar="FOLDER", help="redraw every figure there from what is kept in FOLDER/**/runs.zip"
    )
    p.add_argument("--keep", action="store_true", help="keep slim copies of the runs in OUT/runs.zip, for --redraw")
    p.add_argument(
        "--no-footer", action="store_true", help="leave out the line below with preset, seeds, commit or machine"
    )

    p = verb("study", _study, "run a declared study: what is missing of its grid, then its tables and its figure")
    _study_arguments(p)

    p = verb("info", _info, "describe a run, or the class counts and groups of a preset")
    p.add_argument("run_folder", nargs="?", metavar="RUN", help="the run's folder (or --preset)")
    _with_config(p, default="digits-lt")

    _folder_verbs(verb)

    p = verb("bench", _bench, "measure speed and memory against named rivals")
    p.add_argument("--quick", action="store_true", help="small sizes, few rounds: under 45 s on two idle cores")
    sections = "views, loss, kmeans, step, loop, guidance, rivals; if named also the longer peers, processes, scale"
    p.add_argument("--only", nargs="+", default=[], metavar="SECTION", help=f"some of: {sections}")
    p.add_argument("--out", help="write bench.json and a figure of bars into this folder")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, or cuda:N (default auto)")

    p = verb("demo", _demo, "the main job on the embedded digits: three runs, table, figures")
    _with_config(p, default="digits-lt", method=False)
    p.add_argument("--out", default="runs/demo", help="folder of the runs (default runs/demo)")
    return parser


def _folder_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs for a run whose images need no labels."""
    p = verb("report", _report, "write one HTML file to explore one or two runs without a kernel or a network")
    p.add_argument("runs", nargs="+", metavar="RUN")
    p.add_argument("-o", "--out", help="the file (default RUN/report.html)")

    p = verb("trust", _trust, "say how far to believe a run's ranking of its images, with or without some labels")
    p.add_argument("run_folder", metavar="RUN")
    p.add_argument("--labels", metavar="FILE", help="CSV of image (name or number), class; or own: the run's classes")

    p = verb("rare", _rare, "list which images a run takes for rare, common, blank or twice there")
    p.add_argument("run_folder", metavar="RUN")
    p.add_argument("--csv", nargs="?", const="-", metavar="FILE", help="write all images as CSV (no FILE: to stdout)")


def _study_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", help="the study (none: list them)")
    p.add_argument("--preset", nargs="+", default=[], help="one or more (default: the study's own, where it has some)")
    p.add_argument("--seeds", default="5", help="how many, or from-to: 5 is 0-4 (default 5)")
    p.add_argument("--jobs", type=int, default=1, help="runs at once, each with its share of the cores (default 1)")
    engines = "local:N, submitit:partition=gpu,timeout_min=240 (Slurm), dask:tcp://HOST:PORT"
    p.add_argument("--executor", metavar="ENGINE", help=f"do the runs on an engine: {engines}")
    p.add_argument("--out", help="the study's folder (default studies/NAME-PRESET)")
    p.add_argument("--runs", help="folder of the runs, which studies can share (default OUT/runs)")
    p.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these rows (see --dry-run)")
    p.add_argument("--columns", nargs="+", default=[], metavar="COLUMN", help="only these columns")
    p.add_argument("--protocols", nargs="+", default=[], help="in place of the study's")
    p.add_argument("--reference", metavar="ROW", help="the row to which differences are taken, in place of the study's")
    p.add_argument("--on", default="test", help="judge on test (default), or on val, to choose without seeing the test")
    p.add_argument("--headroom", action="store_true", help="add SimCLR on the long tail and on a balanced set")
    p.add_argument("--set", nargs="+", default=[], action="extend", metavar="FIELD=VALUE", help="for all cells")
    p.add_argument("--keep", action="store_true", help="copy what tables need of the runs to OUT/runs.zip")
    p.add_argument("--only-done", action="store_true", help="run nothing: tables and figure of the runs that are done")
    p.add_argument("--dry-run", action="store_true", help="print the grid and what it costs; run nothing")


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 2 for an error in what was asked, 130 when stopped."""
    with contextlib.suppress(AttributeError):  # names of files need not be text in the terminal's encoding
        sys.stdout.reconfigure(errors="surrogateescape")
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    several = _several()
    first, speaks = (not several or os.environ.get(name) == "0" for name in ("RANK", "LOCAL_RANK"))
    if not first:
        warnings.simplefilter("ignore")  # the first process says it
    try:
        args = _parser().parse_args(argv)
        if several and args.verb != "train":
            raise ConfigError(f"several processes can train together, not {args.verb}: start it without torchrun")
        for path in args.files:
            use(path)
        result = args.run(args)
    except KeyboardInterrupt as stop:
        if speaks:
            _say(f"\n{stop or 'stopped'}")
        return 130
    except BrokenPipeError:  # what reads our output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does Python complain at the end
        return 0
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__module__.split(".")[0] != "tase" and not isinstance(error, OSError):
            raise
        if speaks or type(error).__name__ == "TeamError":
            _say(f"error: {error}")
        return 2
    if args.json and first:
        print(json.dumps(result))
    return 0


def _several() -> bool:
    if "MASTER_ADDR" not in os.environ:  # not under torchrun, so torch need not be loaded yet
        return False
    from .distributed import launched

    return launched() > 1


def command() -> NoReturn:
    """Run `main`, then end this process; under torchrun without taking the interpreter down.

    After an error nobody has waited for gloo's threads: an interpreter that is taken down under them may hang or abort.
    """
    status = main()
    if _several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
