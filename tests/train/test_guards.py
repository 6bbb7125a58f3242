"""Steps whose numbers are not finite: skipped and counted, or the end of the run; never saved."""

import dataclasses
import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.config.run import (
    Config,
    DataConfig,
    OptimizerConfig,
    ParallelConfig,
    SampleConfig,
    TrainConfig,
    differences,
)
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import guards, loop, state, step
from ddpm_jax.train.task import Means
from ddpm_jax.train.tasks.diffusion import Said
from tests.helpers import assert_train_refuses
from tests.runs.test_checkpoint import fit, leaves
from tests.train.tasks import Breaking, LeastSquares
from tests.train.test_mesh import SGD, assert_close, prepare
from tests.train.test_step import BATCH, IMPORTANCE, KEY, SHORT, diffusion, reader

NAN, INF = float("nan"), float("inf")


pytestmark = pytest.mark.usefixtures("optax_promotes")


class Fragile(nn.Module):
    """Nothing but a scale, the mean of four, quick to compile."""

    initial: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    @nn.compact
    def __call__(self, x_t, t, *, train=False, dropout_keys=None):
        scale = self.param("scale", lambda key: jnp.array(self.initial, jnp.float32)).mean()
        return x_t * scale


def breaking(make_objective, breaks):
    """The objectives that make_objective makes, made to break at an example that is white all over.

    Either its loss is NaN and its gradient 0, or its loss is as before, and its gradient that of a square root at 0.
    """

    def make(config, schedule):
        objective = make_objective(config, schedule)

        def broken(model_fn, x_0, t, eps):
            losses = objective(model_fn, x_0, t, eps)
            white = jnp.all(x_0 > 0.99, axis=tuple(range(1, x_0.ndim)))
            if breaks == "loss":
                return losses._replace(total=jnp.where(white, NAN, losses.total))
            return losses._replace(total=losses.total + jnp.sqrt(jnp.where(white, 0 * losses.total, 1)) - 1)

        return broken

    return make


@pytest.fixture(params=["loss", "gradient"])
def broken(request, monkeypatch):
    """Training that breaks at white images, in its loss or in its gradient alone; which of them."""
    monkeypatch.setattr(build, "make_objective", breaking(build.make_objective, request.param))
    return {"loss": "loss", "gradient": "grad_norm"}[request.param]


# ------------------------------------------------------------------------------------------------------------ a step

WHITE = BATCH.copy()
WHITE[5] = 255
ADAM = state.make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0, decay_steps=None, clip_norm=0.1))
SPREADS = pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=["pmap", "mesh"])


def counting(train_state):
    zero = jax.device_put(np.int32(0), train_state.step.sharding)
    return dataclasses.replace(train_state, skipped=state.Skipped(zero, jnp.copy(zero)))


def fragile(optimizer, breaks=None):
    """Diffusion; what breaks it is the fixture's objective."""
    return diffusion(Fragile(), optimizer, IMPORTANCE, SHORT)


def least_squares(optimizer, breaks=None):
    return Breaking(LeastSquares(16, 8, KEY, optimizer), breaks)


every_task = pytest.mark.parametrize("make", [fragile, least_squares])


def run(sizes, batches, begin=lambda train_state: train_state, optimizer=ADAM, make=fragile):
    """(the state before every step and after the last, the metrics of every step), begin(state) being the first."""
    train_step, _, train_state, _ = prepare(make(optimizer), sizes)
    spread = loop.make_spread(ParallelConfig(sizes), jax.local_devices())
    train_state = begin(train_state)
    states, metrics = [jax.tree.map(np.array, train_state)], []
    for batch in batches:
        train_state, values = train_step(train_state, spread.shard(reader(batch), 8))
        states.append(jax.tree.map(np.array, train_state))
        metrics.append({name: float(value) for name, value in values.items()})
    return states, metrics


def of(train_state):
    """All of a state but its counts."""
    return dataclasses.replace(train_state, step=0, skipped=())


@every_task
@SPREADS
def test_a_broken_step_changes_nothing_but_the_counts(sizes, broken, make):
    make = functools.partial(make, breaks=broken)
    (start, one, two, three, four), metrics = run(sizes, [BATCH, WHITE, WHITE, BATCH], counting, make=make)
    jax.tree.map(np.testing.assert_array_equal, of(two), of(one))
    jax.tree.map(np.testing.assert_array_equal, of(three), of(one))
    assert [int(s.step) for s in (start, one, two, three, four)] == [0, 1, 2, 3, 4]
    assert [s.skipped for s in (start, one, two, three, four)] == [(0, 0), (0, 0), (1, 1), (2, 2), (2, 0)]
    assert [(m["skipped"], m["skipped_in_a_row"]) for m in metrics] == [(0, 0), (1, 1), (2, 2), (2, 0)]
    not_finite = [[name for name in ("loss", "grad_norm") if not np.isfinite(m[name])] for m in metrics]
    assert not_finite == [[], [broken], [broken], []]
    for name in ("params", "ema_params", "opt_state", "task_state"):
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), getattr(four, name), getattr(one, name))
        assert all(jax.tree.leaves(changed)), name
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(four))


@every_task
def test_a_state_without_counts_is_broken_by_it(broken, make):
    (_, after), (metrics,) = run({}, [WHITE], make=functools.partial(make, breaks=broken))
    assert metrics.keys() >= {"loss", "grad_norm"} and "skipped" not in metrics
    wrong = {name for name, finite in guards.all_finite(after).items() if not finite}
    assert wrong == {"loss": {"task_state"}, "grad_norm": {"params", "ema_params", "opt_state"}}[broken]


@every_task
@SPREADS
def test_nothing_else_depends_on_the_counts(sizes, make):
    """To the last bit of float32: XLA fuses a branch in another way (largest difference 7e-8)."""
    (*_, counted), metrics_counted = run(sizes, [BATCH] * 4, counting, make=make)
    (*_, plain), metrics = run(sizes, [BATCH] * 4, make=make)
    assert_close(of(counted), of(plain), rtol=1e-6, atol=1e-9)
    assert_close([{name: m[name] for name in metrics[0]} for m in metrics_counted], metrics, rtol=1e-6)


@pytest.mark.parametrize("broken", ["loss"], indirect=True)
@SPREADS
def test_a_scanned_step_is_skipped_too(sizes, broken):
    train_step, _, train_state, _ = prepare(fragile(SGD), sizes)
    spread = loop.make_spread(ParallelConfig(sizes), jax.local_devices())
    batches = [BATCH, WHITE, BATCH]
    after, metrics = train_step(
        counting(train_state), step.Several(tuple(spread.shard(reader(batch), 8) for batch in batches))
    )
    (*_, expected), _ = run(sizes, batches, counting, SGD)
    assert after.skipped == (1, 0) and metrics["skipped_in_a_row"].tolist() == [0, 1, 0]
    assert_close(jax.tree.map(np.asarray, after), expected, rtol=1e-6, atol=2e-7)


def test_skipping_needs_no_memory_for_a_second_state():
    """What a compiled update needs beside its donated state, in bytes: a few scalars more."""
    params = {"a": jnp.zeros((500, 500)), "b": jnp.zeros((500, 500))}
    update = step.make_update(diffusion(Fragile(), ADAM, schedule=SHORT), 0.99)

    def temporary(skipped):
        before = state.TrainState(jnp.int32(0), params, params, ADAM.init(params), (), skipped)

        def train_step(before, x):
            loss, grads = jax.value_and_grad(lambda p: jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"]) ** 2))(before.params)
            return update(before, Means(loss, {}, grads), Said(jnp.zeros(4, jnp.int32), jnp.zeros(4)))

        compiled = jax.jit(train_step, donate_argnums=0).lower(before, jnp.zeros((8, 500))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    counts = state.Skipped(jnp.int32(0), jnp.int32(0))
    assert temporary(counts) < temporary(()) + 10_000 < sum(leaf.nbytes for leaf in params.values()) * 3


# ------------------------------------------------------------------------------------------------------------- watch


def watch(said=None, last=4, max_skipped=2, batch=(3, 1, 2)):
    say = pytest.fail if said is None else said.append
    return guards.Watch(max_skipped=max_skipped, examples=lambda k: batch, last_checkpoint=lambda: last, say=say)


def metrics(loss, **others):
    return {"loss": jnp.array(loss, jnp.float32)} | {k: jnp.array(v, jnp.float32) for k, v in others.items()}


def test_watch_names_the_first_step_that_is_not_finite():
    looking = watch()
    for k, loss in ((5, 1.0), (6, NAN), (7, INF), (8, 2.0)):
        looking.add(k, metrics(loss, grad_norm=3.0))
    message = "loss of step 6 is nan; the last checkpoint is that of step 4; examples of the batch: 3, 1, 2"
    with pytest.raises(FloatingPointError, match=re.escape(message) + "$"):
        looking.look()
    looking = watch(last=None)
    looking.add(8, metrics([1.0, 2.0, 3.0], grad_norm=[1.0, INF, 1.0]))  # a call of three
    with pytest.raises(FloatingPointError, match="grad_norm of step 7 is inf; there is no checkpoint before it; ex"):
        looking.look()


def test_watch_returns_the_numbers_of_the_last_step():
    looking = watch(said := [])
    looking.add(2, metrics([1.0, 2.0], grad_norm=[3.0, 4.0]))
    looking.add(4, metrics([5.0, 6.0], grad_norm=[7.0, 8.0]))
    assert looking.look() == {"loss": 6.0, "grad_norm": 8.0}
    looking.add(5, metrics(NAN, skipped=1.0, skipped_in_a_row=1.0))
    looking.look()
    assert len(said) == 1 and said[0].startswith("skipped 1 of the last 1 steps: loss of step 5 is nan; ")


def test_watch_lists_64_examples_of_a_large_batch():
    looking = watch(batch=range(1000, 1100))
    looking.add(1, metrics(NAN))
    with pytest.raises(FloatingPointError, match=r"batch: 1000, 1001, .*, 1063 \(the first 64 of 100\)$"):
        looking.look()


def test_watch_tells_of_skipped_steps_and_stops_at_too_many():
    looking = watch(said := [])
    for k, loss, in_a_row in ((5, NAN, 1), (6, 1.0, 0), (7, NAN, 1), (8, NAN, 2)):
        looking.add(k, metrics(loss, skipped=1.0, skipped_in_a_row=in_a_row))
    assert np.isnan(looking.look()["loss"])
    expected = "skipped 3 of the last 4 steps: loss of step 5 is nan; examples of the batch: 3, 1, 2; then 7, 8"
    assert said == [expected]
    looking.add(9, metrics(NAN, skipped=4.0, skipped_in_a_row=3))
    message = "loss of step 9 is nan, and 3 steps in a row were skipped, more than train.max_skipped 2; the last "
    with pytest.raises(FloatingPointError, match=message):
        looking.look()


# ------------------------------------------------------------------------------------------------------------- a run

RUN = Config(
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=0, decay_steps=None),
    sample=SampleConfig(num_steps=2, num_images=4),
    train=TrainConfig(num_steps=8, batch_size=4, log_every=4, checkpoint_every=2, sample_every=100),
)
EXAMPLES = loop.data.batch_indices(0, 2, 4, 12)  # of step 3


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run of 12 images, of which one, in the batch of step 3, is white: one step in three breaks."""
    pictures = np.random.RandomState(0).randint(0, 256, (12, 4, 4, 1)).astype(np.uint8)
    pictures[EXAMPLES[1]] = 255
    np.save(tmp_path / "x.npy", pictures)
    monkeypatch.setattr(build, "make_model", lambda *_: Fragile())
    return dataclasses.replace(RUN, data=DataConfig(name=str(tmp_path / "x.npy")))


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_stops_at_a_broken_step_and_goes_on_where_it_skips_it(broken, config, tmp_path):
    stopping, skipping, whole = tmp_path / "run", with_train(config, non_finite="skip"), tmp_path / "whole"
    examples = ", ".join(map(str, EXAMPLES))
    message = rf"{broken} of step 3 is nan; the last checkpoint is that of step 2; examples of the batch: {examples}$"
    for seen in (0, 2):  # again where it goes on
        with pytest.raises(FloatingPointError, match=message):
            fit(stopping, config)
        assert saved_steps(stopping) == [2], seen
    assert all(np.isfinite(leaf).all() for leaf in leaves(stopping).values())

    notes, notes_whole = fit(stopping, skipping), fit(whole, skipping)
    assert notes.seen == [2, *range(3, 9)] and notes_whole.seen == [*range(9)]
    assert differences(config, skipping) == []
    a, b = leaves(stopping), leaves(whole)
    assert a.keys() == b.keys() and {"skipped.total", "skipped.in_a_row"} <= a.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-9, err_msg=name)  # as above
    white = [k for k in range(1, 9) if EXAMPLES[1] in loop.data.batch_indices(0, k - 1, 4, 12)]
    assert len(white) >= 2 and white[0] == 3 and a["skipped.total"] == len(white)
    assert f"skipped 1 of the last 2 steps: {broken} of step 3 is nan; examples of the batch: {examples}" in notes.said
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["skipped"]) for line in lines] == [(k, sum(bad <= k for bad in white)) for k in (4, 8)]
    again = loop.prepare(with_train(config, num_steps=9)).template()  # back at "stop", which does not count
    with checkpoint.checkpoints(whole) as checkpoints:
        assert checkpoints.restore(again, pytest.fail).skipped == ()


@pytest.mark.slow
def test_what_is_not_finite_is_not_in_the_metrics_file(broken, config, tmp_path):
    """And a plot of what is left."""
    fit(tmp_path / "run", with_train(config, non_finite="skip", log_every=1, num_steps=4))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [broken in line for line in lines] == [True, True, False, True]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1] and (tmp_path / "run" / "loss.png").stat().st_size


@pytest.mark.slow
def test_too_many_in_a_row_stop_the_run(broken, config, tmp_path):
    np.save(tmp_path / "x.npy", np.full((12, 4, 4, 1), 255, np.uint8))
    message = rf"{broken} of step 4 is nan, and 4 steps in a row were skipped, more than train.max_skipped 3; the last "
    with pytest.raises(FloatingPointError, match=message + "checkpoint is that of step 2"):
        fit(tmp_path / "run", with_train(config, non_finite="skip", max_skipped=3))
    with pytest.raises(FloatingPointError, match=r"of step 5 .* 5 steps in a row"):  # the count is in the checkpoint
        fit(tmp_path / "run", with_train(config, non_finite="skip", max_skipped=4))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_state_that_a_finite_gradient_overflows_is_not_saved(policy, config, tmp_path, monkeypatch):
    """A scale of 0, of numbers so large that Adam's first step, the learning rate, takes two of them past float32."""
    monkeypatch.setattr(build, "make_model", lambda *_: Fragile((1e38, -1e38, 1e38, -1e38)))
    config = dataclasses.replace(config, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=3e38))
    config = with_train(config, checkpoint_every=1, log_every=1, non_finite=policy)
    with pytest.raises(FloatingPointError, match="params, ema_params after step 1 are not finite; there is no check"):
        fit(tmp_path / "run", config)
    assert saved_steps(tmp_path / "run") == []


@pytest.mark.parametrize(
    "options, message",
    [
        ("--train.non-finite ignore", r"invalid choice 'ignore' for argument '--train.non-finite'. .*'stop', 'skip'"),
        ("--train.max-skipped 0", r"train.max_skipped must be at least 1, got 0"),
    ],
)
def test_a_users_error_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses(options, message, capsys)
