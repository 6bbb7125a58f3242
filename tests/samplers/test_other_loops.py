"""Sampling loops recorded from ermongroup/ddim, latent-diffusion and FastDPM, along their whole traces.

Tolerance: 1e-4 of every step's largest number.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.grids import fastdpm
from tests.helpers import GOLDEN, golden, mixture_model, relative, trace

FASTDPM = sorted(path.stem for path in (GOLDEN / "other").glob("fastdpm_*k*.npz"))
LDM = ["ldm_ddim10_eta1_cfg", "ldm_ddim20_eta0", "ldm_plms10_cfg", "ldm_plms20"]
DDIM = [
    "ddim_uniform20_eta0",
    "ddim_uniform20_eta05",
    "ddim_uniform7_eta1",
    "ddim_quad10_eta0",
    "ddim_ddpm_noisy20",
    "ddim_ddpm_noisy_quad10",
]


def apart(found, expected):
    """The largest relative difference of a step."""
    return max(relative(*pair) for pair in zip(found, expected, strict=True))


def run(denoise, table, x_T, noise):
    return trace(denoise, table, jnp.asarray(x_T, float), jnp.asarray(noise, float))


@pytest.mark.parametrize("name", DDIM)
def test_ddim_repository(name, x64):
    arrays, meta = golden(f"other/{name}")
    s = schedules.linear(meta["T"], beta_start=meta["beta_start"], beta_end=meta["beta_end"])
    grid = {"uniform": grids.uniform, "quad": grids.quad}[meta["skip_type"]](s, meta["timesteps"])
    model_fn = mixture_model(arrays)
    if "noisy" in name:  # its DDPM has fixed_large variance and clips
        table, denoise = samplers.ddpm(grid), samplers.denoiser(model_fn, clip=1.0)
    else:
        table, denoise = samplers.ddim(grid, eta=meta["eta"]), samplers.denoiser(model_fn)
    assert apart(run(denoise, table, arrays["x_init"], arrays["noise"]), arrays["samples"]) < 1e-4


@pytest.mark.parametrize("name", FASTDPM)
def test_fastdpm(name, x64):
    arrays, meta = golden(f"other/{name}")
    s = schedules.linear(meta["T"], beta_start=meta["beta_0"], beta_end=meta["beta_T"])
    if "step" in name:
        grid = fastdpm.step_grid(s, meta["S"], meta["schedule"])
    else:
        grid = fastdpm.var_grid(s, meta["S"], meta["schedule"], search="bounded")
    # Its search for the betas stops 1e-4 early, which moves t by less than 3e-3.
    np.testing.assert_allclose([u.time for u in grid.levels[:-1]], arrays["model_times"][:, 0], atol=3e-3)
    table = samplers.ddim(grid, eta=meta["kappa"])
    found = run(samplers.denoiser(mixture_model(arrays)), table, arrays["noise"][0], arrays["noise"][1:])
    expected = np.concatenate([arrays["states"][1:], arrays["final"][None]])
    assert apart(found, expected) < 1e-4


def ldm(arrays, meta):
    """Grid and guided model_fn of a latent-diffusion loop: t + 1, and the last step goes to the level of t = 0."""
    s = schedules.quad(meta["T"], beta_start=8.5e-4, beta_end=1.2e-2)
    grid = grids.leading(s, meta["S"], offset=1, last="first")
    np.testing.assert_array_equal([u.time for u in grid.levels[-2::-1]], arrays["ddim_timesteps"])
    models = []
    for kind in "cu":
        mixture = {f"gmm_{part}": arrays[f"gmm{kind}_{part}"] for part in ("mu", "s", "w")}
        models.append(mixture_model({**arrays, **mixture}))
    if meta["guidance_scale"] == 1:
        return grid, models[0]
    return grid, guidance.classifier_free(*models, scale=meta["guidance_scale"])


@pytest.mark.parametrize("name", LDM)
def test_latent_diffusion(name, x64):
    arrays, meta = golden(f"other/{name}")
    grid, model_fn = ldm(arrays, meta)
    table = samplers.plms(grid) if "plms" in name else samplers.ddim(grid, eta=meta["eta"])
    found = run(samplers.denoiser(model_fn), table, arrays["x_init"], arrays["noise"])
    if "plms" in name:
        found = found[1:]  # the first of two calls in the first step is not recorded
    assert apart(found, arrays["samples"]) < 1e-4


def test_latent_diffusion_inpainting(x64):
    """LDM puts the known pixels in before a call, from a noise of its own; here they land with the step before.

    So its x_T has them already, its noise of call k + 1 is ours of step k, and what it leaves at the known pixels
    between a step and the next call, and at the end, is not compared.
    """
    arrays, meta = golden("other/ldm_ddim20_inpaint")
    grid, model_fn = ldm(arrays, meta)
    table = samplers.repaint(grid, num_visits=1, eta=meta["eta"])
    mask, image = (arrays[name].astype(float) for name in ("mask", "x0"))
    for_known, for_rest = arrays["noise"][0::2].astype(float), arrays["noise"][1::2].astype(float)
    start = grid.levels[0]
    x_T = mask * (start.alpha * image + start.sigma * for_known[0]) + (1 - mask) * arrays["x_init"]
    noise = mask * np.append(for_known[1:], for_known[:1], axis=0) + (1 - mask) * for_rest
    denoise = samplers.known(samplers.denoiser(model_fn), jnp.asarray(image), jnp.asarray(mask))
    found = run(denoise, table, x_T, noise)
    unknown = np.broadcast_to(mask == 0, found[0].shape)
    assert 0.2 < unknown.mean() < 0.8
    assert apart(found[:, unknown], arrays["samples"][:, unknown]) < 1e-4
