"""DPM++ SDE: its limits, its step written another way, and its law."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.configs import from_diffusers_config
from ddpm_jax.samplers.grids import sigma_grids
from tests.helpers import relative, trace
from tests.samplers.test_distribution import MEAN, VARIANCE, denoise, law
from tests.samplers.test_sigma import responses

S = schedules.linear()
AT = sigma_grids.discrete(S)
GRIDS = [sigma_grids.karras(S, 10), grids.leading(S, 7), grids.trailing(S, 1), sigma_grids.edm(5)]


@pytest.mark.parametrize("grid", GRIDS, ids=["karras", "leading", "one", "edm"])
def test_without_noise_it_is_the_flow_solver(grid):
    """Both are DPM-Solver++(2S), of second order; the tables differ in the units of a register."""
    found, expected = samplers.dpm_solver_sde(grid, AT, eta=0), samplers.dpm_solver_2s_ancestral(grid, AT, eta=0)
    slope = lambda sigma: 0.25 / (0.25 + sigma**2)  # of the best denoiser of data with variance 0.25
    np.testing.assert_allclose(responses(found, slope), responses(expected, slope), rtol=1e-12)
    np.testing.assert_allclose(found.rows.time, expected.rows.time, rtol=1e-13)
    assert found.num_calls == 2 * grid.num_steps - 1 and not found.rows.update[:, :, -1].any()


def test_order_of_the_flow_solver():
    errors = []
    for n in (100, 200):
        table = samplers.dpm_solver_sde(
            sigma_grids.from_sigmas(AT, sigma_grids.karras_sigmas(n + 1, 0.02, 20)), AT, eta=0
        )
        found = responses(table, lambda sigma: 0.25 / (0.25 + sigma**2))[-1, 0] / table.rows.alpha[0]
        # x / alpha runs with sqrt(0.25 + sigma^2)
        errors.append(abs(found - np.sqrt((0.25 + 0.02**2) / (0.25 + 20**2)) / table.rows.alpha[0] ** 2))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_steps_keep_the_noise_level(eta):
    # Data that is all 0: X must have standard deviation sigma at every call, half way ones included.
    table = samplers.dpm_solver_sde(GRIDS[0], AT, eta=eta)
    table = table._replace(init=table.rows.sigma[0])
    std = np.sqrt((responses(table, lambda sigma: 0.0) ** 2).sum(1))
    np.testing.assert_allclose(std[:-1], table.rows.sigma[1:], rtol=1e-12)


@pytest.mark.parametrize("eta", [0.7, 1.0])
def test_it_is_k_diffusions_step_along_a_brownian_path(eta, x64):
    """In x / alpha, with W drawn first at all levels and the noise of both calls read off it."""
    grid, s_noise = GRIDS[0], 1.1
    table = samplers.dpm_solver_sde(grid, AT, eta=eta, s_noise=s_noise)
    sigmas = [sigma_grids.ratio(level) for level in grid.levels]
    times = [s for now, after in itertools.pairwise(sigmas[:-1]) for s in (now, np.sqrt(now * after))] + [sigmas[-2]]
    rng = np.random.default_rng(0)
    x_T, z = rng.normal(size=(2, 3)), rng.normal(size=(len(times), 2, 3))
    path = {times[0]: np.zeros((2, 3))}
    for k, (now, after) in enumerate(itertools.pairwise(times)):
        path[after] = path[now] + np.sqrt(now - after) * z[k]
    noise = lambda now, after: s_noise * (path[after] - path[now]) / np.sqrt(now - after)

    def ancestral(now, after):
        up = min(after, eta * np.sqrt(after**2 * (now**2 - after**2) / now**2))
        return np.sqrt(after**2 - up**2), up

    mean = lambda x, sigma: MEAN + VARIANCE / (VARIANCE + sigma**2) * (x - MEAN)  # of x_0 given x = x_0 + sigma eps
    found = trace(denoise, table, jnp.asarray(x_T), jnp.asarray(z))
    x = x_T / grid.levels[0].alpha
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        if after == 0:
            x = mean(x, now)
        else:
            middle = np.sqrt(now * after)
            down, up = ancestral(now, middle)
            inner = down / now * x - np.expm1(np.log(down / now)) * mean(x, now) + up * noise(now, middle)
            down, up = ancestral(now, after)
            x = down / now * x - np.expm1(np.log(down / now)) * mean(inner, middle) + up * noise(now, after)
        assert relative(found[min(2 * i + 1, table.num_calls - 1)], x * grid.levels[i + 1].alpha) < 1e-12


def test_the_law_is_of_second_order_because_of_the_path():
    """The exact law of the result on Gaussian data, with noise of both calls from one path, or drawn twice."""
    errors = {"path": [], "twice": []}
    for n in (25, 50, 100, 200):
        table = samplers.dpm_solver_sde(sigma_grids.karras(S, n), AT)
        update = table.rows.update.copy()
        # Row 2j puts the noise so far into what the step starts from; here row 2j + 1 draws all of it instead.
        update[1::2, 0, -1] = np.hypot(update[1::2, 0, -1], update[:-1:2, 1, -1] * update[1::2, 0, 1])
        update[::2, 1, -1] = 0
        twice = table._replace(rows=table.rows._replace(update=update))
        for name, found in (("path", table), ("twice", twice)):
            mean, variance = law(found)
            errors[name].append(abs(mean - MEAN) + abs(variance / VARIANCE - 1))
    slopes = {name: np.log2(found[0] / found[-1]) / 3 for name, found in errors.items()}
    assert slopes["path"] > 1.75 and slopes["twice"] < 1.1 and errors["path"][-1] < 0.02 * errors["twice"][-1], errors


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"noise_sampler_seed": "3"}, r"noise_sampler_seed must be a whole number or null, got '3'"),
        ({"prediction_type": "sample"}, r"unknown prediction_type 'sample'.*epsilon, v_prediction"),
    ],
)
def test_what_the_preset_refuses(setting, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers_config({"_class_name": "DPMSolverSDEScheduler", **setting}, 5)


def test_a_seed_of_the_noise_changes_no_step():
    """Whose noise it is, the key says."""
    tables = [
        from_diffusers_config({"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": n}, 5).table
        for n in (None, 2**40)
    ]
    np.testing.assert_array_equal(tables[0].rows.update, tables[1].rows.update)


def test_eta_must_be_in_range():
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 2"):
        samplers.dpm_solver_sde(GRIDS[0], AT, eta=2)
