"""diffusers' DDPM, DDIM, PNDM, LCM, TCD and RePaint schedulers, from their configurations, along recorded traces.

Tolerance: 1e-5 of the trace's largest number, for diffusers' float32 arithmetic.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.configs import common, from_diffusers_config
from ddpm_jax.samplers.families.repaint import visits
from tests.helpers import golden, mixture_model, relative, trace, traces_of, with_variance

CLASSES = ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler")


NAMES = traces_of(CLASSES)
OUTPUTS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}


def preset_of(meta, **options):
    config = {**meta["config"], "_class_name": meta["cls"]}
    return from_diffusers_config(config, meta["num_inference_steps"], **options)


def test_all_files_are_here():
    assert len(NAMES) == 14 + 14 + 4 + 8 + 4 + 4


@pytest.mark.parametrize("name", NAMES)
def test_trace(name, x64):
    arrays, meta = golden(f"diffusers/{name}")
    preset = preset_of(meta, **meta["set_timesteps_kwargs"], **meta["step_kwargs"])
    np.testing.assert_array_equal(preset.table.rows.time, arrays["timesteps"])
    noise = np.zeros((preset.table.num_calls, *arrays["x_init"].shape))
    noise[arrays["noise_count"] == 1] = arrays["noise"]
    model_fn = mixture_model(arrays, OUTPUTS[meta["config"]["prediction_type"]])
    if "va" in meta:
        model_fn = with_variance(model_fn, meta)
    found = trace(preset.denoiser(model_fn), preset.table, jnp.asarray(arrays["x_init"], float), jnp.asarray(noise))
    assert relative(found, arrays["samples"]) < 1e-5


def repaint_noise(arrays, rows):
    """One z per row and pixel: diffusers draws one for the step and T // N for every level it climbs back.

    Where pixels are known, the step's noise has the weight that q(x_t | x_0) gives it; elsewhere that of the DDIM step.
    """
    betas, mask = arrays["betas"], arrays["mask"]
    draws = iter(arrays["noise"].astype(float))
    result, i = [], 0
    for s, *stds in rows:
        assert arrays["op"][i] == 0 and arrays["op_time"][i] == s
        z = next(draws)
        parts, variances = [std * z for std in stds], [std**2 for std in stds]  # of known pixels, of the rest
        i += 1
        while i < len(arrays["op"]) and arrays["op"][i] == 1:
            for j in range(arrays["noise_count"][i]):
                beta = betas[arrays["op_time"][i] + j]
                noise = np.sqrt(beta) * next(draws)
                parts = [np.sqrt(1 - beta) * part + noise for part in parts]
                variances = [(1 - beta) * variance + beta for variance in variances]
            i += 1
        known, rest = (part / np.sqrt(v) if v else 0 * part for part, v in zip(parts, variances, strict=True))
        result.append(mask * known + (1 - mask) * rest)
    return np.stack(result)


@pytest.mark.parametrize("name", traces_of(["RePaintScheduler"]))
def test_repaint_trace(name, x64):
    """Rows end where the next call is; diffusers also records every level on the way back up."""
    arrays, meta = golden(f"diffusers/{name}")
    options = {key: meta[key] for key in ("jump_length", "jump_n_sample", "eta")}
    preset = preset_of(meta, **options)
    steps = np.flatnonzero(arrays["op"] == 0)
    np.testing.assert_array_equal(preset.table.rows.time, arrays["op_time"][steps])
    landed = [*(steps[1:] - 1), len(arrays["op"]) - 1]  # the last record before the next call

    s = common.schedule_of({**meta["config"], "rescale_betas_zero_snr": False})
    stride = s.num_timesteps // meta["num_inference_steps"]
    ends = [(grids.level(s, u), grids.level(s, u - stride)) for u in arrays["op_time"][steps]]
    stds = [meta["eta"] * np.sqrt(t.sigma**2 / u.sigma**2 * (1 - (u.alpha / t.alpha) ** 2)) for u, t in ends]
    rows = [(u.time, t.sigma, std) for (u, t), std in zip(ends, stds, strict=True)]
    noise = repaint_noise({**arrays, "betas": s.betas_float64}, rows)

    original, mask = (jnp.asarray(arrays[part], float) for part in ("original_image", "mask"))
    denoise = samplers.known(preset.denoiser(mixture_model(arrays)), original, mask)
    found = trace(denoise, preset.table, jnp.asarray(arrays["x_init"], float), jnp.asarray(noise))
    assert relative(found, arrays["samples"][landed]) < 1e-5


def test_repaint_visits():
    # jump_length 3, 3 samples, 10 steps: the path of the golden file, in levels.
    path = visits(10, 3, 3)
    assert [i for i, _ in path][:12] == [9, 8, 7, 6, 8, 7, 6, 8, 7, 6, 5, 4]
    assert sum(climb for _, climb in path) == 3 * 2 * 3
    assert visits(4, 10, 10) == [(3, 0), (2, 0), (1, 0), (0, 0)]
