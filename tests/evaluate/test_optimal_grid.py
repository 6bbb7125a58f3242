"""Costs of strided steps against the bound itself; dynamic programming against every subset."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.evaluate import optimal_timesteps, step_costs, vlb_terms
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import make_table_at
from tests.helpers import golden, mixture_model

S = schedules.linear_rescaled(100)
ARRAYS, _ = golden("openai/bpd_linear100full_small")  # the mixture that was recorded with this schedule
MODEL = mixture_model(ARRAYS)
X_0 = jnp.asarray(np.clip(ARRAYS["x_start"], -1, 1), jnp.float32)


def transitions(timesteps, variance):
    """The bound's terms t > 0, mean over images, of the process strided to these (decreasing) timesteps; x_0_mse."""
    schedule = schedules.respace(S, timesteps[::-1])
    # The same eps at the same original timestep, so that the errors are those of the table.
    noise = jax.random.normal(jax.random.key(0), (100, *X_0.shape))[np.asarray(timesteps[::-1])]
    terms = vlb_terms(MODEL, schedule, X_0, noise=noise, variance=variance)
    return np.asarray(terms.bits_per_dim).mean(axis=0)[1:], np.asarray(terms.x_0_mse).mean(axis=0)


MSE = transitions(np.arange(100)[::-1], "fixed_small")[1]


def cost_of(costs, timesteps):
    return sum(costs[t, s] for t, s in itertools.pairwise(timesteps))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("timesteps", [[99, 60, 59, 7, 0], [99, 0], list(range(99, -1, -1))])
def test_costs_are_the_terms_of_the_strided_bound(variance, timesteps, highest):
    costs = step_costs(S, MSE, variance=variance)
    terms, _ = transitions(np.array(timesteps), variance)
    expected = [costs[t, s] for t, s in itertools.pairwise(timesteps)][::-1]
    # The first steps' fixed_large terms are small differences of large ones in float32.
    np.testing.assert_allclose(terms, expected, rtol=2e-4, atol=2e-6)


def test_analytic_variance_is_the_best_of_all():
    analytic = step_costs(S, MSE, variance="analytic")
    keep, noise = S.alphas_cumprod_float64, S.one_minus_alphas_cumprod_float64
    t, s = 70, 30
    gain = (keep[s] / noise[s] - keep[t] / noise[t]) * MSE[t]
    ratios = np.geomspace(0.2, 50, 100_001)  # p's variance over beta_tilde
    nats = (np.log(ratios) + (1 + gain) / ratios - 1) / 2
    assert analytic[t, s] == pytest.approx(nats.min() / np.log(2), rel=1e-6)
    later = np.tri(100, k=-1, dtype=bool)
    for other in ("fixed_small", "fixed_large"):
        assert (analytic[later] <= step_costs(S, MSE, variance=other)[later]).all()
    assert np.isinf(analytic[~later]).all()


@pytest.mark.parametrize("num_steps", range(2, 10))
def test_it_is_the_best_of_all_subsets(num_steps):
    costs = np.random.RandomState(num_steps).rand(9, 9)
    every = [(8, *inner, 0) for inner in itertools.combinations(range(7, 0, -1), num_steps - 2)]
    best = min(every, key=lambda timesteps: cost_of(costs, timesteps))
    assert tuple(optimal_timesteps(costs, num_steps)) == best


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_its_bound_is_below_that_of_even_strides(variance, highest):
    costs = step_costs(S, MSE, variance=variance)
    for num_steps, gain in ((5, 1.0), (20, 0.95)):
        best = optimal_timesteps(costs, num_steps)
        even = grids.section_timesteps(100, num_steps)[::-1]
        totals = [transitions(timesteps, variance)[0].sum() for timesteps in (best, even)]
        assert totals[0] < gain * totals[1], (num_steps, totals)


def test_its_grid_is_one_for_every_sampler():
    timesteps = optimal_timesteps(step_costs(S, MSE), 6)
    grid = grids.from_timesteps(S, timesteps)
    assert (grid.num_steps, grid.levels[0].time, grid.levels[-2].time) == (6, 99, 0)
    run = samplers.Runner(lambda: samplers.denoiser(MODEL), (2, 3, 4, 4), max_calls=8)
    for table in (samplers.ddpm(grid), samplers.ddim(grid), samplers.plms(grid), samplers.dpm_solver(grid)):
        assert set(table.rows.time) == set(timesteps)
        assert np.isfinite(run(table, jax.random.key(0))).all()


def test_samplers_by_name_on_chosen_timesteps():
    timesteps = optimal_timesteps(step_costs(S, MSE), 6)
    grid = grids.from_timesteps(S, timesteps)
    for name, expected in (("ddim", samplers.ddim(grid)), ("euler", samplers.euler(grid))):
        found = make_table_at(name, S, timesteps[::-1])
        np.testing.assert_array_equal(found.rows.update, expected.rows.update)
        np.testing.assert_array_equal(found.rows.time, timesteps)
    with pytest.raises(ValueError, match=r"num_steps must be a whole number in \[4, 100\], got 3"):
        make_table_at("pndm", S, [99, 3, 0])
    with pytest.raises(ValueError, match=r"decreas"):
        make_table_at("ddim", S, [99, 3, 3])
    with pytest.raises(ValueError, match=r"timesteps must lie in \[0, 100\), got 100"):
        make_table_at("ddim", S, [100, 0])


def test_more_steps_than_one_table_knows_are_refused():
    costs = step_costs(S, MSE)
    for n in (1, 101, 2.5):
        with pytest.raises(ValueError, match=rf"num_steps must be a whole number in \[2, 100\], got {n}"):
            optimal_timesteps(costs, n)
    with pytest.raises(ValueError, match=r"costs must be \[T, T\], got shape \(3, 4\)"):
        optimal_timesteps(np.zeros((3, 4)), 2)
    with pytest.raises(ValueError, match=r"one number a timestep, \[100\], got \(7,\)"):
        step_costs(S, np.zeros(7))
    with pytest.raises(ValueError, match="not negative, got nan at t = 3"):
        step_costs(S, np.where(np.arange(100) == 3, np.nan, 1.0))
    with pytest.raises(ValueError, match=r"unknown variance 'learned_range'.*fixed_small, fixed_large, analytic"):
        step_costs(S, MSE, variance="learned_range")
