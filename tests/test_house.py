"""The house's rules: which room may import which, one list of dependencies, a quick import, no private paths."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tase

ROOT = Path(__file__).parent.parent
ROOMS = """
    lazy options config files streams distributed data views networks models losses clustering pseudo_labels trust
    guidance presets runs verdict probes training tables evaluation studies layouts figures widgets bench __main__
""".split()  # noqa: SIM905

SOURCES = sorted((ROOT / "tase").rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT / "tase").parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports, at the top or inside a function."""
    depth = len(path.relative_to(ROOT / "tase").parts)  # 1: a room's file, 2: a file in a room's folder
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == depth:
                yield from [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            elif node.level == 0 and (node.module or "").split(".")[0] == "tase":
                rest = node.module.split(".")[1:]
                yield from rest[:1] if rest else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("tase."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_above_it(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in ROOMS, f"{path} is in no room of the house"
    for other in imported_rooms(path):
        if other in ROOMS:
            assert ROOMS.index(other) < ROOMS.index(room), f"{room} imports {other}, which is not above it"


def defined(path):
    """Names that a file defines at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_a_name_means_one_thing_in_the_whole_package():
    where = {}
    for path in SOURCES:
        for name in {*defined(path)} - {"__all__"}:
            where.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in where.items() if len(paths) > 1}


def test_modules_have_open_names():
    assert not [path.name for path in SOURCES if path.name[0] == "_" and path.stem not in ("__init__", "__main__")]


def test_only_training_and_distributed_know_that_there_are_several_processes():
    knowing = {room_of(path) for path in SOURCES if "distributed" in set(imported_rooms(path))}
    assert knowing <= {"training", "evaluation", "studies", "runs", "bench", "__main__"}
    inside = r"torch\.distributed|(?<![.\w])(world|shard|rank_zero|all_reduce|gather)\("
    for path in SOURCES:
        if room_of(path) not in ("distributed", "training"):
            text = path.read_text()
            assert not re.search(inside, text), path


def test_the_import_finder_sees_imports_inside_functions(tmp_path):
    assert "training" in set(imported_rooms(ROOT / "tase" / "__main__.py"))


def test_every_public_name_can_be_loaded():
    for name in tase.__all__:
        assert getattr(tase, name) is not None
    with pytest.raises(AttributeError):
        tase.no_such_name  # noqa: B018


def test_environment_yml_is_a_thin_layer_over_pyproject():
    text = (ROOT / "environment.yml").read_text()
    packages = re.findall(r"^ {2,}- (?!pip:)(\S+)", text, re.M)
    floor = re.search(r'requires-python = "(.+?)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert set(packages) == {"conda-forge", f"python{floor}", "pip", "-e"} | ({"nodefaults"} & set(packages))
    assert "- -e .[test]" in text  # everything else comes from pyproject.toml


def test_importing_tase_costs_little_more_than_importing_torch():
    ours = "import torch, tase; tase.train, tase.preset, tase.two_views, tase.nt_xent, tase.TASE, tase.Run"
    seconds = {"import torch": [], ours: []}
    for _ in range(4):  # in turn, and the best of each: others may use the machine
        for code, times in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            times.append(time.perf_counter() - start)
    assert min(seconds[ours]) < 1.3 * min(seconds["import torch"])


def test_no_file_names_a_private_path():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    text = [
        ROOT / name
        for name in listed
        if Path(name).suffix in {".py", ".md", ".yml", ".toml", ".ipynb", ".json", ".cff"}
    ]
    assert text, "git lists no files"
    private = re.compile(r"/(home|root|work|Users)/\w")
    found = [f"{p.name}: {m.group()}" for p in text if (m := private.search(p.read_text()))]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
