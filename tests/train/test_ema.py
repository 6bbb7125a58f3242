"""Several averages in one stacked tree: what weight each step has in them, and the same on a mesh as with pmap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.integrate import quad

from ddpm_jax.config.run import Config, OptimizerConfig, ParallelConfig, TrainConfig, from_dict, to_dict
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import ema, loop, mesh, state, task
from tests.train.test_step import CONFIG, Small, diffusion, reader

AVERAGES = ema.Averages((0.5, 0.9), (0.05, 0.1, 0.2))


pytestmark = pytest.mark.usefixtures("optax_promotes")


def averages_of(path, averages):
    """[R, ...] after every step of a path [T, ...] of parameters; the initialization is 1."""
    stack, found = {"p": jnp.full((len(averages), *path.shape[1:]), 1.0)}, []
    update = jax.jit(lambda stack, p, k: ema.update_stack(stack, {"p": p}, k, averages))
    for k, theta in enumerate(path):
        stack = update(stack, jnp.asarray(theta, jnp.float32), jnp.int32(k))
        found.append(np.asarray(stack["p"], np.float64))
    return found


# ------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("sigma", [1e-3, 0.01, 0.05, 0.1, 0.25, 0.28])
def test_gamma_is_that_of_a_profile_with_this_standard_deviation(sigma):
    """By numerical integration of the density (gamma + 1) u^gamma on [0, 1]."""
    gamma = ema.gamma_of(sigma)
    moment = lambda k: quad(lambda u: (gamma + 1) * u ** (gamma + k), 0, 1, points=[1 - sigma], epsabs=1e-13)[0]
    assert moment(0) == pytest.approx(1, abs=1e-9)
    assert np.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(sigma, rel=1e-4)
    assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma, rel=1e-10)


def test_gammas_at_the_ends_and_of_the_paper():
    assert ema.gamma_of(ema.WIDEST) == pytest.approx(0, abs=1e-12)  # all parameters alike
    assert ema.gamma_of(0.05) == pytest.approx(16.97, abs=0.005) and ema.gamma_of(0.1) == pytest.approx(6.94, abs=0.005)
    for sigma in (0.0, -0.1, 0.2887, float("nan"), 1e-5):
        with pytest.raises(ValueError, match=rf"sigma_rel must lie in \[0.0001, 0.288675\], got {sigma}"):
            ema.gamma_of(sigma)


def test_the_weight_of_every_step():
    """Averages are linear: on the path of unit vectors they are their weights, and those are known."""
    num_steps = 40
    path = np.eye(num_steps)
    i = np.arange(1, num_steps + 1)
    for t, found in enumerate(averages_of(path, AVERAGES), 1):
        expected = [
            np.where(i > t, 0, np.where(i == 1, d ** (t - 1.0), (1 - d) * d ** (t - i + 0.0))) for d in (0.5, 0.9)
        ]
        for sigma in AVERAGES.sigmas:
            power = ema.gamma_of(sigma) + 1
            # integral from i - 1 to i of the density power tau^(power - 1) / t^power
            expected.append(np.where(i > t, 0, (i**power - (i - 1) ** power) / t**power))
        expected = np.array(expected)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(expected.sum(1), 1, atol=1e-12)


def test_paths_with_known_averages():
    """A constant is its own average; theta_i = i, and a smooth path, have those of the integral, to O(1 / t)."""
    t, averages = 2000, ema.Averages(sigmas=(0.05, 0.1, 0.2, ema.WIDEST))
    i = np.arange(1, t + 1)
    wave = lambda u: np.sin(7 * u)
    found = averages_of(np.column_stack([np.full(t, 3.0), i, wave(i / t)]), averages)[-1]
    for row, sigma in zip(found, averages.sigmas, strict=True):
        gamma = ema.gamma_of(sigma)
        assert row[0] == pytest.approx(3, rel=1e-6)
        staircase = t - np.sum((np.arange(t) / t) ** (gamma + 1))  # summation by parts of the weights above
        assert row[1] == pytest.approx(staircase, rel=1e-5)
        assert row[1] == pytest.approx((gamma + 1) / (gamma + 2) * t + 0.5, abs=0.05)
        integral = quad(lambda u, g=gamma: (g + 1) * u**g * wave(u), 0, 1)[0]
        assert row[2] == pytest.approx(integral, abs=4 / t)


# -------------------------------------------------------------------------------------------------------- in the step


def prepare(sizes, averages):
    """(train_step, template of its states, state before step 0, its batch), with Adam; sizes {} is pmap."""
    trained = diffusion(Small(), state.make_optimizer(CONFIG))
    spread = loop.make_spread(ParallelConfig(sizes), jax.local_devices())
    train_step = spread.make_train_step(trained, ema_decay=0.9, averages=averages)
    init = lambda: task.init(trained, jax.random.key(0), averages)
    template = spread.place(jax.eval_shape(init))
    train_state = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))()
    return train_step, template, train_state, spread.shard(reader(), 8)


def run(sizes, averages, num_steps=5):
    """The states after every step."""
    train_step, _, train_state, batch = prepare(sizes, averages)
    states = []
    for _ in range(num_steps):
        train_state, _ = train_step(train_state, batch)
        states.append(jax.tree.map(np.array, train_state))
    return states


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=str)
def test_a_row_is_the_single_average_bit_for_bit_and_changes_nothing_else(sizes):
    for alone, with_stack in zip(run(sizes, ema.NONE), run(sizes, AVERAGES), strict=True):
        row = jax.tree.map(lambda leaf: leaf[1], with_stack.ema_stack)  # decay 0.9
        equal(row, with_stack.ema_params)
        assert alone.ema_stack == ()
        equal(alone, dataclasses.replace(with_stack, ema_stack=()))


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2}], ids=str)
def test_rows_are_the_averages_of_the_parameters_of_every_step(sizes):
    states = run(sizes, AVERAGES)
    leaves = jax.tree.leaves
    path = [np.stack(thetas) for thetas in zip(*(leaves(s.params) for s in states), strict=True)]
    for theta, found in zip(path, leaves(states[-1].ema_stack), strict=True):
        np.testing.assert_allclose(found, averages_of(theta, AVERAGES)[-1], atol=1e-6)
    assert max(np.ptp(found, 0).max() for found in leaves(states[-1].ema_stack)) > 1e-2


def test_on_a_mesh_rows_are_sharded_as_the_parameters():
    train_step, template, train_state, batch = prepare({"data": 2, "fsdp": 2}, AVERAGES)
    for _ in range(2):
        train_state, _ = train_step(train_state, batch)
        assert jax.tree.map(lambda leaf: leaf.sharding, train_state) == jax.tree.map(
            lambda leaf: leaf.sharding, template
        )
    assert train_step._cache_size() == 1
    divided = 0
    for leaf, rows in zip(jax.tree.leaves(train_state.params), jax.tree.leaves(train_state.ema_stack), strict=True):
        shard, stack_shard = leaf.addressable_shards[0].data, rows.addressable_shards[0].data
        assert stack_shard.shape == (5, *shard.shape)
        divided += shard.size < leaf.size
    assert divided == 5  # all but the last bias, [1]


@pytest.mark.parametrize(
    "shape, expected", [((8, 3), P()), ((4, 3, 8), P(None, None, "fsdp")), ((8, 6, 3), P(None, "fsdp"))]
)
def test_the_axis_of_rows_is_never_sharded(shape, expected):
    assert mesh._row_spec(shape, 2) == expected


# ----------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "optimizer, train, message",
    [
        ({"ema_decays": (0.9, 1.0)}, {}, r"ema_decays must be different numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"ema_decays": (0.9, 0.9)}, {}, r"optimizer.ema_decays must be different numbers"),
        ({"ema_decays": (float("nan"),)}, {}, r"optimizer.ema_decays must be a tuple, each a finite number"),
        ({"ema_sigmas": (0.3,)}, {}, r"ema_sigmas must be different numbers in \[0.0001, 0.288675\], got \(0.3,\)"),
        ({"ema_sigmas": (0.1, 0.1)}, {}, r"optimizer.ema_sigmas must be different numbers"),
        ({"ema_sigmas": (0.1,)}, {"average_every": 0}, r"train.average_every must be at least 1, got 0"),
        ({"ema_decays": (0.9,)}, {"average_every": 5}, r"train.average_every keeps .* of optimizer.ema_sigmas: got 5"),
    ],
)  # fmt: skip
def test_averages_that_cannot_be(optimizer, train, message):
    with pytest.raises(ValueError, match=message):
        Config(optimizer=OptimizerConfig(**optimizer), train=TrainConfig(**train))


def test_a_run_from_before_there_were_several_averages():
    """Its config.json says nothing of them, and means none."""
    values = to_dict(Config())
    for name in ("ema_decays", "ema_sigmas"):
        del values["optimizer"][name]
    del values["train"]["average_every"]
    assert from_dict(values, Config) == Config()
    assert "ema_stack" in checkpoint.ITEMS and loop.averages_of(Config()) == ema.NONE
