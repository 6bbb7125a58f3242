"""The fit: exact where the family holds the flow, its gradient that of the loss."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.distil import family, fit, regression
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.samplers.denoise import Denoised
from tests.distil.common import MEAN, STD, Silent, exact_gaussian, network

SCHEDULE = schedules.linear()
TIMES = family.times_of(SCHEDULE)


def pairs_of(net, first, count, targets=None, seed=0):
    key = fit.pair_key(seed)
    teacher = make_table("unipc", SCHEDULE, 60, "karras")
    return fit.Pairs(key, first, fit.draw(net, teacher, key, first, count, 8) if targets is None else targets)


def fitted(scale, begin, num_calls, num_updates, seed=0, report=None):
    net = network(scale)
    training, held_out = pairs_of(net, 0, 32, seed=seed), pairs_of(net, fit.HELD_OUT, 16, seed=seed)
    program = fit.Program(net, TIMES, num_calls, 8)
    return fit.fit(program, begin, training, held_out, num_updates=num_updates, report=report or Silent())


def ddim(num_calls):
    return family.numbers_of(make_table("ddim", SCHEDULE, num_calls, "trailing"), SCHEDULE)


def regressed(scale, num_calls, grid):
    """As fits of curved flows begin: a loss that may rise by 0.1 is for starts that are nearer than any image is."""
    net = network(scale)
    path = regression.path_of(net, make_table("unipc", SCHEDULE, 60, "karras"), fit.pair_key(0), 0, 32, 8)
    times = make_table("ddim", SCHEDULE, num_calls, grid).rows.time
    return regression.Regression(net, TIMES, path, 8)(family.gaps_of(times, TIMES))[0]


def test_one_call_is_exact_for_a_gaussian():
    """The flow of a Gaussian is affine, and so is one call with two numbers free: what is learned is exact."""
    found = fitted(0.0, ddim(1), 1, 12)
    assert found.held_out[0].rms > 0.2  # DDIM in one call makes every image the mean
    assert found.held_out[-1].rms < 1e-3
    x_T = jnp.linspace(-2, 2, 16, dtype=jnp.float32).reshape(4, 2, 2, 1)
    table = family.table_of(jax.tree.map(jnp.asarray, found.numbers), TIMES)
    x_0 = samplers.sample(exact_gaussian(jnp.float32(0)), table, jax.random.key(0), x_T.shape, x_T=x_T)
    # The flow's end, in closed form, from the level of time T - 1.
    alpha, sigma = np.sqrt(SCHEDULE.alphas_cumprod_float64[-1]), np.sqrt(SCHEDULE.one_minus_alphas_cumprod_float64[-1])
    expected = MEAN + STD / np.sqrt(alpha**2 * STD**2 + sigma**2) * (np.asarray(x_T) - alpha * MEAN)
    np.testing.assert_allclose(x_0, expected, atol=5e-3)


def test_a_curved_flow_is_learned_better_than_it_began():
    found = fitted(0.5, regressed(0.5, 3, "quad"), 3, 12)
    assert found.held_out[-1].geometric_mean < found.held_out[0].geometric_mean / 5
    assert (np.diff([error.geometric_mean for error in found.held_out[:3]]) < 0).all()
    table = family.table_of(jax.tree.map(jnp.asarray, found.numbers), TIMES)
    assert (np.diff(np.asarray(table.rows.time)) < 0).all()


def test_a_fit_ends_where_an_update_gains_little(monkeypatch):
    updates, begin = [], regressed(0.5, 4, "trailing")
    monkeypatch.setattr(fit, "PATIENCE", 1)
    for gain in (0.05, 0.02, 0.0):
        monkeypatch.setattr(fit, "LEAST_GAIN", gain)
        report = Silent()
        updates.append(len(fitted(0.5, begin, 4, 12, report=report).held_out) - 1)
        said = r"learned: of (\d+) updates the last 1 made the error of the pairs (.*)% less"
        ended = re.fullmatch(said, str(report.said[-1]))
        assert (ended is None) == (gain == 0)
        assert ended is None or (int(ended[1]) == updates[-1] and float(ended[2]) / 100 < gain / 2)
    assert 1 <= updates[0] < updates[1] < updates[2] == 12


@pytest.mark.slow
def test_the_same_seed_is_the_same_table():
    a, b, c = (fitted(0.5, ddim(2), 2, 2, seed).numbers for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a.weights != c.weights).any()


def through_the_scan(denoise, numbers, num_calls, training):
    """J^T W J, J^T W r and the gradient of the loss, with J by forward mode through `sample`."""

    def left(numbers):
        table = family.table_of(family.Numbers.from_flat(numbers, num_calls), TIMES)
        x_0 = samplers.sample(denoise, table, training.key, training.targets.shape, first_index=training.first_index)
        return (x_0 - training.targets).reshape(len(training.targets), -1)

    loss = lambda numbers: jnp.mean(jnp.log(jnp.mean(left(numbers) ** 2, axis=1) + fit.FLOOR**2))
    residual, jacobian = map(np.asarray, jax.jit(lambda numbers: (left(numbers), jax.jacfwd(left)(numbers)))(numbers))
    weighted = jacobian / (np.mean(residual**2, axis=1)[:, None, None] + fit.FLOOR**2)
    curvature, slope = np.einsum("ipv,ipw->vw", weighted, jacobian), np.einsum("ipv,ip->v", weighted, residual)
    return curvature, slope, jax.jit(jax.grad(loss))(numbers)


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("num_calls", [1, 4])
def test_the_normal_equations_are_those_of_derivatives_through_the_scan(highest, num_calls):
    """2 / (D P) J^T W r is the gradient of the loss."""
    net = network(0.5)
    begin = family.numbers_of(make_table("ddim", SCHEDULE, num_calls, "quad"), SCHEDULE)
    rng = np.random.default_rng(0)  # no number is 0, so that each call sees all before it
    numbers = np.concatenate(begin).astype(np.float32) + rng.normal(0, 0.05, sum(map(len, begin))).astype(np.float32)
    training = pairs_of(net, 3, 16)
    curvature, slope = fit.Program(net, TIMES, num_calls, 8).normal_equations(numbers, training)
    expected_curvature, expected_slope, gradient = through_the_scan(
        exact_gaussian(jnp.float32(0.5)), numbers, num_calls, training
    )
    near(curvature, expected_curvature)
    near(slope, expected_slope)
    near(2 / (4 * 16) * slope, gradient)


def told(wave):
    """A network that says more the later the time that it is told, and ripples: 1 radian a timestep."""

    def make_denoise(scale):
        def denoise(x, row):
            x_0 = exact_gaussian(scale)(x, row).x_0 + 0.3 * row.time / 1000 + 0.01 * wave(row.time)
            return Denoised(x_0, (x - row.alpha * x_0) / row.sigma)

        return denoise

    return make_denoise


def test_ripples_between_timesteps_have_no_derivative(highest):
    """At their height, as constants: all else of the time that the network is told counts."""
    times = np.array([900.0, 550.0, 260.0, 60.0])
    rng = np.random.default_rng(0)
    numbers = np.concatenate([family.gaps_of(times, TIMES), rng.normal(0, 0.05, 4), rng.normal(0.5, 0.2, 10)])
    numbers = numbers.astype(np.float32)
    net = fit.Network(told(jnp.sin), (jnp.float32(0.5),), (2, 2, 1))
    training = pairs_of(net, 3, 16)
    curvature, slope = fit.Program(net, TIMES, 4, 8).normal_equations(numbers, training)
    still = lambda time: jax.lax.stop_gradient(jnp.sin(time))
    expected_curvature, expected_slope, _ = through_the_scan(told(still)(jnp.float32(0.5)), numbers, 4, training)
    near(curvature, expected_curvature)
    near(slope, expected_slope)
    rippled, *_ = through_the_scan(told(jnp.sin)(jnp.float32(0.5)), numbers, 4, training)
    assert np.abs(rippled - expected_curvature).max() > 0.1 * np.abs(expected_curvature).max()  # a wave of 0.01


class Rippled:
    """A valley x^2 / 4 of the loss with ripples on it, of which the normal equations know nothing."""

    def __init__(self):
        self.visited = []

    def loss(self, x):
        return x**2 / 4 + 0.02 * np.sin(40 * x)

    def mean_squares(self, numbers, pairs):
        self.visited.append(float(numbers[0]))
        return np.exp(self.loss(numbers.astype(np.float64)))

    def normal_equations(self, numbers, pairs):
        return np.array([[0.5]]) * 5, numbers.astype(np.float64) / 2  # a fifth of the way at most


@pytest.mark.parametrize("rise", [0.0, 0.1])
def test_a_fit_goes_over_ripples_of_the_loss(monkeypatch, rise):
    """And the numbers are the best that it came by."""
    monkeypatch.setattr(fit, "RISE", rise)
    monkeypatch.setattr(fit, "PATIENCE", 12)
    program = Rippled()
    start = family.Numbers(np.array([3.0]), np.zeros(0), np.zeros(0))
    found = fit.fit(program, start, None, None, num_updates=60, report=Silent())
    reached = float(found.numbers.gaps[0])
    assert program.loss(reached) == min(map(program.loss, program.visited))
    assert found.held_out[-1].geometric_mean == pytest.approx(np.exp(program.loss(reached) / 2), rel=1e-5)
    assert (abs(reached) < 0.2) == (rise > 0)


def test_errors_of_pairs():
    found = fit.errors(np.array([1e-2, 1e-4]))
    assert found.geometric_mean == pytest.approx(np.exp(0.25 * np.log((1e-2 + 1e-6) * (1e-4 + 1e-6))))
    assert found.rms == pytest.approx(np.sqrt(0.00505))
