"""Gradients with respect to levels and schedules: against closed forms, and differences of whole sampling runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.differentiable import levels_of, table_at
from ddpm_jax.samplers.grids import Level, sigma_grids
from tests.helpers import relative

S = schedules.linear()
STEPS = [990, 700, 420, 170, 40]
GRID = grids.from_timesteps(S, STEPS)
KEY = jax.random.key(0)
X_T = np.random.default_rng(0).normal(size=(2, 3))
NOISE = np.random.default_rng(1).normal(size=(9, 2, 3))

SAMPLERS = {
    "ddim": samplers.ddim,
    "ddim_eta": functools.partial(samplers.ddim, eta=0.7),
    "ddpm": samplers.ddpm,
    "ddpm_small": functools.partial(samplers.ddpm, variance="fixed_small"),
    "dpm_solver_pp_2m": functools.partial(samplers.dpm_solver, order=2),
    "dpm_solver_pp_3m_sde": functools.partial(samplers.dpm_solver, order=3, eta=1.0),
    "unipc": functools.partial(samplers.unipc, order=3),
    "heun": samplers.heun,
    "plms": samplers.plms,
    "lms": samplers.lms,
    "dpm2": functools.partial(samplers.kdpm2, level_at=sigma_grids.discrete(S)),  # times between those of the grid
}


def denoise(x, row):
    """Some eps that depends on x and on the time; on the time as it is, not in float32 as `denoiser` hands it on."""
    eps = 0.8 * jnp.sin(x) + 3e-4 * row.time
    return samplers.Denoised((x - row.sigma * eps) / row.alpha, eps)


@jax.jit
def value(table):
    """A number at the end of a run."""
    dtype = table.rows.update.dtype
    x_T, noise = jnp.asarray(X_T, dtype), jnp.asarray(NOISE[: table.num_calls], dtype)
    x_0 = samplers.sample(denoise, table, None, (2, 3), x_T=x_T, noise=noise)
    return (x_0**2).sum()


def differences(function, at, direction, h=1e-5):
    """The derivative of function along a direction, to h^4."""
    f = lambda k: float(function(at + k * h * direction))
    return (8 * (f(1) - f(-1)) - (f(2) - f(-2))) / (12 * h)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_jacobian_of_ddim_is_the_closed_form(eta, x64):
    levels = jnp.asarray(GRID.levels)

    def in_jax(levels):
        """Coefficients of x_0, eps and z, and the rows' own level, in jax.numpy; Song et al., eq. 12 and 16."""
        s, t = levels[:-1], levels[1:]
        beta = (s[:, 2] ** 2 * t[:, 1] ** 2 - t[:, 2] ** 2 * s[:, 1] ** 2) / t[:, 1] ** 2
        std2 = eta**2 * t[:, 2] ** 2 / s[:, 2] ** 2 * beta
        root = lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
        return jnp.stack([t[:, 1], root(t[:, 2] ** 2 - std2), root(std2), *s.T], 1), jnp.hypot(*levels[0, 1:])

    def ours(levels):
        table = table_at(lambda grid: samplers.ddim(grid, eta=eta), GRID, levels)
        rows = table.rows
        return jnp.concatenate(
            [rows.update[:, 0, 1:], jnp.stack([rows.time, rows.alpha, rows.sigma], 1)], 1
        ), table.init

    for found, expected in zip(ours(levels), in_jax(levels), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-13)
    for found, expected in zip(jax.jacrev(ours)(levels), jax.jacrev(in_jax)(levels), strict=True):
        # What a relative change does: differences know a table to 1e-16 / 1e-6 of that. Zeros are constants.
        scale = np.asarray(levels.at[:, 0].set(1))
        np.testing.assert_allclose(np.asarray(found) * scale, np.asarray(expected) * scale, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_through_a_whole_run(name, x64):
    """Against differences of runs of ordinary tables, along a direction in all times, alphas and sigmas at once."""
    make, levels = SAMPLERS[name], np.asarray(GRID.levels)
    direction = np.random.default_rng(2).normal(size=levels.shape) * levels

    def of_ordinary_tables(values):
        return value(make(grids.Grid(tuple(Level(*map(float, row)) for row in values))))

    table = table_at(make, GRID, jnp.asarray(levels))
    for found, expected in zip(jax.tree.leaves(table), jax.tree.leaves(make(GRID)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-14)
    loss = lambda levels: value(table_at(make, GRID, levels))
    expected = differences(of_ordinary_tables, levels, direction)
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(levels))
    assert (gradient * direction).sum() == pytest.approx(expected, rel=2e-7)
    assert jax.jvp(loss, (levels,), (direction,))[1] == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("last", ["clean", "first"])
def test_gradient_with_respect_to_a_schedule(last, x64):
    grid = grids.from_timesteps(S, STEPS, last=last)
    names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    fine = dataclasses.replace(S, **{name: getattr(S, name).astype(float) for name in names})

    @jax.jit
    def loss(schedule):
        return value(table_at(SAMPLERS["unipc"], grid, levels_of(schedule, STEPS, last=last)))

    gradient = jax.jit(jax.grad(loss, allow_int=True))(fine)
    visited = [*STEPS, 0] if last == "first" else STEPS
    for name in names:
        found, leaf = np.asarray(getattr(gradient, name)), getattr(fine, name)
        assert not np.delete(found, visited).any() and found[visited].all()
        direction = np.asarray(leaf) * np.random.default_rng(3).normal(size=leaf.shape)
        moved = lambda values, name=name: loss(dataclasses.replace(fine, **{name: jnp.asarray(values)}))
        expected = differences(moved, np.asarray(leaf), direction)
        assert (found * direction).sum() == pytest.approx(expected, rel=1e-7)


def test_levels_of_a_schedule_are_those_of_its_grid():
    spaced = schedules.respace(S, np.arange(0, 1000, 10))
    for schedule, steps in ((S, STEPS), (spaced, [99, 50, 3]), (schedules.zero_terminal_snr(S), [999, 500])):
        for last in ("clean", "first"):
            grid = grids.from_timesteps(schedule, steps, last=last)
            found = jax.jit(lambda schedule, steps=steps, last=last: levels_of(schedule, steps, last=last))(schedule)
            np.testing.assert_allclose(found, np.asarray(grid.levels), rtol=1e-7)


@pytest.mark.slow
def test_in_float32_the_table_is_the_ordinary_one_to_rounding():
    for name, make in SAMPLERS.items():
        found, expected = table_at(make, GRID, levels_of(S, STEPS)), make(GRID)
        assert found.rows.update.dtype == jnp.float32
        # Rounded levels, 6e-8 relative, move a log-SNR by as much, and weights of several values by a little more.
        assert relative(found.rows.update, expected.rows.update) < 1e-6, name
        gradient = jax.grad(lambda levels, make=make: value(table_at(make, GRID, levels)))
        assert np.isfinite(gradient(levels_of(S, STEPS))).all()


def test_a_batch_of_grids_in_one_vmap(x64):
    levels = np.asarray(GRID.levels)
    batch = np.stack([levels * [1, 1, c] for c in (1.0, 1.01, 0.98)])
    loss = lambda levels: value(table_at(SAMPLERS["heun"], GRID, levels))
    together = jax.vmap(jax.value_and_grad(loss))(jnp.asarray(batch))
    for i, one in enumerate(batch):
        for a, b in zip(together, jax.value_and_grad(loss)(jnp.asarray(one)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12)


def test_a_grid_can_be_learned(x64):
    """Gradient steps on the levels of DDIM with 4 calls come closer to a run of 200 than where they started."""
    x_T, grid = jnp.asarray(X_T), grids.trailing(S, 4)
    noise = lambda table: jnp.zeros((table.num_calls, 2, 3))
    run = lambda table: samplers.sample(denoise, table, None, (2, 3), x_T=x_T, noise=noise(table))
    target = run(samplers.ddim(grids.leading(S, 200, offset=4)))
    logs = np.log([sigma_grids.ratio(s) for s in grid.levels[:-1]])

    @jax.jit
    @jax.value_and_grad
    def loss(log_gaps):
        log_sigmas = logs[0] - jnp.cumsum(jnp.exp(log_gaps))  # of x / alpha; the start is given
        sigma = jnp.exp(jnp.concatenate([jnp.asarray(logs[:1]), log_sigmas]))
        alpha = 1 / jnp.hypot(1.0, sigma)
        called = jnp.stack([jnp.asarray([s.time for s in grid.levels[:-1]]), alpha, sigma * alpha], 1)
        levels = jnp.concatenate([called, jnp.asarray([[0.0, 1.0, 0.0]])])
        return ((run(table_at(samplers.ddim, grid, levels)) - target) ** 2).mean()

    x, errors = jnp.log(-jnp.diff(logs)), []
    for _ in range(20):
        error, slope = loss(x)
        errors.append(float(error))
        x -= 0.1 * slope / jnp.linalg.norm(slope)
    assert errors[-1] < 0.5 * errors[0], errors


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: table_at(samplers.ddim, GRID, jnp.zeros((5, 3))),
            ValueError,
            r"levels must have shape \(6, 3\), those of the grid, got \(5, 3\)",
        ),
        (lambda: levels_of(S, [1000]), ValueError, r"timesteps must lie in \[0, 1000\), got 1000"),
        (lambda: levels_of(S, [5], last="end"), ValueError, r"unknown last level 'end'.*clean, first"),
        (
            lambda: table_at(samplers.ddim, GRID, jnp.asarray(GRID.levels)[::-1]),
            jax.errors.JaxRuntimeError,
            r"noise must decrease strictly along a grid",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        jax.block_until_ready(call())
