"""Several steps in one program against as many calls of the step."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.config.run import Config, OptimizerConfig, ParallelConfig, SampleConfig, TrainConfig, differences
from ddpm_jax.train import loop, step
from tests.helpers import assert_train_refuses
from tests.runs.test_checkpoint import fit, leaves
from tests.train.test_mesh import SGD, assert_close, prepare
from tests.train.test_step import BATCH, Small, every_task, has_learned, reader

BATCHES = [np.roll(BATCH, i, axis=0) for i in range(6)]


pytestmark = pytest.mark.usefixtures("optax_promotes")


def run(train_step, train_state, batches, lengths):
    """(the state after calls of so many steps each, the metrics of every step); 1 is a batch by itself."""
    train_state, batches, metrics = jax.tree.map(jnp.copy, train_state), iter(batches), []
    for n in lengths:
        batch = next(batches) if n == 1 else step.Several(tuple(next(batches) for _ in range(n)))
        train_state, values = train_step(train_state, batch)
        rows = jax.tree.map(lambda x, n=n: np.reshape(x, n), values)
        metrics += [{name: column[i] for name, column in rows.items()} for i in range(n)]
    return jax.tree.map(np.asarray, train_state), metrics


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=["pmap", "mesh"])
@every_task
def test_scanned_steps_are_single_steps(sizes, make):
    """With dropout, a learned variance, t by importance, a gradient that is clipped, and momentum.

    To the last bit or two of float32: XLA fuses a loop's body in another way (largest differences 6e-8).
    """
    train_step, _, train_state, _ = prepare(make(SGD), sizes)
    spread = loop.make_spread(ParallelConfig(sizes), jax.local_devices())
    batches = [spread.shard(reader(batch), 8) for batch in BATCHES]
    one, metrics = run(train_step, train_state, batches, [1] * 6)
    assert has_learned(one.task_state) and len({values["loss"].item() for values in metrics}) == 6
    many, metrics_of_many = run(train_step, train_state, batches, [1, 2, 1, 2])
    assert many.step == 6
    traced = lambda batch: str(jax.make_jaxpr(train_step)(train_state, batch))
    assert_close(metrics_of_many, metrics, rtol=1e-6)
    assert_close(many, one, rtol=1e-6, atol=2e-7)
    trace = lambda batch: len(re.findall(r"conv_general_dilated\[|dot_general\[", traced(batch)))
    assert trace(step.Several((batches[0],) * 6)) == trace(batches[0]) >= 2  # six steps are written down once


def test_calls_end_at_multiples():
    spans = lambda *arguments: [(steps.start, steps.stop) for steps in loop.calls(*arguments)]
    assert spans(0, 8, 4) == [(0, 4), (4, 8)]
    assert spans(3, 10, 4) == [(3, 4), (4, 8), (8, 10)]
    assert spans(5, 6, 4) == [(5, 6)]
    assert spans(6, 6, 4) == []
    assert spans(2, 5, 1) == [(2, 3), (3, 4), (4, 5)]


SMALL_RUN = Config(
    optimizer=OptimizerConfig(warmup_steps=2, decay_steps=None),
    sample=SampleConfig(num_steps=2, num_images=4),
    train=TrainConfig(num_steps=12, batch_size=8, log_every=4, checkpoint_every=4, sample_every=12),
)


@pytest.fixture
def small(monkeypatch):
    """Runs of Small, which is quick to compile and has a loop even on a CPU."""
    monkeypatch.setattr(build, "make_model", lambda *_: Small())
    monkeypatch.setattr(loop, "check_steps_per_call", lambda steps_per_call, devices: None)


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_calls(small, tmp_path):
    """In calls of four steps, and stopped at 6, which is no multiple of four; differences as above."""
    with_train = lambda **changes: dataclasses.replace(SMALL_RUN, train=dataclasses.replace(SMALL_RUN.train, **changes))
    single = fit(tmp_path / "single", SMALL_RUN)
    assert single.seen == list(range(13)) and [k for k, _ in single.logged] == [4, 8, 12]
    first = fit(tmp_path / "parts", with_train(steps_per_call=4, num_steps=6))
    second = fit(tmp_path / "parts", with_train(steps_per_call=4))
    assert first.seen == [0, 4, 6] and second.seen == [6, 8, 12]
    logged = dict(first.logged + second.logged)
    assert logged.keys() == {4, 6, 8, 12}
    for k, loss in single.logged:
        assert logged[k] == pytest.approx(loss, rel=1e-5), k
    scanned, expected = leaves(tmp_path / "parts"), leaves(tmp_path / "single")
    assert scanned.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(scanned[name], leaf, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--train.steps-per-call 4", r"train.steps_per_call must be 1 on CPUs, got 4: inside a loop XLA .* 100 times"),
        ("--train.steps-per-call 0", r"train.steps_per_call must be at least 1, got 0"),
        (
            "--train.steps-per-call 8",
            r"train.log_every must be a multiple of train.steps_per_call, got 20 and 8",
        ),
        (
            "--train.steps-per-call 20 --train.sample-every 510",
            r"train.sample_every must be a multiple of train.steps_per_call, got 510 and 20",
        ),
        (
            "--train.steps-per-call 20 --train.checkpoint-every 50",
            r"train.checkpoint_every must be a multiple of train.steps_per_call, got 50 and 20",
        ),
    ],
)
def test_a_users_error_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses(options, message, capsys)


def test_a_run_may_go_on_with_other_calls():
    scanned = dataclasses.replace(Config(), train=TrainConfig(steps_per_call=20))
    assert differences(Config(), scanned) == []
