"""diffusers' DPM-Solver, UniPC, DEIS and SA-Solver schedulers, from their configurations.

Tolerance: 5e-5 of the trace's largest number, for diffusers' float32 arithmetic: its coefficients of high order are
small differences. 2e-4 where alpha is 5e-5, at the end of a cosine schedule, and x_0 a small difference divided by it.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.samplers.configs import dpm, float32, from_diffusers_config
from ddpm_jax.samplers.configs.common import DEFAULTS
from tests.helpers import GOLDEN, golden, mixture_model, relative, trace, traces_of, with_variance

NAMES = traces_of(dpm.CLASSES)
OUTPUTS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}


def preset_of(meta):
    config = {**meta["config"], "_class_name": meta["cls"]}
    options = {**meta["set_timesteps_kwargs"], **meta["step_kwargs"]}
    return from_diffusers_config(config, meta["num_inference_steps"], **options)


def preconditioned_mixture(arrays, sigma_data, sign):
    """The golden files' F of EDM: such that x_0 = c_skip x + c_out F is the mixture's mean, at sigma = e^(4 t)."""
    mu, s, w = (jnp.asarray(arrays[f"gmm_{name}"], float) for name in ("mu", "s", "w"))
    size = mu[0].size

    def model_fn(x, t):
        sigma = jnp.exp(4 * t.astype(float)).reshape(-1, 1)
        std = jnp.sqrt(sigma**2 + sigma_data**2)
        flat = x.astype(float).reshape(len(x), size) * std
        v = s.reshape(1, -1) ** 2 + sigma**2
        residual = flat[:, None] - mu.reshape(1, len(w), size)
        log_r = jnp.log(w).reshape(1, -1) - size / 2 * jnp.log(v) - (residual**2).sum(-1) / (2 * v)
        r = jnp.exp(log_r - log_r.max(1, keepdims=True))
        r = r / r.sum(1, keepdims=True)
        shrink = (s.reshape(1, -1) ** 2 / v)[:, :, None]
        x_0 = (r[:, :, None] * (mu.reshape(1, len(w), size) + shrink * residual)).sum(1)
        output = (x_0 - sigma_data**2 / std**2 * flat) * sign * std / (sigma * sigma_data)
        return output.reshape(x.shape).astype(x.dtype)

    return model_fn


def test_all_files_are_here():
    assert len(NAMES) == 36 + 2 + 13 + 13 + 6 + 6 + 5


@pytest.mark.parametrize("name", NAMES)
def test_trace(name, x64):
    arrays, meta = golden(f"diffusers/{name}")
    preset = preset_of(meta)
    table, config = preset.table, meta["config"]
    noise = np.zeros((table.num_calls, *arrays["x_init"].shape))
    noise[arrays["noise_count"] == 1] = arrays["noise"]
    samples = arrays["samples"].astype(float)
    if meta["cls"].startswith("EDM"):  # recorded as x_0 + sigma eps
        sign = -1 if config["prediction_type"] == "v_prediction" else 1
        model_fn = preconditioned_mixture(arrays, config["sigma_data"], sign)
        scale = np.append(table.rows.alpha[1:], 1.0).reshape(-1, 1, 1, 1, 1)
        samples = samples * scale
        np.testing.assert_allclose(table.rows.time, arrays["timesteps"], rtol=1e-5, atol=1e-6)
    else:
        model_fn = mixture_model(arrays, OUTPUTS[config["prediction_type"]])
        np.testing.assert_array_equal(table.rows.time, arrays["timesteps"])
    if "va" in meta:
        model_fn = with_variance(model_fn, meta)
    x_T = jnp.asarray(arrays["x_init"] / meta["init_noise_sigma"], float)
    found = trace(preset.denoiser(model_fn), table, x_T, jnp.asarray(noise))
    assert relative(found, samples) < (2e-4 if name == "dpmpp2_cos_unclipped20" else 5e-5)


def test_grids():
    """Times exactly, sigmas to float32, of every recorded set_timesteps of these classes."""
    arrays, meta = golden("diffusers/timestep_grids")
    checked = 0
    for case in meta["cases"]:
        if case["cls"] not in dpm.CLASSES:
            continue
        times, sigmas = arrays[f"{case['key']}.timesteps"], arrays[f"{case['key']}.sigmas"]
        try:
            table = from_diffusers_config({"_class_name": case["cls"], **case["config"]}, case["N"]).table
        except ValueError as error:
            assert "the first two timesteps" in str(error) and times[0] == times[1], case
            continue
        found = table.rows.sigma / table.rows.alpha
        if case["cls"].startswith("EDM"):
            np.testing.assert_allclose(table.rows.time, times, rtol=1e-5, atol=1e-6, err_msg=str(case))
        else:
            np.testing.assert_array_equal(table.rows.time, times, err_msg=str(case))
        np.testing.assert_allclose(found, sigmas[:-1], rtol=1e-5, err_msg=str(case))
        checked += 1
    assert checked > 200


def test_float32_tables():
    arrays, meta = golden("diffusers/beta_tables")
    for case in meta["cases"]:
        config = {**DEFAULTS, **case["config"], "rescale_betas_zero_snr": case.get("rescale_betas_zero_snr", False)}
        if config["beta_schedule"] not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            continue
        found, expected = float32.alphas_cumprod(config), arrays[f"{case['key']}.alphas_cumprod"]
        assert found.dtype == np.float32
        if config["rescale_betas_zero_snr"]:
            assert found[-1] == 2.0**-24
            found, expected = found[:-1], expected[:-1]
        np.testing.assert_array_equal(found, expected, err_msg=case["key"])


def test_what_diffusers_cannot_do_is_refused():
    cases = json.loads((GOLDEN / "diffusers" / "upstream_errors.json").read_text())["cases"]
    cases = [case for case in cases if case["cls"] in dpm.CLASSES]
    assert len(cases) == 6
    for case in cases:
        with pytest.raises(ValueError, match=r"diffusers (has no|fails|gives NaN)|fails in diffusers|NaN in diffusers"):
            from_diffusers_config({"_class_name": case["cls"], **case["config"]}, case["N"])


def test_defaults_are_those_of_the_files():
    """Every setting that a recorded configuration names has a default here, and the default it was recorded with."""
    for name in NAMES:
        _, meta = golden(f"diffusers/{name}")
        defaults = dpm.CLASSES[meta["cls"]][1]
        assert set(meta["config"]) == set(defaults), name
        for setting, value in meta["config"].items():
            # set_timesteps of the singlestep class switches its own lower_order_final on.
            if setting not in meta["constructor"] and (setting, meta["cls"]) != ("lower_order_final", SINGLE):
                value = float(value) if value == "-inf" else tuple(value) if isinstance(value, list) else value
                assert defaults[setting] == value, (name, setting)


def test_first_of_equal_times_is_refused():
    config = {"_class_name": SINGLE, "use_karras_sigmas": True, "num_train_timesteps": 100}
    with pytest.raises(ValueError, match=r"first two timesteps are both 99, where diffusers fails"):
        from_diffusers_config({**config, "beta_schedule": "squaredcos_cap_v2"}, 5)


MULTI, SINGLE, INVERSE = (f"DPMSolver{name}Scheduler" for name in ("Multistep", "Singlestep", "MultistepInverse"))
UNIPC, DEIS, SA, EDM = (
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "EDMDPMSolverMultistepScheduler",
)


@pytest.mark.parametrize(
    "name, config, message",
    [
        (MULTI, {"use_flow_sigmas": True}, r"flow matching .* is not supported"),
        (UNIPC, {"flow_shift": 3.0}, r"flow matching .* got flow_shift 3"),
        (MULTI, {"use_dynamic_shifting": True}, r"flow matching"),
        (DEIS, {"beta_schedule": "sigmoid"}, r"unknown beta_schedule 'sigmoid'.*known: linear, scaled_linear, squared"),
        (MULTI, {"trained_betas": [0.1, 0.2]}, r"num_train_timesteps must be the number of trained_betas, 2, got 1000"),
        (MULTI, {"prediction_type": "flow_prediction"}, r"unknown prediction_type 'flow_prediction'"),
        (MULTI, {"algorithm_type": "dpmsolver"}, r"'dpmsolver' needs final_sigmas_type 'sigma_min', got 'zero'"),
        (MULTI, {"algorithm_type": "ddim"}, r"unknown algorithm_type 'ddim'"),
        (MULTI, {"solver_type": "euler"}, r"unknown solver_type 'euler'"),
        (MULTI, {"final_sigmas_type": "one"}, r"unknown final_sigmas_type 'one'.*zero, sigma_min"),
        (MULTI, {"timestep_spacing": "uniform"}, r"unknown timestep_spacing 'uniform'"),
        (INVERSE, {"timestep_spacing": "uniform"}, r"unknown timestep_spacing 'uniform'"),
        (MULTI, {"use_karras_sigmas": True, "use_beta_sigmas": True}, r"only one of the sigma spacings"),
        (MULTI, {"solver_order": 4}, r"order must be a whole number in \[1, 3\], got 4"),
        (INVERSE, {"algorithm_type": "sde-dpmsolver++"}, r"'sde-dpmsolver\+\+' has no inverse"),
        (SINGLE, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}, r"unknown algorithm_type"),
        (UNIPC, {"solver_p": "DDIM"}, r"solver_p must be None"),
        (UNIPC, {"shift_terminal": 0.1}, r"shift_terminal belongs to flow matching"),
        (UNIPC, {"predict_x0": False}, r"predict_x0 False with final_sigmas_type 'zero' gives NaN"),
        (UNIPC, {"solver_type": "bh3"}, r"unknown solver_type 'bh3'"),
        (DEIS, {"algorithm_type": "sde"}, r"unknown algorithm_type 'sde'"),
        (DEIS, {"solver_type": "rho"}, r"unknown solver_type 'rho'"),
        (SA, {"tau_func": 0.5}, r"tau_func must be None or a function of the timestep, got 0\.5"),
        (SA, {"variance_type": "learned_range"}, r"variance_type 'learned_range' fails in diffusers' SASolver"),
        (SA, {"algorithm_type": "noise_prediction", "thresholding": True}, r"'noise_prediction' fails in diffusers"),
        (EDM, {"prediction_type": "sample"}, r"unknown prediction_type 'sample'"),
        (EDM, {"sigma_schedule": "beta"}, r"unknown sigma_schedule 'beta'"),
        (EDM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, r"no third order for algorithm_type 'sde-"),
    ],
)
def test_refused_configurations(name, config, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers_config({"_class_name": name, **config}, 10)


def test_settings_that_matter_in_later_steps_alone():
    """One step of UniPC is of order 1, and may end in the clean image; EDM's last step may have length 0 with noise."""
    lower = {"_class_name": UNIPC, "lower_order_final": False}
    assert from_diffusers_config(lower, 1).table.num_calls == 1
    with pytest.raises(ValueError, match=r"lower_order_final False with final_sigmas_type 'zero' gives NaN"):
        from_diffusers_config(lower, 2)
    stochastic = {"_class_name": EDM, "algorithm_type": "sde-dpmsolver++", "solver_order": 1}
    for rho in np.linspace(3, 9, 25):
        table = from_diffusers_config({**stochastic, "final_sigmas_type": "sigma_min", "rho": float(rho)}, 9).table
        eps, z = table.rows.update[-1, 0, -2:]
        assert np.isfinite(table.rows.update).all() and abs(z) < 1e-6 and eps > 0


def test_timesteps_or_a_number():
    config = {"_class_name": MULTI}
    with pytest.raises(ValueError, match=r"give num_steps or timesteps, not both, got 10 and \[5\]"):
        from_diffusers_config(config, 10, timesteps=[5])
    with pytest.raises(ValueError, match=r"got None and None"):
        from_diffusers_config(config)
    with pytest.raises(ValueError, match=r"timesteps cannot be given together with use_lu_lambdas"):
        from_diffusers_config({**config, "use_lu_lambdas": True}, timesteps=[5])
