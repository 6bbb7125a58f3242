"""The pmapped step against its own definition, on 1, 2 and 4 devices."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import build, images, objectives, schedules, timesteps, weightings
from ddpm_jax.config.run import ObjectiveConfig, OptimizerConfig
from ddpm_jax.models.layers import dropout
from ddpm_jax.models.unet import UNet
from ddpm_jax.train import ema, state, step, task
from ddpm_jax.train.tasks.autoencoder import Kept
from ddpm_jax.train.tasks.diffusion import Diffusion
from tests.helpers import golden, relative
from tests.train.tasks import LeastSquares, small_autoencoder

S = schedules.linear(100)
KEY = jax.random.key(5)
BATCH = np.random.RandomState(0).randint(0, 256, (8, 4, 4, 1)).astype(np.uint8)
CONFIG = OptimizerConfig(learning_rate=0.01, warmup_steps=2, decay_steps=None, clip_norm=0.1, ema_decay=0.5)
ADAM = state.make_optimizer(CONFIG)
OBJECTIVE = ObjectiveConfig()
# Few enough t that their histories are full after a few batches.
SHORT = schedules.linear(4, beta_end=0.5)
IMPORTANCE = ObjectiveConfig(timesteps="importance", timesteps_arguments={"history": 2})
HYBRID = dataclasses.replace(IMPORTANCE, loss="hybrid", variance="learned_range")


def small_unet(**options):
    return UNet(8, (1,), num_res_blocks=1, attention_resolutions=(), out_channels=1, num_groups=4, **options)


pytestmark = pytest.mark.usefixtures("optax_promotes")


class Small(nn.Module):
    """Quick to compile, and with everything that draws: a convolution, the time, dropout."""

    copies: int = 1

    @nn.compact
    def __call__(self, x_t, t, *, train=False, dropout_keys=None):
        h = nn.Conv(8, (3, 3))(x_t) + nn.Dense(8)(jnp.sin(t)[:, None])[:, None, None]
        h = dropout(nn.silu(h), dropout_keys, 0.3) if train else nn.silu(h)
        return nn.Conv(self.copies * x_t.shape[-1], (3, 3))(h)


class Recorder(nn.Module):
    """Tells what it was called with, and the dropout mask it would have used."""

    record: object

    @nn.compact
    def __call__(self, x_t, t, *, train=False, dropout_keys=None):
        if train:
            mask = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, x_t.shape[1:]))(dropout_keys)
            jax.debug.callback(self.record, x_t, t, mask)
        return x_t * self.param("scale", nn.initializers.ones, (1, 1, 1, 1))


def diffusion(model, optimizer=ADAM, objective=OBJECTIVE, schedule=S):
    """The task of a network that learns from BATCH."""
    return Diffusion(
        model,
        build.make_objective(objective, schedule),
        build.make_timestep_sampler(objective, schedule),
        optimizer,
        KEY,
        BATCH.shape[1:],
    )


# make(optimizer): what holds for each of these is the step's doing. All have a state that learns from every example.
TASKS = {
    "diffusion": lambda optimizer: diffusion(Small(2), optimizer, HYBRID, SHORT),
    "least_squares": lambda optimizer: LeastSquares(16, 8, KEY, optimizer),
    "autoencoder": lambda optimizer: small_autoencoder(optimizer, KEY, BATCH.shape[1:]),
}
every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())


def has_learned(task_state):
    """Whether a task's state has seen all that it learns from."""
    if isinstance(task_state, timesteps.History):
        return timesteps.warmed_up(task_state)
    if isinstance(task_state, Kept):
        return task_state.weight > 0 and task_state.perplexity > 1 and not np.allclose(task_state.averages.counts, 1)
    return task_state.total > 0 and len(set(np.asarray(task_state.last))) == 8


def reader(batch=BATCH):
    """read(rows) -> those rows of a batch of records."""
    return lambda rows: {"image": batch[rows]}


def prepare(trained, num_devices):
    """(train_step of a task, the state before step 0 on these devices)."""
    devices = jax.local_devices()[:num_devices]
    train_step = step.make_train_step(trained, ema_decay=CONFIG.ema_decay, devices=devices)
    train_state = jax.jit(lambda: task.init(trained, jax.random.key(0)))()
    sharding = jax.tree.map(lambda leaf: leaf.sharding, step.replicated(train_state, devices))
    return train_step, jax.device_put(train_state, sharding)


def run(trained, num_devices, num_steps=1):
    """(the state before every step and after the last, the metrics of every step)."""
    train_step, train_state = prepare(trained, num_devices)
    batch = step.shard(reader(), 8, jax.local_devices()[:num_devices])
    states, metrics = [jax.tree.map(np.array, train_state)], []
    for _ in range(num_steps):
        train_state, values = train_step(train_state, batch)
        states.append(jax.tree.map(np.array, train_state))
        metrics.append({name: float(value) for name, value in values.items()})
    return states, metrics


def losses_of(metrics):
    return [values["loss"] for values in metrics]


def test_a_step_under_x64_is_the_step_without():
    """Its noise is drawn as x_0 is, in float32."""
    states, metrics = run(diffusion(Small(2), objective=HYBRID, schedule=SHORT), 2)
    with jax.enable_x64(True):
        found, said = run(diffusion(Small(2), objective=HYBRID, schedule=SHORT), 2)
    assert losses_of(said) == losses_of(metrics)
    for a, b in zip(jax.tree.leaves(found[-1].params), jax.tree.leaves(states[-1].params), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("sampler", ["uniform", "stratified"])
def test_every_draw_is_the_same_on_1_2_and_4_devices(sampler):
    def draws(num_devices):
        calls = []
        example = lambda t, x_t, mask: (float(t), np.asarray(x_t).tobytes(), np.asarray(mask).tobytes())
        record = lambda x_t, t, mask: calls.extend(map(example, t, x_t, mask))
        run(diffusion(Recorder(record), objective=ObjectiveConfig(timesteps=sampler)), num_devices, 2)
        jax.effects_barrier()
        return sorted(calls)

    one = draws(1)
    assert len(one) == 16 and len({c[1] for c in one}) == 16 and len({c[2] for c in one}) == 16
    assert draws(2) == one and draws(4) == one


@pytest.mark.slow
def test_importance_is_the_same_on_1_2_and_4_devices():
    """Bit for bit: histories, and so every t, of a network that stays as it is (rate 1e-30)."""
    still = state.make_optimizer(dataclasses.replace(CONFIG, learning_rate=1e-30))
    trained = diffusion(Small(), still, IMPORTANCE, SHORT)
    (*_, one), metrics = run(trained, 1, 6)
    assert timesteps.warmed_up(one.task_state) and len(set(losses_of(metrics))) == 6
    for n in (2, 4):
        (*_, many), metrics_n = run(trained, n, 6)
        jax.tree.map(np.testing.assert_array_equal, many.task_state, one.task_state)
        np.testing.assert_allclose(losses_of(metrics_n), losses_of(metrics), rtol=1e-6)


@every_task
def test_states_agree_on_1_2_and_4_devices(make):
    """Only the order of the gradient's sum differs. Adam divides by its size, so compare where it is not tiny."""
    (*_, one), metrics = run(make(ADAM), 1, 6)
    assert has_learned(one.task_state)
    for n in (2, 4):
        (*_, many), metrics_n = run(make(ADAM), n, 6)
        np.testing.assert_allclose(losses_of(metrics_n), losses_of(metrics), rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), many.params, one.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), many.task_state, one.task_state)


def test_a_step_is_its_definition():
    """Loss, clipped gradient, Adam and average, written out with the documented keys."""
    model, optimizer = Small(), state.make_optimizer(CONFIG)
    (before, after), (metrics,) = run(diffusion(model), 2)
    key = jax.random.fold_in(KEY, 0)

    def loss(params):
        total = 0.0
        for b in range(8):
            key_t, key_eps, key_dropout = jax.random.split(jax.random.fold_in(key, b), 3)
            t = jax.random.randint(key_t, (), 0, 100)[None]
            x_0 = images.to_float(BATCH[b : b + 1])
            eps = jax.random.normal(key_eps, (4, 4, 1))[None]
            network = lambda x, t, k=key_dropout: model.apply(
                {"params": params}, x, t, train=True, dropout_keys=k[None]
            )
            total += objectives.simple(network, S, jnp.asarray(x_0), t, eps)[0] / 8
        return total

    value, grads = jax.jit(jax.value_and_grad(loss))(before.params)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5) and metrics.keys() == {"loss", "grad_norm"}
    assert (CONFIG.clip_norm < optax.tree.norm(grads)) and after.step == 1
    # First moment after one step: 0.1 of the clipped gradient.
    clipped = jax.tree.map(lambda g: g * CONFIG.clip_norm / optax.tree.norm(grads), grads)
    mu = optax.tree.get(after.opt_state, "mu")
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * g, atol=1e-7, rtol=1e-3), mu, clipped)
    assert optimizer.init(before.params)[0] == after.opt_state[0]  # clipping has no state


@pytest.mark.slow
def test_a_hybrid_step_with_importance_is_its_definition():
    """What is minimized, what the log shows, what the sampler remembers, at the first step after the warm-up."""
    model, sampler = Small(2), timesteps.importance(SHORT, history=2)
    states, metrics = run(diffusion(model, ADAM, HYBRID, SHORT), 4, 6)
    k = next(k for k, s in enumerate(states) if timesteps.warmed_up(s.task_state))
    assert 0 < k < 6
    before, after = states[k], states[k + 1]
    keys = jax.vmap(lambda b: jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, k), b), 3))(jnp.arange(8))
    t, weight = sampler.draw(before.task_state, lambda b: keys[b, 0], jnp.arange(8), 8)
    assert len(set(np.asarray(weight))) > 1
    x_0, eps = jnp.asarray(images.to_float(BATCH)), jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys[:, 1])
    model_fn = lambda x, t: model.apply({"params": before.params}, x, t, train=True, dropout_keys=keys[:, 2])
    arguments, options = (model_fn, SHORT, x_0, t, eps), {"prediction": "eps", "variance": "learned_range"}
    total = objectives.hybrid(*arguments, **options)
    for name, loss in {
        "loss": total,
        "simple": objectives.simple(*arguments, **options),
        "vlb": 4 * objectives.vlb(*arguments, **options),
    }.items():
        assert metrics[k][name] == pytest.approx(float(jnp.mean(weight * loss)), rel=1e-5), name
    expected = timesteps.remember(before.task_state, t, total)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.task_state, expected)


@pytest.mark.parametrize("prediction", ["x_0", "v", "x_prev", "score"])
def test_the_loss_of_every_prediction_with_a_weighting(prediction):
    objective = ObjectiveConfig(prediction=prediction, weighting="min_snr", weighting_arguments={"gamma": 0.5})
    (before, _), (metrics,) = run(diffusion(Small(), ADAM, objective, SHORT), 1)
    keys = jax.vmap(lambda b: jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, 0), b), 3))(jnp.arange(8))
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys[:, 0])
    x_0, eps = jnp.asarray(images.to_float(BATCH)), jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys[:, 1])
    model_fn = lambda x, t: Small().apply({"params": before.params}, x, t, train=True, dropout_keys=keys[:, 2])
    loss = objectives.simple(model_fn, SHORT, x_0, t, eps, prediction=prediction)
    weight = weightings.make("min_snr", gamma=0.5)(SHORT, t, prediction)
    assert len(set(np.asarray(weight))) > 1
    assert metrics["loss"] == pytest.approx(float(jnp.mean(weight * loss)), rel=1e-5)


def test_the_loss_of_edm():
    objective = ObjectiveConfig(loss="edm", sigma_data=0.7, timesteps="lognormal")
    (before, _), (metrics,) = run(diffusion(Small(), ADAM, objective, SHORT), 1)
    keys = jax.vmap(lambda b: jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, 0), b), 3))(jnp.arange(8))
    sampler = timesteps.lognormal(SHORT)
    t, _ = sampler.draw((), lambda b: keys[b, 0], jnp.arange(8), 8)
    x_0, eps = jnp.asarray(images.to_float(BATCH)), jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys[:, 1])
    model_fn = lambda x, t: Small().apply({"params": before.params}, x, t, train=True, dropout_keys=keys[:, 2])
    loss = objectives.edm(model_fn, SHORT, x_0, t, eps, sigma_data=0.7)
    assert metrics["loss"] == pytest.approx(float(jnp.mean(loss)), rel=1e-5)


def test_warmup_starts_at_zero_and_ema_as_in_the_paper():
    (before, first, second, third), _ = run(diffusion(Small()), 1, 3)
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert same(before.params, first.params)  # rate 0 at step 0
    assert same(first.ema_params, first.params)
    # Rate 0.005 at step 1, 0.01 from then on: with Adam's first steps, the largest change of a weight.
    moved = lambda a, b: max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert moved(first.params, second.params) == pytest.approx(0.005, rel=0.5)
    mean = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, first.params, second.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), second.ema_params, mean)
    mean = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, second.ema_params, third.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), third.ema_params, mean)


def test_ema_forgets_the_initialization():
    ema_params = ema.update(7.0, 1.0, jnp.int32(0), 0.9999)
    assert ema_params == 1.0
    for k in range(1, 50):
        ema_params = ema.update(ema_params, 2.0, jnp.int32(k), 0.9)
    assert ema_params == pytest.approx(2 - 0.9**49, rel=1e-5)


def test_ema_of_the_ddim_repository():
    """Its average begins with the initial parameters: no update is the first."""
    arrays, meta = golden("other/ddim_loss_ema")
    average = jnp.asarray(arrays["ema_init"])
    for k, params in enumerate(arrays["ema_params"]):
        average = ema.update(average, jnp.asarray(params), jnp.int32(k + 1), meta["mu"])
        assert relative(average, arrays["ema_shadow"][k]) < 1e-6


def test_learning_rate_schedule():
    def updates(config, steps):
        """Adam's update for a constant gradient is minus the rate."""
        optimizer = state.make_optimizer(config)
        opt_state, found = optimizer.init(jnp.zeros(1)), []
        for _ in range(steps):
            update, opt_state = optimizer.update(jnp.full(1, 0.01), opt_state)
            found.append(-float(update[0]))
        return found

    np.testing.assert_allclose(updates(CONFIG, 5), [0, 0.005, 0.01, 0.01, 0.01], rtol=1e-4)
    cosine = dataclasses.replace(CONFIG, decay_steps=6)
    expected = [0, 0.005, *(0.005 * (1 + np.cos(np.pi * k / 4)) for k in range(5))]
    np.testing.assert_allclose(updates(cosine, 7), expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(updates(dataclasses.replace(CONFIG, warmup_steps=0), 2), [0.01, 0.01], rtol=1e-4)


def test_the_old_state_is_donated():
    train_step, train_state = prepare(diffusion(Small()), 2)
    train_step(train_state, step.shard(reader(), 8, jax.local_devices()[:2]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(train_state.params))


def test_batch_must_be_divisible_by_devices():
    with pytest.raises(ValueError, match="batch size 8 is not divisible by the number of devices, 3"):
        step.shard(reader(), 8, jax.local_devices()[:3])
    np.testing.assert_array_equal(step.shard(reader(), 8, jax.local_devices())["image"][2, 1], BATCH[5])
