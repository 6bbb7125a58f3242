"""Runs that are stopped, damaged and moved."""

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config.run import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
)
from ddpm_jax.host import lock
from ddpm_jax.runs import checkpoint, sealing
from ddpm_jax.train import loop, tasks
from ddpm_jax.train.metrics import MetricsLog, read_metrics
from ddpm_jax.train.state import TrainState
from tests.train.tasks import autoencoder, least_squares

# Everything a state can hold: t is drawn by importance, and so few t that their histories are full at step 3.
CONFIG = Config(
    data=DataConfig(flip=True),
    schedule=ScheduleConfig(num_timesteps=4, arguments={"beta_end": 0.999}),
    objective=ObjectiveConfig(
        loss="hybrid", variance="learned_range", timesteps="importance", timesteps_arguments={"history": 2}
    ),
    model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), dropout=0.2, num_groups=2),
    optimizer=OptimizerConfig(warmup_steps=2, decay_steps=None, ema_decays=(0.9,), ema_sigmas=(0.1,)),
    sample=SampleConfig(num_steps=2, num_images=4),
    train=TrainConfig(num_steps=8, batch_size=8, log_every=2, checkpoint_every=2, sample_every=8, keep_checkpoints=2),
)


pytestmark = pytest.mark.usefixtures("optax_promotes")


class Notes:
    """A report that remembers."""

    def __init__(self):
        self.said, self.seen, self.logged = [], [], []

    def start(self, first_step, num_steps):
        self.seen.append(first_step)

    def step(self, step):
        self.seen.append(step)

    def metrics(self, step, values):
        self.logged.append((step, values["loss"]))

    def say(self, message):
        self.said.append(message)


def with_steps(n, config=CONFIG):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=n))


def fit(workdir, config=CONFIG, make_task=tasks.make):
    notes = Notes()
    loop.fit(config, workdir, notes, make_task)
    return notes


def leaves(workdir, items=sealing.ITEMS, make_task=tasks.make):
    """All arrays of the newest checkpoint, by name."""
    run = loop.prepare(checkpoint.load_run(workdir).config, make_task=make_task)
    template = on_first_device(jax.eval_shape(run.init))
    wanted = checkpoint.items_of(template)
    with checkpoint.checkpoints(workdir) as saved:
        return {
            name + jax.tree_util.keystr(path): np.asarray(leaf)
            for name in items
            if name in wanted
            for path, leaf in jax.tree_util.tree_leaves_with_path(saved.restore_item(name, wanted[name], print))
        }


def named(state, items=sealing.ITEMS):
    """All arrays of a state, named as in its checkpoint."""
    return {
        name + jax.tree_util.keystr(path): np.asarray(leaf)
        for name, item in checkpoint.items_of(state).items()
        if name in items
        for path, leaf in jax.tree_util.tree_leaves_with_path(item)
    }


def on_first_device(template):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), template)


def assert_same_leaves(a, b):
    assert a.keys() == b.keys() and len(a) >= 10
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


TASKS = {"diffusion": tasks.make, "least_squares": least_squares, "autoencoder": autoencoder}
every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(workdir, notes) of a run that was left alone, by the name of its task."""

    @functools.cache
    def whole(task):
        workdir = tmp_path_factory.mktemp("runs") / task
        with jax.numpy_dtype_promotion("standard"):
            return workdir, fit(workdir, make_task=TASKS[task])

    return whole


# ------------------------------------------------------------------------------------------------------- identities


@every_task
def test_n_steps_are_k_steps_and_a_resume_bitwise(uninterrupted, tmp_path, task):
    (whole, notes), make = uninterrupted(task), TASKS[task]
    with jax.default_prng_impl("rbg"):  # as JAX_DEFAULT_PRNG_IMPL on many TPUs
        first = fit(tmp_path / "run", with_steps(4), make)
    second = fit(tmp_path / "run", make_task=make)
    assert first.seen == [0, 1, 2, 3, 4] and second.seen == [4, 5, 6, 7, 8] and notes.seen == list(range(9))
    assert_same_leaves(leaves(tmp_path / "run", make_task=make), leaves(whole, make_task=make))
    assert first.logged + second.logged == notes.logged
    metrics = lambda w: [(m["step"], m["loss"]) for m in read_metrics(w / "metrics.jsonl")]
    assert metrics(tmp_path / "run") == metrics(whole) == notes.logged
    assert (tmp_path / "run" / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


def test_a_finished_run_changes_nothing_but_its_pictures(uninterrupted):
    whole, _ = uninterrupted("least_squares")
    before = leaves(whole, make_task=least_squares)
    assert fit(whole, make_task=least_squares).seen == [8]
    assert_same_leaves(leaves(whole, make_task=least_squares), before)


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from tests.runs.test_checkpoint import CONFIG, TASKS, Notes, loop

class Killed(Notes):
    def step(self, step):
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

loop.fit(CONFIG, Path(sys.argv[1]), Killed(), TASKS[sys.argv[3]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, step", [("diffusion", 5), ("autoencoder", 5), *(("least_squares", k) for k in (1, 5, 7))]
)
def test_kill_9_and_resume_bitwise(uninterrupted, tmp_path, task, step):
    (whole, _), make = uninterrupted(task), TASKS[task]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(step), task]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent.parent).returncode == -signal.SIGKILL
    resumed = fit(tmp_path / "run", make_task=make)
    # Step 4's checkpoint may still have been on its way when step 5 was killed; then it goes on from 2.
    assert resumed.seen[0] in {1: [0], 5: [2, 4], 7: [4, 6]}[step]
    assert_same_leaves(leaves(tmp_path / "run", make_task=make), leaves(whole, make_task=make))
    assert [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [2, 4, 6, 8]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(uninterrupted, tmp_path, number):
    """After the step that runs; what goes on from there ends in the same bits. Who listened before does so again."""
    before = signal.getsignal(number)

    class Sending(Notes):
        def step(self, step):
            super().step(step)
            if step == 3:
                signal.raise_signal(number)

    notes = Sending()
    assert loop.fit(CONFIG, tmp_path / "run", notes, least_squares) == 3
    assert "asked to stop: step 3 is the last for now, and its state is being saved" in notes.said
    assert signal.getsignal(number) is before
    fit(tmp_path / "run", make_task=least_squares)
    assert_same_leaves(
        leaves(tmp_path / "run", make_task=least_squares),
        leaves(uninterrupted("least_squares")[0], make_task=least_squares),
    )


@pytest.mark.slow
@every_task
def test_restoring_onto_another_number_of_devices(uninterrupted, task):
    """The run used 4 devices: the same arrays come back on 1 and on 2, and go on training there."""
    (whole, _), make = uninterrupted(task), TASKS[task]
    expected = leaves(whole, make_task=make)
    for n in (1, 2):
        run = loop.prepare(with_steps(9), jax.local_devices()[:n], make_task=make)
        template = loop.step.replicated(jax.eval_shape(run.init), run.devices)
        with checkpoint.checkpoints(whole) as saved:
            state = saved.restore(template, print)
        assert_same_leaves(named(state), expected)
        assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == n
        state, metrics = run.train_step(state, run.batch(8))
        assert int(state.step) == 9 and np.isfinite(float(metrics["loss"]))


def test_asynchronous_saves_hold_the_state_they_were_given(tmp_path):
    """Training goes on, with donated buffers, while a checkpoint is written."""
    big = {"w": jnp.zeros((2000, 1000))}
    state = TrainState(jnp.int32(0), big, jax.tree.map(jnp.copy, big), jax.tree.map(jnp.copy, big))
    donated = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0)
    with checkpoint.checkpoints(tmp_path, keep=2) as saved:
        for _ in range(4):
            state = donated(state)
            saved.save(state)
            for _ in range(3):
                state = donated(state)
    template = on_first_device(jax.eval_shape(lambda: state))
    with checkpoint.checkpoints(tmp_path) as saved:
        assert sorted(p.name for p in saved.directory.iterdir()) == ["13", "9"]
        found = saved.restore(template, pytest.fail)
    assert int(found.step) == 13 and (np.asarray(found.params["w"]) == 13).all()


# -------------------------------------------------------------------------------------------------------- behaviour


@pytest.fixture
def run(uninterrupted, tmp_path):
    """A copy of the finished run, to be damaged. It has checkpoints 6 and 8."""
    shutil.copytree(uninterrupted("least_squares")[0], tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["6", "8"]
    return tmp_path / "run"


def largest(item):
    return max((p for p in item.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_any_damage_to_any_file_is_seen(run):
    directory = run / "checkpoints" / "8"
    assert sealing.damage(directory) is None
    for path in (p for item in sealing.ITEMS for p in (directory / item).rglob("*") if p.is_file()):
        content = path.read_bytes()
        for harm in (truncate, flip_a_bit, Path.unlink) if content else (Path.unlink,):
            harm(path)
            assert path.name in sealing.damage(directory)
            path.write_bytes(content)
    assert sealing.damage(directory) is None


@pytest.mark.slow  # test_damage.py has a hundred
@pytest.mark.parametrize(
    "damage, item", [(truncate, "params"), (flip_a_bit, "opt_state"), (Path.unlink, "timestep_state")]
)
def test_a_damaged_checkpoint_falls_back_to_the_last_good_one(run, uninterrupted, damage, item):
    damage(largest(run / "checkpoints" / "8" / item))  # every kind of damage to every file: test_damage
    notes = fit(run, make_task=least_squares)
    assert notes.seen == [6, 7, 8]
    assert len(notes.said) == 1 and "checkpoint 8 is damaged (" in notes.said[0] and "going on from 6" in notes.said[0]
    whole, _ = uninterrupted("least_squares")
    assert_same_leaves(leaves(run, make_task=least_squares), leaves(whole, make_task=least_squares))
    assert (run / "damaged" / "8").is_dir()  # set aside, not deleted


def test_sampling_from_a_damaged_checkpoint_moves_nothing(run):
    truncate(largest(run / "checkpoints" / "8" / "ema_params"))
    said, template = [], jax.eval_shape(loop.prepare(CONFIG, make_task=least_squares).init).ema_params
    checkpoint.restore_ema_and_step(run, template, said.append)
    assert len(said) == 1 and "checkpoint 8 is damaged (" in said[0] and "using 6" in said[0]
    assert (run / "checkpoints" / "8").is_dir()


def test_all_checkpoints_damaged_is_an_error_that_lists_them(run):
    for step in (6, 8):
        flip_a_bit(largest(run / "checkpoints" / str(step) / "params"))
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(8: .*; 6: .*\)"):
        fit(run, make_task=least_squares)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["6", "8"]


def test_a_half_written_checkpoint_is_not_taken_for_one(run):
    """Whoever goes on with another JAX is told so."""
    shutil.copytree(run / "checkpoints" / "8", run / "checkpoints" / "10.orbax-checkpoint-tmp-1")
    start = json.loads((run / "environment.jsonl").read_text().splitlines()[-1])
    start["versions"]["jax"] = "0.9"
    (run / "environment.jsonl").write_text(json.dumps(start) + "\n")
    notes = fit(run, make_task=least_squares)
    assert notes.seen == [8]
    assert [said for said in notes.said if f"jax 0.9, now {jax.__version__}: not in the bits" in said]
    assert fit(run, make_task=least_squares).said == []


@pytest.mark.slow
def test_without_a_seal(run):
    (run / "checkpoints" / "8" / "seal.json").unlink()
    notes = fit(run, make_task=least_squares)
    assert notes.seen == [6, 7, 8] and "no seal.json" in notes.said[0]
    for step in (6, 8):
        (run / "checkpoints" / str(step) / "seal.json").unlink()
    notes = fit(run, make_task=least_squares)
    assert notes.seen == list(range(9)) and "going on from the beginning" in notes.said[-1]


def test_another_configuration_is_refused(run):
    other = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=0.1))
    before = 6e-3  # of the digits
    with pytest.raises(ValueError, match=rf"another configuration \(optimizer.learning_rate: {before}, now 0.1\)"):
        fit(run, other)
    with pytest.raises(ValueError, match=r"train.seed: 0, now 1"):
        fit(run, dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, seed=1)))


@pytest.mark.parametrize(
    ("section", "change", "same"),
    [("train", {"batch_size": 3}, True), ("optimizer", {"learning_rate": 1e-4}, True),
     ("model", {"dropout": 0.5}, True), ("model", {"channels": 32}, False), ("objective", {"prediction": "v"}, False)],
)  # fmt: skip
def test_with_which_settings_another_run_may_go_on(section, change, same, tmp_path):
    """Those of a network whose output means the same."""
    checkpoint.open_run(tmp_path / "run", checkpoint.RunInfo(Config(), (8, 8, 1), 9))
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    changed = dataclasses.replace(Config(), **{section: dataclasses.replace(getattr(Config(), section), **change)})
    with pytest.raises(ValueError, match="belongs to another configuration") as error:
        checkpoint.open_run(tmp_path / "run", checkpoint.RunInfo(changed, (8, 8, 1), 9))
    assert ("--train.begin-from" in str(error.value)) == same


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty and holds no run \(no config.json\)"):
        fit(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_only_one_trains_in_a_directory(tmp_path):
    """The second says who is there, and changes nothing; whose lock was taken away writes nothing more."""
    config, run = with_steps(2), tmp_path / "run"

    class Meanwhile(Notes):
        def step(self, step):
            before = sorted(run.rglob("*"))
            with pytest.raises(OSError, match=f"{run} is in use by process .*: end that one first, or choose another"):
                loop.fit(config, run, Notes(), least_squares)
            assert sorted(run.rglob("*")) == before

    loop.fit(config, run, Meanwhile(), least_squares)
    assert not (run / "lock.json").exists()

    class Late(Notes):
        def step(self, step):
            (run / "lock.json").write_text("another's")
            locks[-1]._lost.wait(60)

    locks, held = [], lock.Lock.__init__
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=r"lock.json, .* nothing more is written"):
        patch.setattr(lock, "BEAT", 0.01)
        patch.setattr(lock.Lock, "__init__", lambda self, *arguments: locks.append(self) or held(self, *arguments))
        loop.fit(with_steps(4), run, Late(), least_squares)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["2"]


def test_the_directory_says_what_the_run_is(uninterrupted):
    whole, _ = uninterrupted("least_squares")
    info = checkpoint.load_run(whole)
    assert info == checkpoint.RunInfo(CONFIG, (8, 8, 1), 1797, info.fingerprint)
    assert info.fingerprint.keys() == {"image"}
    first = json.loads((whole / "environment.jsonl").read_text().splitlines()[0])
    assert first["from_step"] == 0 and first["versions"]["jax"] == jax.__version__ and "git_commit" in first
    assert first["devices"].startswith("4 x")


def test_a_broken_config_is_one_clear_error(run):
    values = json.loads((run / "config.json").read_text())
    values["config"]["model"]["chanels"] = 3
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config.json: not a configuration: .*chanels"):
        checkpoint.load_run(run)
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: Expecting"):
        checkpoint.load_run(run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    config = dataclasses.replace(
        CONFIG, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=0, decay_steps=None, clip_norm=1e30)
    )
    with pytest.raises(FloatingPointError, match=r"(loss|grad_norm) of step \d is (nan|inf)"):
        fit(tmp_path / "run", config, least_squares)
    template = jax.eval_shape(loop.prepare(CONFIG, make_task=least_squares).init)
    if any((tmp_path / "run" / "checkpoints").glob("[0-9]*")):
        assert np.isfinite(
            jax.tree.leaves(checkpoint.restore_ema_and_step(tmp_path / "run", template.ema_params, print)[0])[0]
        ).all()


def test_metrics_survive_a_line_cut_by_a_kill(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 0.5}\n{"step": 6, "lo')
    log = MetricsLog(tmp_path, 3)
    time.sleep(0.01)
    values = log.write(4, {"loss": 0.25}, batch_size=10)
    log.close()
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path / "metrics.jsonl")] == [(2, 1), (4, 0.25)]
    assert 0 < values["images_per_second"] <= 1000
