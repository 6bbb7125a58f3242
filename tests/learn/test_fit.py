"""The fit: exact where the family holds the flow, its gradient that of the loss."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.learn import family, fit
from ddpm_jax.samplers.catalogue import make_table
from tests.learn.common import MEAN, STD, Silent, exact_gaussian, network

SCHEDULE = schedules.linear()
TIMES = family.times_of(SCHEDULE)


def pairs_of(net, first, count, targets=None, seed=0):
    key = fit.pair_key(seed)
    teacher = make_table("unipc", SCHEDULE, 60, "karras")
    return fit.Pairs(key, first, fit.draw(net, teacher, key, first, count, 8) if targets is None else targets)


def fitted(scale, name, num_calls, num_updates, seed=0, report=None):
    net = network(scale)
    begin = family.numbers_of(make_table(name, SCHEDULE, num_calls, "trailing"), SCHEDULE)
    training, held_out = pairs_of(net, 0, 32, seed=seed), pairs_of(net, fit.HELD_OUT, 16, seed=seed)
    program = fit.Program(net, TIMES, num_calls, 8)
    return fit.fit(program, begin, training, held_out, num_updates=num_updates, report=report or Silent())


def test_one_call_is_exact_for_a_gaussian():
    """The flow of a Gaussian is affine, and so is one call with two numbers free: what is learned is exact."""
    found = fitted(0.0, "ddim", 1, 12)
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
    found = fitted(0.5, "unipc", 3, 12)
    assert found.held_out[-1].geometric_mean < found.held_out[0].geometric_mean / 2.5
    assert (np.diff([error.geometric_mean for error in found.held_out[:3]]) < 0).all()
    table = family.table_of(jax.tree.map(jnp.asarray, found.numbers), TIMES)
    assert (np.diff(np.asarray(table.rows.time)) < 0).all()


def test_a_fit_ends_where_an_update_gains_little(monkeypatch):
    updates = []
    for gain in (0.05, 0.02, 0.0):
        monkeypatch.setattr(fit, "LEAST_GAIN", gain)
        report = Silent()
        updates.append(len(fitted(0.5, "unipc", 3, 12, report=report).held_out) - 1)
        ended = re.fullmatch(r"learned: update (\d+) made the error of the pairs (.*)% less", str(report.said[-1]))
        assert (ended is None) == (gain == 0)
        assert ended is None or (int(ended[1]) == updates[-1] and float(ended[2]) / 100 < gain / 2)
    assert 1 <= updates[0] < updates[1] < updates[2] == 12


@pytest.mark.slow
def test_the_same_seed_is_the_same_table():
    a, b, c = (fitted(0.5, "ddim", 2, 2, seed).numbers for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a.weights != c.weights).any()


@pytest.mark.parametrize("num_calls", [1, 4])
def test_the_normal_equations_are_those_of_derivatives_through_the_scan(highest, num_calls):
    """J^T W J and J^T W r with J by forward mode through `sample`; 2 / (D P) J^T W r is the gradient of the loss."""
    net = network(0.5)
    begin = family.numbers_of(make_table("ddim", SCHEDULE, num_calls, "quad"), SCHEDULE)
    rng = np.random.default_rng(0)  # no number is 0, so that each call sees all before it
    numbers = np.concatenate(begin).astype(np.float32) + rng.normal(0, 0.05, sum(map(len, begin))).astype(np.float32)
    training = pairs_of(net, 3, 16)
    curvature, slope = fit.Program(net, TIMES, num_calls, 8).normal_equations(numbers, training)

    def left(numbers):
        table = family.table_of(family.Numbers.from_flat(numbers, num_calls), TIMES)
        shape = training.targets.shape
        x_0 = samplers.sample(exact_gaussian(jnp.float32(0.5)), table, training.key, shape, first_index=3)
        return (x_0 - training.targets).reshape(16, -1)

    loss = lambda numbers: jnp.mean(jnp.log(jnp.mean(left(numbers) ** 2, axis=1) + fit.FLOOR**2))
    residual, jacobian = map(np.asarray, jax.jit(lambda numbers: (left(numbers), jax.jacfwd(left)(numbers)))(numbers))
    weighted = jacobian / (np.mean(residual**2, axis=1)[:, None, None] + fit.FLOOR**2)
    tolerance = lambda expected: {"rtol": 2e-3, "atol": 1e-4 * np.abs(expected).max()}
    expected = np.einsum("ipv,ipw->vw", weighted, jacobian)
    np.testing.assert_allclose(curvature, expected, **tolerance(expected))
    expected = np.einsum("ipv,ip->v", weighted, residual)
    np.testing.assert_allclose(slope, expected, **tolerance(expected))
    gradient = jax.jit(jax.grad(loss))(numbers)
    np.testing.assert_allclose(2 / (4 * 16) * slope, gradient, **tolerance(gradient))


def test_errors_of_pairs():
    found = fit.errors(np.array([1e-2, 1e-4]))
    assert found.geometric_mean == pytest.approx(np.exp(0.25 * np.log((1e-2 + 1e-6) * (1e-4 + 1e-6))))
    assert found.rms == pytest.approx(np.sqrt(0.00505))
