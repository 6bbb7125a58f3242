"""Runs on full, read-only and vanishing disks, and on disks that fail for a moment."""

import dataclasses
import errno
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tenacity
from PIL import Image

from ddpm_jax import cli, data
from ddpm_jax.host import storage
from ddpm_jax.runs import checkpoint, environment
from ddpm_jax.train import loop, metrics
from tests.runs import test_checkpoint
from tests.runs.test_checkpoint import TASKS, assert_same_leaves, fit
from tests.runs.test_checkpoint_guards import EXPERIMENT, REPOSITORY, cheap, held, named, whole

pytestmark = pytest.mark.usefixtures("optax_promotes")

__all__ = ["cheap", "whole"]  # fixtures


# ------------------------------------------------------------------------------------------------- disks that fail

# Runs the command line; before step 5 is counted, something happens to the run's directory.
FAILS = """
import functools, resource, shutil, sys
from pathlib import Path
from ddpm_jax import cli
from ddpm_jax.cli import train
from ddpm_jax.train import loop
from tests.runs.test_checkpoint import TASKS

workdir = Path(sys.argv[1])
HAPPENS = {
    "full": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)),
    "vanished": lambda: shutil.move(workdir, workdir.with_name("elsewhere")),
    "unwritable": lambda: (
        shutil.move(workdir / "checkpoints", workdir / "elsewhere"), (workdir / "checkpoints").write_text("")
    ),
}

class Bar(train.Bar):
    def step(self, step):
        if step == 5:
            HAPPENS[sys.argv[2]]()
        super().step(step)

train.Bar = Bar
loop.fit = functools.partial(loop.fit, make_task=TASKS[sys.argv[4]])
cli.main(["train", sys.argv[3], "--workdir", sys.argv[1]])
"""


def fails(tmp_path, what, task):
    """What `ddpm-jax train` printed as its error when this happened to its directory."""
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    command = [sys.executable, "-c", FAILS, str(tmp_path / "run"), what, str(tmp_path / "experiment.py"), task]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    start = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "ERROR" not in done.stderr, done.stderr
    print(f"{time.monotonic() - start:.1f} s: {done.stderr}")
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, task, number, path",
    [
        ("full", "diffusion", errno.EFBIG, r"run/(checkpoints|tensorboard)"),
        ("vanished", "least_squares", errno.ENOENT, r"run/checkpoints"),
        ("unwritable", "least_squares", errno.ENOTDIR, r"run/checkpoints"),
    ],
)
def test_a_disk_that_fails_while_training(what, task, number, path, whole, cheap, tmp_path):
    """One line that names the path; the last good checkpoint is as it was, and the run goes on from it, bit for bit."""
    run = tmp_path / "run"
    line = fails(tmp_path, what, task)
    assert re.search(rf"ddpm-jax: \[Errno {number}\] {os.strerror(number)}: '.*{path}", line), line
    if what == "vanished":
        # What was being written may have made its folders anew; there is no checkpoint in them.
        assert not (run / "config.json").exists() and not list(run.glob("checkpoints/*/seal.json"))
        shutil.rmtree(run, ignore_errors=True)
        shutil.move(tmp_path / "elsewhere", run)
    if what == "unwritable":
        (run / "checkpoints").unlink()
        shutil.move(run / "elsewhere", run / "checkpoints")
    state = functools.partial(held, make_task=TASKS[task])
    before = state(run)
    assert int(before.step) in (2, 4)  # 4 may have been on its way
    notes = fit(run, make_task=TASKS[task])
    assert notes.said == [] and notes.seen[0] == int(before.step)
    assert_same_leaves(named(state(run)), named(state({"diffusion": whole, "least_squares": cheap}[task])))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run", "run/checkpoints"])
def test_a_file_in_the_place_of_a_directory(place, whole, tmp_path, capsys):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    if place != "run":
        shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / place).write_text("")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(tmp_path / "experiment.py"), "--workdir", str(tmp_path / "run")])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error
    assert re.fullmatch(rf"ddpm-jax: \[Errno \d+\] (Not a directory|File exists): '{tmp_path / place}'", error), error
    assert (tmp_path / place).read_text() == ""


def test_errors_name_the_file(tmp_path):
    """An open file says only that the disk is full, and tensorstore says it in a ValueError."""
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(OSError, match=re.escape(f"[Errno 28] No space left on device: '{path}'")), storage.naming(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError, match="'other'"), storage.naming(path):
        open("other")
    tensorstore = "OUT_OF_RANGE: Error writing ...: File too large [os_error_code='27']"
    with pytest.raises(OSError, match=re.escape(f"File too large: '{path}'")) as error, storage.naming(path):
        raise ValueError(tensorstore)
    assert error.value.errno == errno.EFBIG and storage.errno_of(ValueError(tensorstore)) == errno.EFBIG
    with pytest.raises(ValueError, match="another"), storage.naming(path):
        raise ValueError("another")


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "made anew"])
def test_checkpoints_whose_directory_is_gone(anew, tmp_path):
    """What Orbax misses first depends on the moment, and what it says of that: here, as where a folder is made anew."""
    with checkpoint.checkpoints(tmp_path / "run") as saved:
        with pytest.raises(ValueError, match="No ArrayMetadata"), saved._writing():  # nothing is gone
            raise ValueError("No ArrayMetadata found")
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        line = re.escape(f"[Errno 2] No such file or directory: '{tmp_path / 'run' / 'checkpoints'}'")
        if anew:
            (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=line), saved._writing():
            raise ValueError("No ArrayMetadata found")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        (tmp_path / "elsewhere").rename(tmp_path / "run")


def limited(size, function, *arguments):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_file_of_a_run_is_named_when_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_tensorboard", lambda directory: None)  # its thread writes when it likes
    log = test_checkpoint.MetricsLog(tmp_path, 0)
    log.write(1, {"loss": 1.0}, 8)
    writes = {
        "metrics.jsonl": lambda: log.write(2, {"loss": 1.0}, 8),
        "config.json.partial": lambda: storage.write_atomically(tmp_path / "config.json", "x" * 99),
        "environment.jsonl": lambda: environment.record(tmp_path, 0),
        "loss.png": lambda: loop.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png"),
        "grid.png.partial": lambda: loop.save_grid(tmp_path / "grid.png", np.zeros((4, 8, 8, 1), np.uint8)),
    }
    for name, write in writes.items():
        with pytest.raises(OSError, match=re.escape(f"File too large: '{tmp_path / name}'")):
            limited(9, write)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "grid.png").exists()


# ------------------------------------------------------------------------------------------------------ another try


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT", 0)


class Fails:
    """Raises these errors, one a call, and then does as the function."""

    def __init__(self, function, *errors):
        self.function, self.errors, self.calls = function, list(errors), 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.function(*arguments)


def test_errors_that_may_pass_are_tried_again(at_once):
    for number in storage.TRANSIENT:
        said, f = [], Fails(lambda x: x + 1, *[OSError(number, "gone", "a.png")] * 4)
        assert storage.retrying(said.append)(f)(1) == 2 and f.calls == 5
        assert said[0] == f"{OSError(number, 'gone', 'a.png')}: trying again in 0 s (attempt 2 of 5)" and len(said) == 4
    said, f = [], Fails(abs, *(errors := [OSError(errno.EIO, str(i)) for i in range(9)]))
    with pytest.raises(OSError) as error:
        storage.retrying(said.append)(f)(1)
    assert error.value is errors[4] and f.calls == 5 and len(said) == 4


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(n, "no") for n in (errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)),
        OSError("a truncated picture"),
        ValueError("a bad argument"),
        ValueError("[os_error_code='28'"),
        FloatingPointError("loss"),
    ],
    ids=str,
)  # fmt: skip
def test_permanent_errors_are_not(error):
    f = Fails(abs, error)
    with pytest.raises(type(error)) as raised:
        storage.retrying(pytest.fail)(f)(1)
    assert raised.value is error and f.calls == 1


def test_the_waits_double(monkeypatch):
    waits, said = [], []
    monkeypatch.setattr(tenacity.nap.time, "sleep", waits.append)
    assert storage.retrying(said.append)(Fails(abs, *[OSError(errno.ESTALE, "stale")] * 4))(-1) == 1
    assert waits == [0.5, 1, 2, 4] and "trying again in 0.5 s (attempt 2 of 5)" in said[0]


def test_a_picture_that_cannot_be_read_for_a_moment(tmp_path, at_once, monkeypatch):
    """Its reader makes a ValueError of the system's error; a picture that is broken is not read again."""
    picture = np.random.RandomState(0).randint(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    said, opened = [], Fails(Image.open, OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"))
    monkeypatch.setattr(Image, "open", opened)
    found = storage.retrying(said.append)(data.load)(str(tmp_path)).images([0])
    np.testing.assert_array_equal(found[0, ..., 0], picture)
    assert len(said) == 2 and all(str(tmp_path) in line and "trying again" in line for line in said)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot read the image"):
        storage.retrying(pytest.fail)(data.load)(str(tmp_path))


@pytest.mark.slow
def test_a_run_on_a_disk_that_fails_now_and_then(cheap, tmp_path, at_once, monkeypatch):
    """Opening the data, reading a batch, writing two checkpoints, also the last: told, and bit for bit the same."""
    loads, reads = [OSError(errno.ESTALE, "data")], []

    def flaky_load(*arguments, **options):
        if loads:
            raise loads.pop()
        source = data.load(*arguments, **options)
        reads.append(Fails(source.take, OSError(errno.EIO, "batch"), OSError(errno.ETIMEDOUT, "batch")))
        return dataclasses.replace(source, take=reads[-1])

    monkeypatch.setattr(loop, "data", SimpleNamespace(**vars(data) | {"load": flaky_load}))
    seals, seal = [], checkpoint.seal

    def flaky_seal(directory):
        seals.append(directory.name.split(".")[0])
        if seals.count(seals[-1]) == 1 and seals[-1] in ("4", "8"):
            raise OSError(errno.EIO, f"seal {seals[-1]}")
        seal(directory)

    monkeypatch.setattr(checkpoint, "seal", flaky_seal)
    notes = fit(tmp_path / "run", make_task=TASKS["least_squares"])
    assert notes.seen == list(range(9)) and reads[0].calls == 10
    again = [line for line in notes.said if "trying again in 0 s" in line]  # the run's other lines say its defaults
    assert len(again) == 5 and sum("attempt 3 of 5" in line for line in again) == 1, again
    found, expected = (held(workdir, make_task=TASKS["least_squares"]) for workdir in (tmp_path / "run", cheap))
    assert_same_leaves(named(found), named(expected))
