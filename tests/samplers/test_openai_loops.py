"""Every sampling loop recorded from OpenAI's improved-diffusion, guided-diffusion and GLIDE, along its whole trace.

Tolerance: 1e-4 of the trace's largest number, and of every step's, or there what the recorded loop itself moves by when
its network's answers change by 1e-6.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.samplers import grids
from tests.helpers import GOLDEN, affine_model, golden, mixture_model, relative, trace, with_variance

LOOPS = sorted(path.stem for path in (GOLDEN / "openai").glob("loop_*.npz"))
SCHEDULES = {
    "linear": schedules.linear_rescaled,
    "cosine": schedules.cosine,
    "squaredcos_cap_v2": schedules.cosine,
}


def conditioning(arrays):
    """cond_fn of the golden files: gradient of log p(y | x_t)."""
    center, kappa = jnp.asarray(arrays["cond_center"], float), jnp.asarray(arrays["cond_kappa"], float)
    y = arrays["y"]

    def gradient(x, t):
        lead = lambda v: v.reshape(-1, *(1,) * (x.ndim - 1))
        return lead(kappa[y]) * (center[y] - x) * lead(0.5 + t.astype(x.dtype) / 1000)

    return gradient


def denoiser_of(arrays, meta):
    output = {"EPSILON": "eps", "START_X": "x_0", "PREVIOUS_X": "x_prev"}[meta["model_mean_type"]]
    model = affine_model(arrays) if "M" in arrays else mixture_model(arrays, output, meta["time_scale"])
    learned = meta["model_var_type"].lower() if meta["model_var_type"].startswith("LEARNED") else "fixed_large"
    model = model if learned == "fixed_large" else with_variance(model, meta)
    scale = 1000 / meta["T"] if meta["rescale_timesteps"] else 1.0
    model_fn = lambda x, t: model(x, t * scale)
    if output == "x_prev":
        return samplers.mean_denoiser(model_fn)  # the mean is the output itself: its clip only changes pred_xstart
    denoise = samplers.denoiser(model_fn, output, variance=learned)
    if meta.get("denoised_fn") is not None:
        assert meta["denoised_fn"] == "0.9*tanh(x)"
        denoise = samplers.projected(denoise, lambda x_0: 0.9 * jnp.tanh(x_0))
    denoise = samplers.clipped(denoise, 1.0) if meta["clip_denoised"] else denoise
    if "cond_fn" in meta:
        shifted = guidance.mean_shifted if meta["eta"] is None else guidance.score_shifted
        denoise = shifted(denoise, conditioning(arrays), scale=1.0)
    return denoise


def table_of(meta):
    grid = grids.sections(SCHEDULES[meta["schedule"]](meta["T"]), meta["section_counts"])
    if "reverse" in meta["function"]:
        return samplers.ddim_inverse(grid, told="now")
    if meta["eta"] is not None:
        return samplers.ddim(grid, eta=meta["eta"])
    return samplers.ddpm(grid, variance=meta["model_var_type"].lower())


def test_all_files_are_here():
    assert len(LOOPS) == 21


@pytest.mark.parametrize("name", LOOPS)
def test_loop(name, x64):
    arrays, meta = golden(f"openai/{name}")
    table = table_of(meta)
    scale = 1000 / meta["T"] if meta["rescale_timesteps"] else 1
    np.testing.assert_allclose(table.rows.time * scale, arrays["model_times"][:, 0], rtol=1e-6)
    noise = arrays["noise"] if len(arrays["noise"]) else np.zeros_like(arrays["samples"])
    x_init = jnp.asarray(arrays["x_init"], float)
    found = trace(denoiser_of(arrays, meta), table, x_init, jnp.asarray(noise, float))
    assert relative(found, arrays["samples"]) < 1e-4
    moves = arrays.get("sensitivity_1e6", np.zeros(len(found)))
    for ours, theirs, move in zip(found, arrays["samples"], moves, strict=True):
        assert relative(ours, theirs) < 1e-4 or np.abs(ours - theirs).max() <= move
