"""Checkpoints on other devices and in other runs."""

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax import cli
from ddpm_jax.cli.parsing import parse
from ddpm_jax.cli.train import TrainArguments
from ddpm_jax.config.run import OptimizerConfig, ParallelConfig
from ddpm_jax.runs import checkpoint, leaves, sealing
from ddpm_jax.train import begin, loop, state, task, tasks
from tests.runs.test_checkpoint import CONFIG, Notes, assert_same_leaves, fit, named, on_first_device, with_steps
from tests.train.tasks import least_squares
from tests.train.test_step import CONFIG as ADAM
from tests.train.test_step import HYBRID, SHORT, Small, diffusion, reader

REPOSITORY = Path(__file__).parent.parent.parent
# they need a whole run, and restore it or go on from it
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotes")]
EXPERIMENT = "from tests.runs.test_checkpoint import CONFIG as config\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """8 steps; checkpoints 2, 4, 6 and 8."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_dtype_promotion("standard"):
        fit(workdir, with_train(keep_checkpoints=4))
    return workdir


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """The same, of a task that is quick to compile."""
    workdir = tmp_path_factory.mktemp("runs") / "cheap"
    with jax.numpy_dtype_promotion("standard"):
        fit(workdir, with_train(keep_checkpoints=4), least_squares)
    return workdir


@pytest.fixture(scope="module")
def half(cheap, tmp_path_factory):
    """That run, stopped after 4 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "half"
    shutil.copytree(cheap, workdir)
    for step in ("6", "8"):
        shutil.rmtree(workdir / "checkpoints" / step)
    return workdir


@pytest.fixture(scope="module")
def prepared():
    with jax.numpy_dtype_promotion("standard"):
        return loop.prepare(CONFIG)


def with_train(config=CONFIG, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def held(workdir, template=None, make_task=tasks.make):
    """The newest state of a run."""
    with checkpoint.checkpoints(workdir) as saved:
        return saved.restore(template or run_template(make_task), pytest.fail)


@functools.cache
def run_template(make_task=tasks.make):
    return on_first_device(jax.eval_shape(loop.prepare(CONFIG, make_task=make_task).init))


cheaply = functools.partial(held, make_task=least_squares)


# ---------------------------------------------------------------------------------------------------- other devices


def small_run(sizes):
    """(train_step, template, the state before step 0, the batch) of a small network; sizes {} is pmap."""
    trained = diffusion(Small(2), state.make_optimizer(ADAM), HYBRID, SHORT)
    spread = loop.make_spread(ParallelConfig(sizes), jax.local_devices())
    train_step = spread.make_train_step(trained, ema_decay=0.5)
    init = lambda: task.init(trained, jax.random.key(0))
    template = spread.place(jax.eval_shape(init))
    train_state = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))()
    return train_step, template, train_state, spread.shard(reader(), 8)


def restore_anywhere(folder, counts):
    """On this process's devices: write after 3 steps of either path, then restore what every other process wrote."""
    n = jax.local_device_count()
    layouts = [{}, {"fsdp": n}] if n > 1 else [{}]
    runs = [small_run(sizes) for sizes in layouts]
    for name, (train_step, _, train_state, batch) in zip(("pmap", "mesh"), runs, strict=False):
        for _ in range(3):
            train_state, _ = train_step(train_state, batch)
        with checkpoint.checkpoints(folder / f"{name}_{n}") as saved:
            saved.save(train_state)
        np.savez(folder / f"{name}_{n}.npz", **named(train_state))
    (folder / f"written_{n}").touch()
    deadline = time.monotonic() + 480
    while not all((folder / f"written_{m}").exists() for m in counts):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for train_step, template, _, batch in runs:
        for path in sorted(folder.glob("*.npz")):
            with checkpoint.checkpoints(folder / path.stem) as saved:
                found = saved.restore(template, sys.exit)
            assert int(found.step) == 3
            for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(template), strict=True):
                assert leaf.sharding == expected.sharding
            with np.load(path) as expected:
                assert sorted(expected.files) == sorted(named(found))
                for name, array in named(found).items():
                    np.testing.assert_array_equal(array, expected[name], err_msg=f"{path.stem} on {n}: {name}")
            after, metrics = train_step(found, batch)
            print(json.dumps([path.stem, n, int(after.step), float(metrics["loss"]), float(metrics["grad_norm"])]))


ANYWHERE = """
import sys
from pathlib import Path
from tests.runs.test_checkpoint_guards import restore_anywhere
restore_anywhere(Path(sys.argv[1]), (1, 2, 4, 8))
"""


@pytest.mark.slow
def test_a_checkpoint_restores_on_any_number_of_devices(tmp_path):
    """1, 2, 4 and 8 devices, each in a process of its own that has no more: all to all, pmap and mesh; bit for bit.

    And it goes on there: the next step's loss and gradient are those of the others.
    """
    processes = []
    for n in (1, 2, 4, 8):
        flags = f"--xla_force_host_platform_device_count={n}"
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", ANYWHERE, str(tmp_path)]
        processes.append(
            subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    results = []
    for process in processes:
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error.decode()[-3000:]
        results += [json.loads(line) for line in out.decode().splitlines() if line.startswith("[")]
    assert len(results) == 7 * 7  # pmap on 1, 2, 4, 8 and a mesh on 2, 4, 8: from each to each
    for *_, step, loss, grad_norm in results:
        assert step == 4
        # Adam's first steps on other devices differ by rounding, see test_states_agree_on_1_2_and_4_devices.
        np.testing.assert_allclose([loss, grad_norm], results[0][3:], rtol=1e-4)
    for source in {result[0] for result in results}:
        mine = [result[3:] for result in results if result[0] == source]
        np.testing.assert_allclose(mine, [mine[0]] * len(mine), rtol=1e-5)


@pytest.mark.parametrize("device", ["TPU_63(process=7,(3,3,3,0))", "cuda:7"])
def test_a_checkpoint_of_devices_that_are_not_here(whole, tmp_path, device):
    """As a TPU or GPU writes it: Orbax notes the devices of every array, and nothing else differs."""
    run, expected = tmp_path / "run", held(whole)
    shutil.copytree(whole, run)
    directory = run / "checkpoints" / "8"
    for path in directory.glob("*/_sharding"):
        text, there = path.read_text(), json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": device})
        noted = json.loads(text)
        assert noted and "device" in text
        path.write_text(json.dumps(dict.fromkeys(noted, there)))
    sealing.seal(directory)
    found = held(run)
    assert_same_leaves(named(found), named(expected))
    assert all(leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(found))
    assert_same_leaves(named(held(run, loop.prepare(CONFIG).template())), named(expected))


# ------------------------------------------------------------------------------------------------------- other runs


def first_state(run, directory, what, *, config=None, num_steps=8):
    """begin.first_state for this run, what it said, and the other run's step."""
    said = []
    train = dataclasses.replace((config or CONFIG).train, begin_from=str(directory), begin_with=what)
    train = dataclasses.replace(train, num_steps=num_steps)
    found, step = begin.first_state(train, run.template(), run.start, said.append)
    return found, said, step


@pytest.mark.parametrize("what, item", [("params", "params"), ("ema", "ema_params")])
def test_beginning_with_the_parameters_of_another_run(whole, prepared, what, item):
    found, said, step = first_state(prepared, whole, what)
    other, fresh = held(whole), prepared.init()
    expected = named(other, (item,)).values()
    for name in ("params", "ema_params"):
        for a, b in zip(named(found, (name,)).values(), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert_same_leaves(named(found, ("opt_state", "timestep_state")), named(fresh, ("opt_state", "timestep_state")))
    for a, b in zip(named(found, ("ema_stack",)).values(), expected, strict=True):
        np.testing.assert_array_equal(a, np.stack([b] * len(a)))
    assert int(found.step) == 0 and step == 8
    assert said == [f"beginning with {what} of {whole}, step 8"]
    for leaf, placed in zip(jax.tree.leaves(found), jax.tree.leaves(prepared.template()), strict=True):
        assert leaf.sharding == placed.sharding
    assert any((a != b).any() for a, b in zip(named(other, ("params",)).values(), named(fresh).values(), strict=False))
    prepared.train_step(found, prepared.batch(0))  # donates every buffer once


def test_a_fork_goes_on_as_the_other_run_would(cheap, half, tmp_path):
    """From step 4 to 8 in another directory: bit for bit the run that was never forked."""
    notes = fit(tmp_path / "fork", with_train(begin_from=str(half), num_steps=8), least_squares)
    assert notes.seen == [4, 5, 6, 7, 8]
    assert notes.said == [f"beginning with all of {half}, step 4"]
    assert_same_leaves(named(cheaply(tmp_path / "fork")), named(cheaply(cheap)))
    assert sorted(p.name for p in (half / "checkpoints").iterdir()) == ["2", "4"]


def test_it_begins_once(half, tmp_path):
    """Recorded in config.json; the other run may be gone when this one is stopped and goes on."""
    other, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(half, other)
    config = with_train(begin_from=str(other), begin_with="ema", num_steps=4)

    class Stops(Notes):
        def step(self, step):
            super().step(step)
            if step == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(config, run, stopped := Stops(), least_squares)
    assert stopped.said == [f"beginning with ema of {other}, step 4"]
    written = json.loads((run / "config.json").read_text())["config"]["train"]
    assert written["begin_from"] == str(other) and written["begin_with"] == "ema"
    assert json.loads((run / "environment.jsonl").read_text())["begun_from_step"] == 4
    shutil.move(other, tmp_path / "elsewhere")
    resumed = fit(run, config, least_squares)
    assert resumed.said == [] and resumed.seen == [0, 1, 2, 3, 4]
    shutil.move(tmp_path / "elsewhere", other)
    fit(tmp_path / "again", config, least_squares)
    assert_same_leaves(named(cheaply(run)), named(cheaply(tmp_path / "again")))
    with pytest.raises(ValueError, match=r"another configuration \(train.begin_from: .*, now None; train.begin_with"):
        fit(run, with_steps(4), least_squares)


def test_other_settings_in_the_same_directory_are_told_how_to_go_on(half, tmp_path):
    """The options that the message ends in do it; where the network is another one, there are none."""
    directory = tmp_path / "a run"
    shutil.copytree(half, directory)
    (tmp_path / "a run_2").mkdir()
    changed = dataclasses.replace(with_steps(4), optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=1e-3))
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.006, now 0\.001.*choose another") as error:
        fit(directory, changed, least_squares)
    options = str(error.value).partition("the same command with ")[2]
    expected = f"--train.begin-from '{directory}' --train.num-steps 8 --workdir '{directory}_3'"
    assert "go on from its step 4 with the new settings" in str(error.value) and options == expected
    arguments = parse(TrainArguments, shlex.split(options), "train", TrainArguments(changed))
    assert arguments.workdir is not None
    assert fit(arguments.workdir, arguments.config, least_squares).seen == [4, 5, 6, 7, 8]
    wider = dataclasses.replace(changed, model=dataclasses.replace(WIDER.model, channel_multipliers=(1, 2)))
    with pytest.raises(ValueError, match=r"now \(1, 2\).*\); choose another --workdir$"):
        fit(directory, wider, least_squares)


def test_an_optimizer_that_does_not_fit_begins_anew(whole):
    """The average, the parameters, the step and t's histories are taken; a warning lists what differs."""
    constant = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(warmup_steps=0, decay_steps=None))
    run = loop.prepare(constant)
    found, said, _ = first_state(run, whole, "all", config=constant, num_steps=9)
    other, fresh = held(whole), run.init()
    assert said[1:] == [
        f"opt_state of step 8 in {whole} does not fit and begins anew "
        "(1 leaf differs: opt_state.1.1.count: int32[] in the checkpoint, none here)"
    ]
    kept = ("params", "ema_params", "timestep_state")
    assert_same_leaves(named(found, kept), named(other, kept))
    assert_same_leaves(named(found, ("params", "opt_state")), named(dataclasses.replace(fresh, params=other.params),
                                                                    ("params", "opt_state")))  # fmt: skip
    assert int(found.step) == 8
    after, _ = run.train_step(found, run.batch(8))
    assert int(after.step) == 9


def test_a_fork_between_pmap_and_a_mesh(whole):
    run = loop.prepare(dataclasses.replace(CONFIG, parallel=ParallelConfig({"data": 2, "fsdp": 2})))
    for what, items in {"all": sealing.ITEMS, "params": ("params",)}.items():
        found, _, _ = first_state(run, whole, what, num_steps=9)
        assert_same_leaves(named(found, items), named(held(whole), items))
        for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(run.template()), strict=True):
            assert leaf.sharding == expected.sharding


WIDER = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, channels=8, num_res_blocks=2))


@pytest.mark.parametrize("what", ["all", "params", "ema"])
def test_another_network_is_refused_with_its_leaves(whole, tmp_path, what):
    """Both shapes of the first ten, and how many there are; there is no directory then."""
    with pytest.raises(ValueError) as error:
        fit(tmp_path / "run", with_train(WIDER, begin_from=str(whole), begin_with=what, num_steps=9))
    message = str(error.value)
    item = "ema_params" if what == "ema" else "params"
    assert message.startswith(f"train.begin_from: checkpoint 8 in {whole / 'checkpoints'} is of another network (")
    assert f"{item}.conv_in.kernel: float32[3, 3, 1, 4] in the checkpoint, float32[3, 3, 1, 8] here" in message
    count, rest = (int(n) for n in re.findall(r"\((\d+) leaves differ: .*; and (\d+) more\)", message)[0])
    assert count == rest + 10 == message.count(" here") + rest
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(template.params)}
        for template in (jax.eval_shape(loop.prepare(WIDER).init), run_template())
    )
    assert count == sum(ours.get(name) != theirs.get(name) for name in ours | theirs)
    assert not (tmp_path / "run").exists()


def test_a_runs_own_checkpoint_that_does_not_fit_it(whole):
    """As after an update of this package: the same listing, not Orbax's; and not cast to another dtype in silence."""
    narrow = dataclasses.replace(run_template(), ema_params=jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float16, sharding=leaf.sharding), run_template().ema_params
    ))  # fmt: skip
    count = len(jax.tree.leaves(run_template().ema_params))
    with checkpoint.checkpoints(whole) as saved:
        with pytest.raises(ValueError, match=rf"checkpoint 8 in .* is not of this configuration \({count} leaves diff"):
            saved.restore(narrow, pytest.fail)
        with pytest.raises(ValueError, match=r"float32\[4\] in the checkpoint, float16\[4\] here; .*; and \d+ more\)"):
            saved.restore_item("ema_params", narrow.ema_params, pytest.fail)
        with pytest.raises(ValueError, match=r"1 leaf differs: params.x: none in the checkpoint, float32\[4\] here"):
            saved.restore_item(
                "params", {**run_template().params, "x": run_template().params["conv_in"]["bias"]}, pytest.fail
            )


def test_the_listing():
    saved, wanted = {f"p.{i:02}": "float32[3]" for i in range(12)}, {f"p.{i:02}": "float32[4]" for i in range(11)}
    lines = leaves.misfits(saved, wanted)
    assert lines[0] == "p.00: float32[3] in the checkpoint, float32[4] here" and len(lines) == 12
    assert lines[-1] == "p.11: float32[3] in the checkpoint, none here"
    assert leaves.listing(lines) == f"12 leaves differ: {'; '.join(lines[:10])}; and 2 more"
    assert leaves.listing(lines[:10]) == f"10 leaves differ: {'; '.join(lines[:10])}"
    assert leaves.misfits(saved, saved) == []


@pytest.mark.parametrize(
    "options, message",
    [
        ("--train.begin-with ema", r"train.begin_with is for train.begin_from, got 'ema' without it"),
        ("--train.begin-from nowhere", r"train.begin_from: no run in nowhere: nowhere/config.json does not exist"),
        ("--train.begin-from EMPTY", r"train.begin_from: no checkpoint in .*/empty/checkpoints"),
        ("--train.begin-from WHOLE", r"'all' goes on from step 8 of .*: train.num_steps must be larger, got 8"),
        (
            "--train.begin-from WHOLE --train.begin-with emma",
            r"invalid choice 'emma' for argument '--train.begin-with'.*'all', 'params', 'ema'",
        ),
        ("--train.begin-from DAMAGED", r"every checkpoint in .* is damaged \(8: "),
    ],
)
def test_a_users_error_is_one_line(options, message, whole, tmp_path, monkeypatch, capsys):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    shutil.copytree(whole, empty, ignore=shutil.ignore_patterns("[0-9]"))
    shutil.copytree(whole, damaged)
    for step in (damaged / "checkpoints").iterdir():
        (step / "params" / "_METADATA").write_text("{")
    for name, path in {"WHOLE": whole, "EMPTY": empty, "DAMAGED": damaged}.items():
        options = options.replace(name, str(path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "experiment.py", *options.split()])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and re.search(message, error), error
    assert not (tmp_path / "runs").exists()
