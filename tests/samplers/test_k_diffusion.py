"""The catalogue under the names that k-diffusion's users know, beside what its functions do, written down again.

x is x_0 + sigma eps here, the sigmas are those of a Karras grid down to 0, and everything is in float64.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cli, samplers, schedules
from ddpm_jax.samplers.catalogue import ALIASES, CATALOGUE, make_table
from ddpm_jax.samplers.denoise import Denoised
from ddpm_jax.samplers.grids import sigma_grids
from tests.helpers import relative, trace

S = schedules.linear()
N = 9
GRID = sigma_grids.karras(S, N)
SIGMAS = np.array([sigma_grids.ratio(level) for level in GRID.levels])
STEPS = list(itertools.pairwise(SIGMAS))


def best(x, sigma):
    """E[x_0 | x] for half N(-1, 0.05) and half N(1, 0.05)."""
    mean = jnp.tanh(x / (0.05 + sigma**2))
    return mean + 0.05 / (0.05 + sigma**2) * (x - mean)


def denoise(x, row):
    x_0 = best(x / row.alpha, row.sigma / row.alpha)
    return Denoised(x_0, (x - row.alpha * x_0) / row.sigma, jnp.ones_like(row.alpha))


def slope(x, sigma):
    return (x - best(x, sigma)) / sigma


def halved(sigma, after, eta):
    """Down and up of an ancestral step."""
    up = min(after, eta * (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5)
    return (after**2 - up**2) ** 0.5, up


def toward(x, sigma, after, x_0):
    """Where x is at `after`, along the line through x_0."""
    return x_0 + after / sigma * (x - x_0)


def euler(x, draw):
    for sigma, after in STEPS:
        x = x + (after - sigma) * slope(x, sigma)
    return x


def euler_ancestral(x, draw):
    for sigma, after in STEPS:
        down, up = halved(sigma, after, 1.0)
        x = x + (down - sigma) * slope(x, sigma) + up * draw()
    return x


def heun(x, draw):
    for sigma, after in STEPS:
        d = slope(x, sigma)
        end = x + (after - sigma) * d
        x = end if after == 0 else x + (after - sigma) * (d + slope(end, after)) / 2
        draw(1 if after == 0 else 2)
    return x


def dpm_2(x, draw, eta=0.0):
    for sigma, after in STEPS:
        down, up = halved(sigma, after, eta)
        d = slope(x, sigma)
        if down == 0:
            return x - sigma * d
        middle = np.sqrt(sigma * down)
        x = x + (down - sigma) * slope(x + (middle - sigma) * d, middle) + up * draw(2)


def lms(x, draw):
    past = []
    for i, (sigma, after) in enumerate(STEPS):
        past = [slope(x, sigma), *past][:4]
        draw()
        nodes = SIGMAS[i + 1 - len(past) : i + 1][::-1]
        for j, d in enumerate(past):
            others = np.delete(nodes, j)
            lagrange = np.poly1d(others, r=True) / np.prod(nodes[j] - others)
            area = lagrange.integ()
            x = x + (area(after) - area(sigma)) * d
    return x


def dpmpp_2s_ancestral(x, draw):
    for sigma, after in STEPS:
        down, up = halved(sigma, after, 1.0)
        x_0 = best(x, sigma)
        if down == 0:
            return x_0
        middle = np.sqrt(sigma * down)
        x = toward(x, sigma, down, best(toward(x, sigma, middle, x_0), middle)) + up * draw(2)


def multistep(order, eta=0.0, solver="midpoint"):
    """DPM++ 2M, 2M SDE and 3M SDE."""

    def loop(x, draw):
        past, lengths = [], []
        for sigma, after in STEPS:
            x_0, z = best(x, sigma), draw()
            if after == 0:
                return x_0
            h = np.log(sigma / after)
            c = (1 + eta) * h
            x = np.exp(-c) * x - np.expm1(-c) * x_0
            phi_2 = np.expm1(-c) / c + 1
            if len(past) == 0 or order == 1:
                first, second = 0.0, 0.0
            elif len(past) == 1 or order == 2:
                first, second = (x_0 - past[0]) / (lengths[0] / h), 0.0
            else:
                r, q = lengths[0] / h, lengths[1] / h
                new, old = (x_0 - past[0]) / r, (past[0] - past[1]) / q
                first, second = new + (new - old) * r / (r + q), (new - old) / (r + q)
            x = x + (phi_2 if solver == "heun" else -np.expm1(-c) / 2) * first - (phi_2 / c - 0.5) * second
            x = x + z * after * np.sqrt(-np.expm1(-2 * eta * h))
            past, lengths = [x_0, *past], [h, *lengths]

    return loop


LOOPS = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": lambda x, draw: dpm_2(x, draw, eta=1.0),
    "lms": lms,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m": multistep(2),
    "dpmpp_2m_sde": multistep(2, eta=1.0),
    "dpmpp_3m_sde": multistep(3, eta=1.0, solver="heun"),
}


def both(table, loop):
    """Ours and theirs with the same noise: of a two-call step, that of the second call."""
    rng = np.random.default_rng(0)
    x_T, noise = rng.normal(size=(2, 5)), rng.normal(size=(table.num_calls, 2, 5))
    position = -1

    def draw(calls=1):
        nonlocal position
        position += calls
        return noise[position]

    table = table._replace(init=table.rows.sigma[0])
    found = trace(denoise, table, jnp.asarray(x_T), jnp.asarray(noise))[-1]
    return found, loop(SIGMAS[0] * x_T, draw)


@pytest.mark.parametrize("name", LOOPS)
def test_names_of_k_diffusion(name, x64):
    found, expected = both(make_table(name, S, N, "karras"), LOOPS[name])
    assert relative(found, expected) < 1e-12


def test_every_other_name_has_its_entry_and_its_loop(capsys):
    """dpmpp_sde beside a Brownian path is in test_dpm_sde.py."""
    assert set(ALIASES) - set(LOOPS) == {"dpmpp_sde"} and not set(ALIASES) & set(CATALOGUE)
    assert set(ALIASES.values()) <= set(CATALOGUE)
    cli.main(["samplers"])  # says them
    assert "dpm_2 = dpm2, dpm_2_ancestral = dpm2_ancestral, dpmpp_2s_ancestral = " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"unknown sampler 'dpmpp_2n'; did you mean 'dpmpp_2m'"):
        make_table("dpmpp_2n", S, N)
    table = make_table("dpmpp_sde", S, N, "karras")
    np.testing.assert_array_equal(table.rows.update, samplers.dpm_solver_sde(GRID, sigma_grids.discrete(S)).rows.update)


@pytest.mark.parametrize(
    "options, loop",
    [
        ({"eta": 1.0, "method": "heun"}, multistep(2, eta=1.0, solver="heun")),
        ({"eta": 0.4}, multistep(2, eta=0.4)),
        ({"order": 3, "eta": 0.5, "method": "heun", "lower_order_final": False}, multistep(3, eta=0.5, solver="heun")),
    ],
)
def test_their_options(options, loop, x64):
    assert relative(*both(samplers.dpm_solver_pp(GRID, **options), loop)) < 1e-12


@pytest.mark.parametrize("options", [{"method": "heun"}, {"lower_order_final": False}])
def test_3m_sde_needs_both_options(options, x64):
    found, expected = both(samplers.dpm_solver_pp(GRID, order=3, eta=1.0, **options), LOOPS["dpmpp_3m_sde"])
    assert relative(found, expected) > 1e-6
