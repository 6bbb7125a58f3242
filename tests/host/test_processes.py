"""Several processes as one run, for real: they talk through gloo, on this machine."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax.config.run import Config, ObjectiveConfig, OptimizerConfig
from ddpm_jax.host import processes
from ddpm_jax.runs import checkpoint, posthoc
from ddpm_jax.train import loop
from ddpm_jax.train.metrics import read_metrics
from tests.runs.test_checkpoint import CONFIG as RUN
from tests.runs.test_checkpoint import TASKS, Notes, assert_same_leaves, named
from tests.runs.test_checkpoint import leaves as leaves_of

# Adam turns rounding into steps of its rate where a gradient is nearly 0.
CONFIG = dataclasses.replace(
    RUN,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, decay_steps=None, ema_sigmas=(0.05, 0.15)),
    train=dataclasses.replace(
        RUN.train,
        num_steps=50,
        log_every=1,
        checkpoint_every=25,
        sample_every=50,
        keep_checkpoints=9,
        average_every=10,
    ),
)
ITEMS = ("params", "ema_params", "opt_state")
ROOT = Path(__file__).parent.parent.parent


pytestmark = pytest.mark.usefixtures("optax_promotes")


def launch(
    workdir, num_processes, num_devices, *options, record=False, task="diffusion", numbers=None, last=(), environment=()
):
    """The processes of one run, each with so many devices, started: those with these numbers, if not all; the last of
    them with more options and variables."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"}
    numbers, started = range(num_processes) if numbers is None else numbers, []
    for k, i in enumerate(numbers):
        is_last = k == len(numbers) - 1
        seen = f"{workdir}.{i}.npz" if record else "-"
        command = [
            sys.executable,
            "-m",
            "tests.host.one_process",
            workdir,
            task,
            seen,
            coordinator,
            num_processes,
            i,
            *options,
            *(last if is_last else ()),
        ]
        variables = os.environ | flags | (dict(environment) if is_last else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*map(str, command)], cwd=ROOT, env=variables, **pipes))
    return started


def ended(started, timeout=900):
    """[(exit status, stdout, stderr)] of processes that end by themselves; those that do not are killed."""
    deadline, results = time.monotonic() + timeout, []
    try:
        for process in started:
            out, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
            results.append((process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return results


def train(workdir, num_processes, num_devices, *options, record=False, task="diffusion"):
    """A run that goes well: what its first process said."""
    results = ended(launch(workdir, num_processes, num_devices, *options, record=record, task=task))
    assert [status for status, _, _ in results] == [0] * num_processes, results
    return results[0][1] + results[0][2]


def leaves(workdir, items=ITEMS, task="diffusion"):
    return leaves_of(workdir, items, TASKS[task])


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


def examples(workdir, num_processes):
    """Every (x_0, t, eps) that the processes computed a loss of, as sorted bytes."""
    found = []
    for i in range(num_processes):
        with np.load(f"{workdir}.{i}.npz") as seen:
            found += [b"".join(value.tobytes() for value in row) for row in zip(*seen.values(), strict=True)]
    return sorted(found)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process with 4 devices."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    train(workdir, 1, 4, record=True)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes with 2 devices each."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    train(workdir, 2, 2, record=True)
    return workdir


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """As `two`, of a task that is none of diffusion's."""
    workdir = tmp_path_factory.mktemp("runs") / "cheap"
    train(workdir, 2, 2, task="least_squares")
    return workdir


# --------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.slow
def test_two_processes_are_one(one, two):
    """The same images in the same order, t and eps bit for bit; losses but for the rounding of sums."""
    seen = examples(one, 1)
    assert len(seen) == 50 * 8 == len(set(seen))
    assert examples(two, 2) == seen
    assert len(np.load(f"{two}.1.npz")["t"]) == 50 * 8 // 2  # each process computes its share
    assert len(losses(two)) == 50
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_averages_of_two_processes_are_those_of_one(one, two):
    """Made of what was kept on the way: a width that the checkpoint has too; another, as the run of one has it."""
    vector = lambda tree: np.concatenate([np.ravel(leaf) for leaf in tree])
    held = leaves(two, (*ITEMS, "ema_stack"))
    of = lambda item: [leaf for name, leaf in held.items() if name.startswith(item)]
    kept, other = (posthoc.reconstruct(two, sigma_rel, pytest.fail) for sigma_rel in (0.05, 0.1))
    expected = posthoc.reconstruct(one, 0.1, pytest.fail)
    assert kept.step == other.step == expected.step == 50
    for a, b in zip(jax.tree.leaves(kept.params), of("ema_stack"), strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-5, atol=1e-7)
    # As one vector: a bias before a normalization has no gradient, of whose rounding Adam makes steps.
    a, b, params = (
        vector(tree) for tree in (jax.tree.leaves(other.params), jax.tree.leaves(expected.params), of("params"))
    )
    assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b)
    assert np.linalg.norm(a - params) > 1e-3 * np.linalg.norm(b)  # an average


@pytest.mark.slow
def test_one_device_is_four(one, tmp_path):
    train(tmp_path / "run", 1, 1, record=True)
    assert examples(tmp_path / "run", 1) == examples(one, 1)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_are_one_for_every_task(cheap, tmp_path):
    """The losses and the state, that of the task too, of least squares; but for the rounding of sums."""
    train(tmp_path / "run", 1, 4, task="least_squares")
    np.testing.assert_allclose(losses(cheap), losses(tmp_path / "run"), rtol=1e-5)
    items = (*ITEMS, "timestep_state", "ema_stack")
    a, b = (leaves(workdir, items, "least_squares") for workdir in (cheap, tmp_path / "run"))
    assert a.keys() == b.keys() and {"timestep_state.total", "timestep_state.last"} <= a.keys()
    for name, leaf in a.items():
        np.testing.assert_allclose(leaf, b[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("task, mesh", [("least_squares", "data 2 fsdp 2"), ("diffusion", "fsdp 4")])
def test_a_mesh_over_two_processes(one, cheap, tmp_path, task, mesh):
    """fsdp 4 divides every large array over both processes, and saves and gathers it from there."""
    options, alone = ["--parallel.mesh", *mesh.split()], {"diffusion": one, "least_squares": cheap}[task]
    train(tmp_path / "run", 2, 2, *options, "--train.num-steps", 25, task=task)
    train(tmp_path / "run", 2, 2, *options, task=task)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-5)
    assert (tmp_path / "run" / "samples.png").is_file()


@pytest.mark.slow
def test_the_first_process_writes(two):
    """A line per step, one environment, a picture; nothing of it twice."""
    assert [line["step"] for line in read_metrics(two / "metrics.jsonl")] == list(range(1, 51))
    assert len((two / "environment.jsonl").read_text().splitlines()) == 1
    assert '"devices": "4 x cpu", "processes": 2' in (two / "environment.jsonl").read_text()
    assert not list(two.rglob("*.partial")) and (two / "samples.png").is_file() and (two / "loss.png").is_file()


# ------------------------------------------------------------------------------------------------- checkpoints, stops


@pytest.mark.slow
def test_a_run_moves_between_one_and_two_processes(one, two, tmp_path):
    """What is restored is bit for bit what was saved, and goes on as it would have."""
    run = tmp_path / "run"
    train(run, 2, 2, "--train.num-steps", 20)
    saved = leaves(run)
    restored = loop.prepare(checkpoint.load_run(run).config)
    with checkpoint.checkpoints(run) as checkpoints:
        state = checkpoints.restore(restored.template(), pytest.fail)
    found = named(state, ITEMS)
    assert int(state.step) == 20
    assert_same_leaves(found, saved)
    train(run, 1, 4, "--train.num-steps", 40)
    train(run, 2, 2)
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)


def interrupted(workdir, num_processes, num_devices, send, step, *options, task="diffusion"):
    """A run of which some processes are sent a signal after a step, just then."""
    started = launch(workdir, num_processes, num_devices, *options, task=task)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [process.kill() for process in started])
        deadline = time.monotonic() + 900
        while len(read_metrics(workdir / "metrics.jsonl")) < step:
            assert time.monotonic() < deadline and all(process.poll() is None for process in started)
            time.sleep(0.01)
        for process, number in zip(started, send, strict=True):
            if number:
                process.send_signal(number)
        stack.pop_all()
    return started


LONG = ("--train.num-steps", 100_000, "--train.checkpoint-every", 100_000, "--train.sample-every", 100_000)


@pytest.mark.slow
def test_sigterm_saves_and_exits_0(one, tmp_path):
    """After a step between checkpoints; the same command goes on from it, and ends in the same bits."""
    run = tmp_path / "run"
    [(status, out, _)] = ended(interrupted(run, 1, 4, [signal.SIGTERM], 3, *LONG))
    stopped = int(re.search(r"stopped after (\d+) steps; the same command goes on", out)[1])
    assert status == 0 and 3 <= stopped and [int(p.name) for p in (run / "checkpoints").iterdir()] == [stopped]
    train(run, 1, 4, "--train.num-steps", max(50, stopped + 1))
    if stopped < 50:  # or the machine was slow to send the signal
        assert_same_leaves(leaves(run), leaves(one))


@pytest.mark.slow
@pytest.mark.parametrize("send", [(0, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)], ids=["one", "both"])
def test_sigterm_of_one_process_stops_all(cheap, tmp_path, send):
    run = tmp_path / "run"
    results = ended(interrupted(run, 2, 2, send, 3, *LONG, task="least_squares"))
    assert [status for status, _, _ in results] == [0, 0], results
    stopped = int(re.search(r"stopped after (\d+) steps", results[0][1])[1])
    assert [int(p.name) for p in (run / "checkpoints").iterdir()] == [stopped]
    train(run, 2, 2, "--train.num-steps", max(50, stopped + 1), task="least_squares")
    if stopped < 50:
        assert_same_leaves(leaves(run, task="least_squares"), leaves(cheap, task="least_squares"))


@pytest.mark.slow
def test_two_jobs_in_one_directory(cheap, tmp_path):
    """One trains, as if it were alone; the other one says who does. Both are one process, or both are two."""
    for num_processes, num_devices in ((1, 4), (2, 2)):
        run = tmp_path / str(num_processes)
        jobs = [launch(run, num_processes, num_devices, task="least_squares") for _ in range(2)]
        results = ended([process for job in jobs for process in job])
        both = sorted([results[:num_processes], results[num_processes:]], key=lambda results: results[0][0])
        assert [[status for status, _, _ in results] for results in both] == [[0] * num_processes, [2] * num_processes]
        for _, _, err in both[1]:
            assert re.search(rf"ddpm-jax: {run} is in use by process \d+ on .*, there since .*\n\Z", err), err
        assert not list(run.glob("lock*"))
    assert_same_leaves(leaves(run, task="least_squares"), leaves(cheap, task="least_squares"))


@pytest.mark.slow
def test_a_checkpoint_after_minutes(tmp_path, monkeypatch):
    """A clock that makes a minute pass per step: at 2 and 4 of 5, as the log is written; step 5 is the last."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, num_steps=5, checkpoint_minutes=2))
    now = [0.0]

    class Minutes(Notes):
        def step(self, step):
            now[0] += 60

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    loop.fit(config, tmp_path / "run", Minutes(), TASKS["least_squares"])
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == [2, 4, 5]
    with pytest.raises(ValueError, match=r"train.checkpoint_minutes must be positive, got 0"):
        dataclasses.replace(Config(), train=dataclasses.replace(CONFIG.train, checkpoint_minutes=0))


# ----------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost:1", None, None), "go together, got localhost:1, None and None"),
        ((None, 2, 0), "go together, got None, 2 and 0"),
        (("localhost", 2, 0), r"--coordinator must be HOST:PORT with a port from 1 to 65535, got 'localhost'"),
        (("localhost:0", 2, 0), "got 'localhost:0'"),
        (("localhost:70000", 2, 0), "got 'localhost:70000'"),
        (("localhost:1", 2, 2), "--process-id must be at least 0 and below --num-processes, got 2 of 2"),
        (("localhost:1", 2, -1), "got -1 of 2"),
        (("localhost:1", 0, 0), "got 0 of 0"),
        (("localhost:1", 2, 0, 0.0), "--wait-seconds must be positive, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.start(*arguments)


def test_what_a_machine_says(monkeypatch):
    """In a Slurm step of several tasks JAX finds the others; not in an allocation, nor where one process is asked."""
    joined, found = [], ("host0:1234", 4, 1, [1])
    monkeypatch.setattr(processes, "_join", lambda *args: joined.append(args[:-1]))
    monkeypatch.setattr(processes, "_found", lambda: found)
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
    monkeypatch.setenv("SLURM_NTASKS", "4")
    processes.start()
    assert joined == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    processes.start(num_processes=1)
    assert joined == []
    processes.start()
    assert joined == [(*found, 300)]
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: object())
    processes.start(wait_seconds=7)
    assert joined == [(*found, 300), (*found, 7)]


# --------------------------------------------------------------------------------------------------------------- chaos


@pytest.mark.slow
@pytest.mark.parametrize("num_processes, kills", [(1, 8), (2, 4)])
def test_kills_at_random_moments(num_processes, kills):
    """kill -9, half of them while a checkpoint is written: every resume has the bits of a run that was left alone."""
    command = [sys.executable, "experiments/chaos.py", "--kills", str(kills), "--processes", str(num_processes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tally = json.loads(done.stdout.splitlines()[-1].partition("; ")[2])
    assert tally["kills"] == kills and tally["while_saving"] >= kills // 4
    assert tally["compared"] >= 3 * kills // 4 and tally["runs"] >= 1


@pytest.mark.slow
def test_kills_while_a_run_is_read():
    """A run that keeps one checkpoint, killed beside `sample` and `nll`: no error, and what they give is its."""
    command = [sys.executable, "experiments/chaos.py", "--kind", "readers", "--kills", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tally = json.loads(done.stdout.splitlines()[-1].partition("; ")[2])
    assert tally["kills"] == 3 and tally["pictures"] >= 1 and tally["numbers"] >= 1


@pytest.mark.slow
def test_interrupts_at_random_moments():
    """Ctrl-C, also while a run starts, also twice: no traceback, and what is said to be saved is there, bit for bit."""
    command = [sys.executable, "experiments/chaos.py", "--kind", "interrupts", "--kills", "4", "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tally = json.loads(done.stdout.splitlines()[-1].partition("; ")[2])
    assert tally["kills"] == 4 and tally["compared"] >= 1 and tally["runs"] >= 1
