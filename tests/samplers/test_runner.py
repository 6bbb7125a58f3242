"""One compiled program for every sampler, the catalogue, and tables of several samplers at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import CATALOGUE, make_table
from ddpm_jax.samplers.catalogue import GRIDS as NAMED
from ddpm_jax.samplers.grids import dpm_grids, fastdpm, sigma_grids

S = schedules.linear(1000)
ZERO = schedules.zero_terminal_snr(S)
SHAPE = (2, 4, 4, 1)
KEY = jax.random.key(0)


def network(scale):
    return samplers.denoiser(lambda x, t: scale * jnp.sin(x) + 1e-4 * t.astype(x.dtype)[:, None, None, None], clip=1.0)


def test_200_configurations_one_compilation():
    traced = []

    def make_denoise(scale):
        traced.append(scale)
        return network(scale)

    run = samplers.Runner(make_denoise, SHAPE, max_calls=101)
    scale = jax.device_put(np.float32(0.5))
    tables = [make_table(name, S, n) for name in CATALOGUE for n in (4, 5, 6, 8, 10, 20, 35, 50)]
    assert len(tables) >= 200
    run(tables[0], KEY, scale)
    with jax.transfer_guard("disallow"):
        for table in tables:
            jax.block_until_ready(run(table, KEY, scale))
        other = run(tables[0], jax.random.clone(KEY), jax.device_put(np.float32(0.25)), first_index=7)
    assert len(traced) == 1
    assert np.isfinite(other).all()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "plms", "unipc_3", "heun", "dpm_solver_pp_3m_sde"])
def test_the_runner_is_sample(name):
    table = make_table(name, S, 9)
    run = samplers.Runner(network, SHAPE, max_calls=40)
    alone = jax.jit(lambda key: samplers.sample(network(0.5), table, key, SHAPE, first_index=3))
    np.testing.assert_allclose(run(table, KEY, jnp.float32(0.5), first_index=3), alone(KEY), atol=2e-6)


def test_a_stack_of_samplers_in_one_vmap(x64):
    x_T = jax.random.normal(KEY, SHAPE, float)
    run = lambda table: samplers.sample(network(0.5), table, KEY, SHAPE, x_T=x_T)
    tables = [make_table(name, S, n) for name, n in (("ddim", 4), ("unipc_3", 7), ("ddpm_small", 5), ("heun", 3))]
    together = jax.vmap(run)(samplers.stack(tables))
    for table, found in zip(tables, together, strict=True):
        np.testing.assert_allclose(found, run(table), atol=1e-12)


def test_padding_changes_nothing_but_the_size():
    table = make_table("dpm_solver_pp_2m", S, 6)
    padded = samplers.pad(table, 9)
    assert padded.num_calls == 9 and padded.rows.update.shape == (9, 6, 9)
    np.testing.assert_array_equal(padded.rows.update[6:], np.tile(np.eye(6, 9), (3, 1, 1)))
    found = samplers.sample(network(0.5), padded, KEY, SHAPE)
    np.testing.assert_allclose(found, samplers.sample(network(0.5), table, KEY, SHAPE), atol=1e-6)


@pytest.mark.parametrize(
    "attempt, message",
    [
        (lambda: samplers.pad(make_table("ddim", S, 6), 5), r"the table has 6 rows, more than the 5 allowed"),
        (lambda: samplers.pad(make_table("unipc_3", S, 6), 9, 2), r"needs \d registers, more than the 2 allowed"),
        (lambda: samplers.Runner(network, SHAPE, 5)(make_table("ddim", S, 6), KEY, 1.0), r"6 rows, more than the 5"),
        (lambda: make_table("unipcc", S, 6), r"unknown sampler 'unipcc'; did you mean 'unipc'"),
        (lambda: make_table("unipc", S, 1001), r"num_steps must be a whole number in \[1, 1000\], got 1001"),
        (lambda: make_table("unipc", S, 6, "karas"), r"unknown grid 'karas'; did you mean 'karras'"),
        (lambda: make_table("pndm", S, 6, "karras"), r"need a grid of the schedule's timesteps, got times \[99"),
        (lambda: make_table("euler", ZERO, 6, "trailing"), r"cannot start from pure noise: alpha is 0 at time 999 of"),
        (lambda: make_table("unipc", ZERO, 6, "trailing"), r"cannot start from pure noise: alpha is 0 at time 999 of"),
        (lambda: make_table("unipc", S, 0), r"num_steps must be a whole number in \[1, 1000\], got 0"),
    ],
)
def test_bad_arguments(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_eps_at_zero_snr_is_refused_by_the_runner_too():
    table = samplers.ddim(grids.trailing(schedules.zero_terminal_snr(S), 5))
    with pytest.raises(ValueError, match="eps says nothing about x_0"):
        samplers.Runner(network, SHAPE, 10)(table, KEY, jnp.float32(1))


@functools.cache
def runner_of(prediction, max_calls):
    """One for all tests that ask for the same."""
    half = lambda: samplers.denoiser(lambda x, t: 0.5 * x, prediction=prediction, clip=1.0)
    return samplers.Runner(half, (1, 2, 2, 1), max_calls=max_calls)


@pytest.mark.parametrize("prediction", ["eps", *(pytest.param(p, marks=pytest.mark.slow) for p in ("x_0", "v"))])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_number_of_steps_is_finite(name, prediction):
    run = runner_of(prediction, 1999)
    for n in (1, 2, 3, 7, 999, 1000):
        if n < CATALOGUE[name].least:
            with pytest.raises(ValueError, match=rf"num_steps must be a whole number in \[[24], 1000\], got {n}"):
                make_table(name, S, n)
            continue
        assert np.isfinite(run(make_table(name, S, n), KEY)).all(), n


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_sampler_on_a_grid_by_name(name):
    """The network is called at the levels of that grid; where it is the sampler's own, nothing changes."""
    for grid, spread in NAMED.items():
        if name == "pndm" and spread.__module__ != grids.__name__ and spread is not fastdpm.step_grid:
            continue  # needs timesteps: refused, see test_bad_arguments
        table = make_table(name, S, 6, grid)
        assert np.isfinite(table.rows.update).all()
        called = {(time, alpha) for time, alpha in zip(table.rows.time, table.rows.alpha, strict=True)}
        assert {(s.time, s.alpha) for s in spread(S, 6).levels[:-1]} <= called, grid
        if spread is CATALOGUE[name].spread:
            np.testing.assert_array_equal(table.rows.update, make_table(name, S, 6).rows.update)


GRIDS = [
    *(grids.leading, grids.trailing, grids.linspace, grids.uniform, grids.quad, grids.sections, grids.lucidrains),
    *(dpm_grids.leading, dpm_grids.linspace, dpm_grids.trailing),
    *(dpm_grids.log_snr_uniform, dpm_grids.time_uniform, dpm_grids.time_quadratic),
    *(sigma_grids.linspace, sigma_grids.karras, sigma_grids.exponential, sigma_grids.beta),
    *(fastdpm.step_grid, fastdpm.var_grid),
]
ON_ANY_GRID = [
    *(samplers.ddpm, samplers.ddim, samplers.plms, samplers.ipndm, samplers.euler, samplers.euler_ancestral),
    *(samplers.heun, samplers.lms, samplers.sa_solver),
    *(functools.partial(samplers.deis, order=order) for order in (1, 2, 3)),
    *(functools.partial(samplers.dpm_solver, order=order, eta=eta) for order in (1, 2, 3) for eta in (0.0, 1.0)),
    *(functools.partial(samplers.dpm_solver_singlestep, order=order, predict="eps") for order in (2, 3)),
    *(functools.partial(samplers.unipc, order=order) for order in (1, 2, 3)),
]


@pytest.mark.slow
@pytest.mark.parametrize("spread", GRIDS, ids=lambda spread: f"{spread.__module__.split('.')[-1]}.{spread.__name__}")
def test_every_sampler_on_every_grid_is_finite(spread):
    runs = [runner_of(prediction, 20) for prediction in ("eps", "x_0", "v")]
    grids = {}
    for n in (1, 2, 3, 7, 1000, 999):
        try:
            grids[n] = spread(S, n)
        except ValueError as error:
            # Some spacings have no single step, or at most T - 1; they say so.
            assert n in (1, 1000) and "num_steps must be" in str(error), (n, error)
    if 1000 in grids:
        del grids[999]  # the longest is enough
    for n, grid in grids.items():
        for sampler in ON_ANY_GRID:
            table = sampler(grid)
            assert all(np.isfinite(leaf).all() for leaf in table.rows), (n, sampler)
            if n <= 7:
                assert all(np.isfinite(run(table, KEY)).all() for run in runs), (n, sampler)


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if not entry.stochastic])
def test_the_catalogue_says_who_draws_noise(name):
    assert not make_table(name, S, 12).rows.update[:, :, -1].any()


def test_stochastic_samplers_draw_noise():
    for name, entry in CATALOGUE.items():
        assert entry.stochastic == bool(make_table(name, S, 12).rows.update[:, :, -1].any()), name


def test_gradient_through_the_table(x64):
    """What a learned sampler needs."""
    table = jax.tree.map(jnp.asarray, make_table("dpm_solver_pp_2m", S, 4))
    x_T = jax.random.normal(KEY, SHAPE, float)

    def value(table):
        noise = jnp.zeros((4, *SHAPE))
        return (
            samplers.sample(samplers.denoiser(lambda x, t: jnp.sin(x)), table, None, SHAPE, x_T=x_T, noise=noise) ** 2
        ).sum()

    found = jax.grad(value)(table)
    for path in ("alpha", "sigma", "update"):
        leaf = getattr(table.rows, path)
        direction = jax.random.normal(KEY, leaf.shape, float) * leaf
        moved = lambda h, path=path, leaf=leaf, direction=direction: value(
            table._replace(rows=table.rows._replace(**{path: leaf + h * direction}))
        )
        numerical = (moved(1e-6) - moved(-1e-6)) / 2e-6
        np.testing.assert_allclose((getattr(found.rows, path) * direction).sum(), numerical, rtol=1e-6)
