"""The command line as users meet it: help, info, errors in one line, the demo's whole path."""

import json
import re
import subprocess
import sys

import pytest
from conftest import TINY

import tase
from tase.__main__ import main
from tase.config import fields

TINY_SETS = [f"{name}={value}" for name, value in TINY.items()]


def test_help_is_one_screen_and_help_fields_lists_those_of_the_method(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 30
    for method in ("tase", "ts"):
        with pytest.raises(SystemExit):
            main(["train", "--preset", "digits-lt", "--method", method, "--help-fields"])
        text = capsys.readouterr().out
        assert all(f"  {name}=" in text for name in fields(method))
        assert ("guidance.tau_max=0.5" in text) == (method == "tase") and "optim.lr=0.5" in text


def test_version_and_a_run_are_told(trained, capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"tase {tase.__version__}\n"
    assert main(["info", str(trained[2].path)]) == 0
    text = capsys.readouterr().out
    assert "TASE (tase)" in text and "finished, epoch 8 of 8" in text and trained[2].identity in text


def test_info_needs_no_data_where_the_rule_decides(capsys):
    assert main(["info", "--preset", "cifar10-lt", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["n"] == 11165 == sum(info["counts"])
    assert info["counts"][0] == 4500 and info["counts"][-1] == 45
    assert info["groups"] == ["head"] * 4 + ["mid"] * 3 + ["tail"] * 3
    assert main(["info", "--preset", "cifar100-lt"]) == 0
    assert "9,754 images" in capsys.readouterr().out


def test_info_of_images_without_labels_says_so(tmp_path, capsys):
    from PIL import Image

    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    assert main(["info", "--preset", "folder", "--set", f"data.root={tmp_path}"]) == 0
    assert "no labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "--preset", "cifr10-lt"], "did you mean 'cifar10-lt'?"),
        (["train", "--preset", "digits-lt", "--method", "tasé"], "did you mean 'tase'?"),
        (["train", "--preset", "digits-lt", "--set", "guidance.tau_max"], "field=value"),
        (["train", "--preset", "digits-lt", "--set", "guidance.tau_max=0.01"], "guidance.tau_min"),
        (["evaluate", "nowhere"], "nowhere is no run"),
        (["figures"], "run folders"),
        (["figures", "--redraw", "nowhere"], "nowhere"),
        (["figures", "--redraw", ".", "--out", "there"], "no RUN, --out or --keep"),
        (["figures", "--redraw", ".", "--keep"], "no RUN, --out or --keep"),
        (["figures", "run", "--redraw", "."], "no RUN, --out or --keep"),
        (["train", "--method", "foo", "--help-fields"], "unknown method 'foo'"),
        (["train", "--preset", "folder", "--set", "data.root=nowhere"], "nowhere"),
    ],
)
def test_an_error_is_one_plain_line_and_status_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_demo_trains_evaluates_compares_and_draws(tmp_path, capsys):
    words = ["demo", "--out", str(tmp_path / "demo"), "--quiet", "--set", *TINY_SETS, "optim.epochs=4"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for word in ("pixels", "untrained", "simclr, balanced", "tase", "Head", "Tail", "Std", "make lab"):
        assert word in text
    drawn = {path.name for path in (tmp_path / "demo" / "figures").iterdir()}
    assert {"figure2_geometry.png", "figure3_tsne.pdf", "figure4_dynamics_tase.png", "figure5_push.pdf"} <= drawn
    assert main([*words, "--json"]) == 0  # all is there already
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3


def test_the_demo_takes_no_method(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--method", "simclr"])
    assert "unrecognized arguments: --method simclr" in capsys.readouterr().err


def test_help_names_every_section_of_the_benchmark_and_where_runs_are_kept(capsys):
    from tase.bench import BENCH_SECTIONS

    told = {}
    for verb in ("bench", "study"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        told[verb] = " ".join(capsys.readouterr().out.split())
    assert set(BENCH_SECTIONS) <= set(re.findall(r"\w+", told["bench"])) and "OUT/runs.zip" in told["study"]


@pytest.mark.parametrize("words", [[], ["--no-footer"]])
def test_a_redraw_leaves_out_the_footer_where_it_is_to(words, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("tase.figures.redraw", lambda folder, footer: told.append(footer) or [])
    monkeypatch.setattr("tase.bench.redraw_bench", lambda folder, note: told.append(note) or [])
    assert main(["figures", "--redraw", str(tmp_path), *words]) == 0
    assert told == [not words] * 2


def test_kept_runs_are_redrawn_without_their_features(trained, tmp_path, capsys):
    out = tmp_path / "figures" / "digits"
    assert main(["figures", *(str(run.path) for run in trained), "--out", str(out), "--keep", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["figures"]
    for path in out.glob("*.p*"):
        path.unlink()
    assert main(["figures", "--redraw", str(tmp_path / "figures"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == first
    assert not list(out.rglob("*.pt"))


def test_progress_goes_to_standard_error(tmp_path):
    command = [sys.executable, "-m", "tase", "info", "--preset", "digits-lt", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["n"] == 405
