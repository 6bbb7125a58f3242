"""Ancestral steps written out in float64 NumPy: clipping with raw eps, classifier guidance, variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import make_table
from tests.helpers import relative, trace

S = schedules.linear()
STEPS = [999, 870, 640, 410, 200, 75, 12, 0]
GRID = grids.from_timesteps(S, STEPS)
X_T, NOISE = np.random.RandomState(0).randn(3, 4), np.random.RandomState(1).randn(8, 3, 4)


def eps_of(x, t):
    return 0.7 * np.sin(3 * x) + t / 2000


def network(x, t):
    return 0.7 * jnp.sin(3 * x) + t[:, None].astype(x.dtype) / 2000


def gradient(x, t):
    return (0.5 - x) * (1 + t[:, None].astype(x.dtype) / 1000)


def posteriors():
    """(t, alphas_cumprod, coef1, coef2, beta_tilde, beta) of the respaced process, from noisy to clean: eq. 6-7."""
    keep = S.alphas_cumprod_float64[STEPS]
    before = np.append(keep[1:], 1.0)
    betas = 1 - keep / before
    small = betas * (1 - before) / (1 - keep)
    coef1, coef2 = betas * np.sqrt(before) / (1 - keep), np.sqrt(1 - betas) * (1 - before) / (1 - keep)
    return list(zip(STEPS, keep, coef1, coef2, small, betas, strict=True))


def ancestral(variance, *, clip=None, scale=0.0):
    """x after every step: the mean of q(x_{t-1} | x_t, pred_x_0), moved by variance * scale * gradient, and noise."""
    x, trace, rows = X_T, [], posteriors()
    for k, (t, keep, coef1, coef2, small, beta) in enumerate(rows):
        x_0 = (x - np.sqrt(1 - keep) * eps_of(x, t)) / np.sqrt(keep)
        x_0 = x_0 if clip is None else np.clip(x_0, -clip, clip)
        # Dhariwal & Nichol's code: fixed_small is beta_tilde, 0 at the end; fixed_large has that of the step before.
        last = k == len(rows) - 1
        value = {"fixed_small": small, "fixed_large": rows[-2][4] if last else beta}[variance]
        mean = coef1 * x_0 + coef2 * x + value * scale * gradient(x, np.full(len(x), t))
        x = mean + (0 if last else np.sqrt(value)) * NOISE[k]
        trace.append(x)
    return np.stack(trace)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("eps_after_clip", ["raw", "rederived"])
def test_the_mean_is_that_of_the_clipped_image_and_of_x_itself(variance, eps_after_clip, x64):
    """Whether eps is derived again is no matter: the mean coef1 clip(x_0) + coef2 x has no eps in it."""
    denoise = samplers.denoiser(network, clip=0.8, eps_after_clip=eps_after_clip)
    found = trace(denoise, samplers.ddpm(GRID, variance=variance), X_T, NOISE)
    assert relative(found, ancestral(variance, clip=0.8)) < 1e-12


def test_raw_eps_is_what_ddim_goes_along(x64):
    """Song et al. eq. 12 with a clipped x_0 and the network's own eps; not what rederived eps gives."""
    x, levels = X_T, [row[:2] for row in posteriors()]
    for (t, keep), before in zip(levels, [*(keep for _, keep in levels[1:]), 1.0], strict=True):
        eps = eps_of(x, t)
        x_0 = np.clip((x - np.sqrt(1 - keep) * eps) / np.sqrt(keep), -0.8, 0.8)
        x = np.sqrt(before) * x_0 + np.sqrt(1 - before) * eps
    run = lambda kind: trace(samplers.denoiser(network, clip=0.8, eps_after_clip=kind), samplers.ddim(GRID), X_T, NOISE)
    assert relative(run("raw")[-1], x) < 1e-12
    assert relative(run("raw"), run("rederived")) > 0.05


@pytest.mark.parametrize("name", ["heun", "dpm_solver_pp_2m", "plms", "unipc", "euler_ancestral", "dpm2"])
def test_raw_eps_without_a_clip_that_bites_changes_nothing(name, x64):
    table = make_table(name, S, 6)
    noise = jnp.zeros((table.num_calls, 3, 4))
    run = lambda kind: trace(samplers.denoiser(network, clip=1e6, eps_after_clip=kind), table, X_T, noise)
    assert relative(run("raw"), run("rederived")) < 1e-11


def test_raw_eps_through_the_loops_and_the_padded_table():
    """`sample`, and `Runner` whose tables are padded, add what is left of x as one step after another does."""
    make = lambda: samplers.denoiser(network, clip=0.8, eps_after_clip="raw")
    table = samplers.ddpm(GRID, variance="fixed_small")
    x_T, noise = (jnp.asarray(a, jnp.float32) for a in (X_T, NOISE))
    found = jax.jit(lambda: samplers.sample(make(), table, None, (3, 4), x_T=x_T, noise=noise))()
    assert relative(found, ancestral("fixed_small", clip=0.8)[-1]) < 1e-5
    run = samplers.Runner(make, (3, 4), max_calls=20)
    drawn = jax.jit(lambda key: samplers.sample(make(), table, key, (3, 4)))(jax.random.key(5))
    assert relative(run(table, jax.random.key(5)), drawn) < 1e-5


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_classifier_guidance_weighs_with_the_variance_of_the_step(variance, x64):
    """With fixed_small the last step has none, and the image is not moved there."""
    guided = guidance.mean_shifted(samplers.denoiser(network, clip=0.8), gradient, scale=3.0)
    found = trace(guided, samplers.ddpm(GRID, variance=variance), X_T, NOISE)
    assert relative(found, ancestral(variance, clip=0.8, scale=3.0)) < 1e-12
    assert (samplers.ddpm(GRID, variance=variance).rows.variance[-1] == 0) == (variance == "fixed_small")
