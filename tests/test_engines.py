"""Studies on other engines, and by several commands in one folder: who is killed, and that the tables are the same."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import start

import tase
from tase import files
from tase.__main__ import main
from tase.files import Claim, InUse, read_lines
from tase.studies import STUDIES, engines, plan
from tase.studies import jobs as jobs_module

TINY = {"optim.epochs": 6, "optim.batch": 64, "guidance.refresh": 3, "guidance.clusters": 8, "optim.device": "cpu"}
TINY |= {"model.channels": "8,8,8,8", "model.head_dim": 8, "record.knn_every": 0, "record.checkpoint_every": 2}
CELLS = ["--rows", "tase", "--columns", "gamma=0.5", "--protocols", "lt-knn"]
TABLES = ("results.csv", "table.md", "table.tex", "study.json")

# Imported by every process of a study: it writes down which trainings begin, and sleeps so that they can be killed.
COUNTING = """
import time
from pathlib import Path
from tase import training
start, epoch = training._start, training.train_epoch
def counted(config, splits, writer, device):
    with open(Path(__file__).with_name("begun"), "a") as file:
        file.write(writer.folder.name + "\\n")
    return start(config, splits, writer, device)
def slow(*inputs):
    time.sleep(NAP)
    return epoch(*inputs)
training._start, training.train_epoch = counted, slow
from submitit.core.core import Job
Job._results_timeout_s = 1  # it waits 15 s for what a killed job might have left
"""


def counting(folder, nap):
    path = folder / f"counting_{1000 * nap:.0f}.py"
    path.write_text(COUNTING.replace("NAP", str(nap)))
    return str(path)


def started(folder, seeds, *more, nap=0):
    """A process that does a study of so many runs in `folder`/study."""
    words = ["study", "gamma", "--preset", "digits-lt", "--out", str(folder / "study"), "--quiet", *CELLS, *more]
    words += ["--seeds", str(seeds), "--import", counting(folder, nap)]
    words += ["--set", *(f"{name}={value}" for name, value in TINY.items())]
    return start(words, folder / f"log {len(list(folder.iterdir()))}.txt")


def tables_of(process, folder):
    """The tables of a study that has ended well; every epoch of every run is there once."""
    process.join(240)
    logs = [path.read_text() for path in folder.glob("log *.txt")]
    assert process.exitcode == 0 and not any("Traceback" in log for log in logs), logs
    for path in (folder / "study" / "runs").glob("*/metrics.jsonl"):
        assert [row["epoch"] for row in read_lines(path)] == [1, 2, 3, 4, 5, 6]
    return {name: (folder / "study" / name).read_bytes() for name in TABLES}


def begun(folder):
    """The runs whose training has begun, in that order."""
    path = folder / "begun"
    return path.read_text().split() if path.exists() else []


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def in_the_middle(folder, other_than=()):
    """(name, process) of a run that has a checkpoint and is not finished."""
    for path in (folder / "study" / "runs").glob("*/checkpoint.pt"):
        status = files.load_optional_json(path.with_name("status.json"))
        if status.get("state") == "training" and path.parent.name not in other_than:
            return path.parent.name, status["pid"]
    return None


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The tables of one command alone, by the number of runs."""
    folder = tmp_path_factory.mktemp("alone")
    return {seeds: tables_of(started(folder, seeds), folder) for seeds in (2, 3)}


def test_four_commands_share_a_folder_and_one_is_killed(local, tmp_path):
    first = started(tmp_path, 3, nap=60)  # it sleeps in its first epoch and holds that run
    (held,) = until(lambda: begun(tmp_path))
    others = [started(tmp_path, 3, nap=0.05) for _ in range(3)]
    until(lambda: len(begun(tmp_path)) == 3)
    assert sorted(set(begun(tmp_path))) == sorted(begun(tmp_path))
    first.kill()
    for process in others:
        assert tables_of(process, tmp_path) == local[3]
    assert len(begun(tmp_path)) == 4 and begun(tmp_path)[3] == held  # only the killed one's run, by one of the others
    assert not list((tmp_path / "study" / "runs" / ".claims").iterdir())


def test_submitit_in_this_process(local, tmp_path):
    assert tables_of(started(tmp_path, 2, "--executor", "submitit:cluster=debug"), tmp_path) == local[2]


def test_submitit_runs_a_killed_and_a_preempted_job_again(local, tmp_path):
    study, hurt = started(tmp_path, 2, "--executor", "submitit:cluster=local,timeout_min=5", nap=0.5), []
    for number in (signal.SIGKILL, signal.SIGUSR2):
        name, pid = until(lambda: in_the_middle(tmp_path, hurt))
        os.kill(pid, number)
        hurt.append(name)
    assert tables_of(study, tmp_path) == local[2]
    assert sorted(begun(tmp_path)) == sorted(2 * hurt)


@contextlib.contextmanager
def dask(folder):
    """The address of a scheduler with two workers, in processes of their own."""
    file, paths = str(folder / "scheduler.json"), str(Path(__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": paths, "TASE_IMPORT": counting(folder, 0.3)}
    words = ["scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", file]
    worker = ["worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    quiet = {"env": environ, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([sys.executable, "-m", "dask", *some], **quiet) for some in (words, worker, worker)]
    try:
        yield json.loads(until(lambda: Path(file).exists() and Path(file).read_text()))["address"], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_dask_does_the_job_of_a_killed_worker_on_the_other(local, tmp_path):
    with dask(tmp_path) as (address, workers):
        study = started(tmp_path, 2, "--executor", f"dask:{address}")
        name, pid = until(lambda: in_the_middle(tmp_path))
        (killed,) = (worker for worker in workers if worker.pid == pid)
        killed.kill()
        killed.wait()
        assert tables_of(study, tmp_path) == local[2]
    assert begun(tmp_path).count(name) == 2 and len(begun(tmp_path)) == len(set(begun(tmp_path))) + 1


def planned(folder, **more):
    study = STUDIES["gamma"].only(["tase"], ["gamma=0.5"])
    return plan(study, ["digits-lt"], range(3), folder, {**TINY, **more})


class Bar:
    def set_postfix_str(self, *_, **__): ...

    def update(self, n): ...


class Loses:
    """An executor that loses what it is given, but for some."""

    def __init__(self, does=()):
        self.does, self.given = does, []

    def submit(self, function, job):
        self.given.append(job)
        outcome = "" if job in self.does else jobs_module.STOPPED
        return type("Future", (), {"done": lambda _: True, "result": lambda _: outcome})()


def test_a_job_is_submitted_a_bounded_number_of_times(tmp_path):
    jobs = planned(tmp_path).jobs
    engine = Loses(does=jobs[:1])
    failed = jobs_module.do_all(jobs, Bar(), engine)
    assert [engine.given.count(job) for job in jobs] == [1, 3, 3]
    assert sum(line.endswith("stopped by a signal") for line in failed) == 2


def test_an_engine_that_refuses_jobs_fails_each(tmp_path):
    class Gone:
        def submit(self, *_):
            raise ConnectionError("the scheduler is gone")

    failed = jobs_module.do_all(planned(tmp_path).jobs, Bar(), Gone())
    assert len(failed) == 3 and all(line.endswith(": the scheduler is gone") for line in failed)


def test_a_dry_run_tells_what_runs_where_and_what_failed(tmp_path):
    study = planned(tmp_path)
    running, failed, _ = study.jobs
    for job, status in ((running, {"epoch": 4}), (failed, {"state": "failed", "error": "RunError: the disk is full"})):
        job.folder.mkdir()
        files.save_json(job.folder / "status.json", status)
    with running.claim:
        text = study.describe()
    assert f"running   {running}: epoch 4 of 6 on " in text and f"process {os.getpid()}\n" in text
    assert text.splitlines()[-1].endswith(f"failed    {failed}: RunError: the disk is full")


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("dusk", "did you mean 'dask'?"),
        ("local:many", "local:N, N processes at once"),
        ("dask", "the address of a scheduler"),
        ("dask:tcp://127.0.0.1:1", "no scheduler answers at tcp://127.0.0.1:1"),
        ("submitit:partition=gpu", "no Slurm here, sbatch is not found"),
        ("submitit:cluster=local,patition=gpu", "Unknown argument 'patition'"),
        ("submitit:cluster=local,timeout_min=long", '"timeout_min" expected type'),
        ("submitit:gpu", "submitit:FIELD=VALUE"),
        ("submitit:cluster=slum", "did you mean 'slurm'?"),
    ],
)
def test_wrong_engines_are_named_in_one_line(engine, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engines, "ANSWER", 0.5)
    words = ["study", "gamma", "--preset", "digits-lt", "--out", str(tmp_path), *CELLS, "--executor", engine]
    words += ["--seeds", "1"]
    assert main(words) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and message in told and not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [("submitit", "submitit", "slurm"), ("dask:x", "distributed", "dask")]
)
def test_a_missing_package_is_named(engine, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tase.ConfigError, match=rf"{package} is not installed \(pip install 'tase\[{extra}\]'\)"):
        engines.engine(engine, tmp_path).__enter__()


# --------------------------------------------------------------------------------------------------------------- claims


def takers(path, n=8):
    """How many of n that try at the same time get the claim."""
    gate, taken = threading.Barrier(n), []

    def attempt():
        gate.wait()
        with contextlib.suppress(InUse):
            taken.append(Claim(path).__enter__())

    threads = [threading.Thread(target=attempt) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def test_one_of_many_gets_a_claim_and_the_next_when_it_is_let_go(tmp_path):
    for _ in range(20):
        (claim,) = takers(tmp_path / "run")
        assert not takers(tmp_path / "run") and claim.owner["pid"] == os.getpid()
        claim.__exit__()
        assert claim.owner is None
    assert claim.number == 20
    claim.remove()
    assert not list(tmp_path.iterdir())


def of_another_machine(path, number=1):
    file = path.with_name(f"{path.name}.{number}")
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "begun": 1.0}))
    return file


def test_a_silent_machine_loses_its_claim_to_exactly_one(tmp_path):
    path, now = tmp_path / "run", time.time()
    for number in range(1, 40, 2):
        file = of_another_machine(path, number)
        os.utime(file, (now, now - files.CLAIM_SECONDS + 5))
        assert not takers(path, 2)
        os.utime(file, (now, now - files.CLAIM_SECONDS - 5))
        (claim,) = takers(path)
        assert claim.number == number + 1 and not claim.lost
        claim.__exit__()
    of_another_machine(path, claim.number + 1)
    assert claim.lost


def test_a_claim_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CLAIM_SECONDS", 0.9)
    with Claim(tmp_path / "run") as claim:
        file = tmp_path / "run.1"
        os.utime(file, (0, 0))
        until(lambda: time.time() - file.stat().st_mtime < 5)
        monkeypatch.setattr(files, "_machine", lambda: "another")  # and so they see it
        until(lambda: claim.owner)
    os.utime(file, (0, 0))
    time.sleep(0.3)
    assert file.stat().st_mtime == 0 and claim.owner is None


def test_the_claim_of_a_killed_process_is_free_immediately(tmp_path):
    code = f"import time; from tase.files import Claim; Claim({str(tmp_path / 'run')!r}).__enter__(); time.sleep(99)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(tase.__file__).parent.parent)}
    )
    owner = until(lambda: Claim(tmp_path / "run").owner)
    assert owner["pid"] == process.pid
    process.kill()
    until(lambda: Claim(tmp_path / "run").owner is None, 5)  # although nobody has waited for the process yet
    process.wait()
    claim = {**owner, "pid": os.getpid()}  # the number of the process has come back
    (tmp_path / "run.1").write_text(json.dumps(claim))
    with Claim(tmp_path / "run") as taken:
        assert taken.number == 2


def test_a_claim_that_is_being_written_is_held(tmp_path):
    (tmp_path / "run.1").touch()
    with pytest.raises(InUse, match="run is held by another process"), Claim(tmp_path / "run"):
        pass
    (tmp_path / "run.1.1").touch()  # of a run that is named so
    assert Claim(tmp_path / "run").owner == {"host": "?"} and Claim(tmp_path / "run")._latest() == 1


def test_who_has_lost_its_claim_stops(tmp_path):
    job = planned(tmp_path).jobs[0]
    epochs = []

    def stolen(run):
        epochs.append(run.status["epoch"])
        of_another_machine(job.claim.path, 2)

    assert "another machine has taken it over" in jobs_module.do_job(job, stolen)
    assert epochs == [1] and jobs_module.do_job(job) == jobs_module.HELD
