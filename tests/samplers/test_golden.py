"""DDPM and DDIM along whole recorded traces of the PyTorch originals, with their noise.

One rule for the tolerance: 1e-4 of the trace's largest number, and for diffusers, whose tables are float32, 2e-4.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from tests.helpers import golden, mixture_model, relative, trace

OPENAI = [
    "loop_a_p_linear10",
    "loop_b_p_linear25_noclip",
    "loop_d_p_sections_x0",
    "loop_g_p_affine_eps_clip",
    "loop_i_ddim20_eta0",
    "loop_j_ddim20_eta05",
    "loop_l_ddim50_x0_noclip",
    "loop_m_ddim10_rescaled",
]
DDIM = [
    "ddim_uniform20_eta0",
    "ddim_uniform20_eta05",
    "ddim_uniform7_eta1",
    "ddim_quad10_eta0",
    "ddim_ddpm_noisy20",
    "ddim_ddpm_noisy_quad10",
]
DIFFUSERS = [
    "ddim_cos_lead10",
    "ddim_eta05_clipped_eps20",
    "ddim_eta05_rawclip20",
    "ddim_eta0_lead10",
    "ddim_eta0_lead50_noclip",
    "ddim_n3",
    "ddim_sd_off1_50",
    "ddim_v_eta05_10",
    "ddim_x0_10",
    "ddim_zsnr_v_trail10",
    "ddpm_clip2_cos_lead20",
    "ddpm_large_lead20",
    "ddpm_small_lead10",
    "ddpm_small_lead50_noclip",
    "ddpm_trained_betas10",
    "ddpm_x0_sigmoid3",
    "ddpm_zsnr_v_trail10",
]


def affine_model(arrays):
    m, u, b = (jnp.asarray(arrays[name][:3], float) for name in "Mub")

    def model_fn(x, t):
        time = (u[None] * t.astype(float)[:, None] / 1000).reshape(-1, 3, 1, 1)
        return jnp.einsum("oc,nchw->nohw", m, x.astype(float)) + time + b.reshape(1, 3, 1, 1)

    return model_fn


def assert_same_trace(denoise, table, arrays, x_init, noise, tolerance):
    found = trace(denoise, table, jnp.asarray(x_init, float), jnp.asarray(noise, float))
    assert relative(found, arrays["samples"]) < tolerance


@pytest.mark.parametrize("name", OPENAI)
def test_openai_loops(name, x64):
    arrays, meta = golden(f"openai/{name}")
    length = meta["T"]
    s = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}[meta["schedule"]](length)
    grid = grids.sections(s, meta["section_counts"])
    prediction = {"EPSILON": "eps", "START_X": "x_0"}[meta["model_mean_type"]]
    if "M" in arrays:
        model = affine_model(arrays)
    else:
        model = mixture_model(arrays, prediction, meta["time_scale"])
    model_fn = (lambda x, t: model(x, t * (1000 / length))) if meta["rescale_timesteps"] else model
    if meta["eta"] is None:
        table = samplers.ddpm(grid, variance=meta["model_var_type"].lower())
    else:
        table = samplers.ddim(grid, eta=meta["eta"])
    denoise = samplers.denoiser(model_fn, prediction, clip=1.0 if meta["clip_denoised"] else None)
    assert_same_trace(denoise, table, arrays, arrays["x_init"], arrays["noise"], 1e-4)


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
    assert_same_trace(denoise, table, arrays, arrays["x_init"], arrays["noise"], 1e-4)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_schedulers(name, x64):
    arrays, meta = golden(f"diffusers/{name}")
    config, length = meta["config"], meta["config"]["num_train_timesteps"]
    ends = {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
    if config["trained_betas"] is not None:
        s = schedules.from_betas(config["trained_betas"])
    else:
        s = {
            "linear": lambda: schedules.linear(length, **ends),
            "scaled_linear": lambda: schedules.quad(length, **ends),
            "squaredcos_cap_v2": lambda: schedules.cosine(length),
            "sigmoid": lambda: schedules.sigmoid(length, **ends),
        }[config["beta_schedule"]]()
    s = schedules.zero_terminal_snr(s) if config["rescale_betas_zero_snr"] else s
    last = "clean" if config.get("set_alpha_to_one", True) else "first"
    if config["timestep_spacing"] == "leading":
        grid = grids.leading(s, meta["num_inference_steps"], offset=config["steps_offset"], last=last)
    else:
        grid = grids.trailing(s, meta["num_inference_steps"], last=last)
    np.testing.assert_array_equal([level.time for level in grid.levels[:-1]], arrays["timesteps"])

    prediction = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}[config["prediction_type"]]
    clip = config["clip_sample_range"] if config["clip_sample"] else None
    step = meta["step_kwargs"]
    if meta["cls"] == "DDIMScheduler":
        table = samplers.ddim(grid, eta=step.get("eta", 0.0))
        eps_after_clip = "rederived" if step.get("use_clipped_model_output") else "raw"
    else:
        table = samplers.ddpm(grid, variance=config["variance_type"])
        eps_after_clip = "rederived"
    denoise = samplers.denoiser(mixture_model(arrays, prediction), prediction, clip, eps_after_clip)
    noise = np.zeros((table.num_calls, *arrays["x_init"].shape))
    noise[arrays["noise_count"] == 1] = arrays["noise"]
    assert_same_trace(denoise, table, arrays, arrays["x_init"], noise, 2e-4)
