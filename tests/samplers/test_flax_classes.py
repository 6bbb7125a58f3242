"""diffusers' Flax schedulers: what 0.30.3 did with its own configurations, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.samplers.configs import CLASSES, flax_classes
from tests.helpers import golden, relative, trace

CASES = golden("other/flax_schedulers")[1]["cases"]


def model_fn(x, t):
    """The function that the recorded schedulers ran with."""
    time = t.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return 0.6 * jnp.tanh(x) + 0.3 * jnp.sin(3 * x + time / 200)


@pytest.mark.parametrize("name", CASES)
def test_traces(name):
    """Every class, with the configuration that it saved: the sample after each step."""
    arrays, _ = golden("other/flax_schedulers")
    table, denoiser = from_diffusers_config(CASES[name]["config"], CASES[name]["N"])
    noise = arrays.get(f"{name}.noise", np.zeros((table.num_calls, *arrays["x_T"].shape), np.float32))
    found = trace(denoiser(model_fn), table, jnp.asarray(arrays["x_T"]), jnp.asarray(noise))
    expected = arrays[name]
    if "Euler" in CASES[name]["config"]["_class_name"]:  # which steps x / alpha
        alpha = np.append(table.rows.alpha[1:], 1)
        expected = expected * alpha.reshape(-1, *(1,) * (expected.ndim - 1)).astype(np.float32)
    assert table.num_calls == len(expected)
    assert relative(found, expected) < 2e-5
    assert relative(found[-1], expected[-1]) < 2e-5


def test_every_flax_class_has_a_namesake_and_a_trace():
    traced = {case["config"]["_class_name"] for case in CASES.values()}
    assert traced | {"FlaxLMSDiscreteScheduler"} == set(flax_classes.FLAX)  # which divides by 0 itself
    for name, found in flax_classes.FLAX.items():
        known = CLASSES[name.removeprefix("Flax")][1]
        assert {*flax_classes.READ_BY_ALL, *found.reads, *found.fixed, *found.allowed} <= set(known)
        assert from_diffusers_config({"_class_name": name}, 10).table.num_calls >= 10


@pytest.mark.parametrize(
    ("config", "same"),
    [
        # Its namesake would end at the clean image, space the steps otherwise, and clip there.
        (
            {"_class_name": "FlaxPNDMScheduler", "set_alpha_to_one": True, "timestep_spacing": "trailing"},
            {"_class_name": "PNDMScheduler"},
        ),
        (
            {"_class_name": "FlaxDDIMScheduler", "thresholding": True, "timestep_spacing": "trailing"},
            {"_class_name": "DDIMScheduler"},
        ),
        (
            {"_class_name": "FlaxDDPMScheduler", "clip_sample_range": 0.5, "steps_offset": 1},
            {"_class_name": "DDPMScheduler"},
        ),
        (
            {"_class_name": "FlaxDPMSolverMultistepScheduler", "use_karras_sigmas": True, "euler_at_final": True},
            {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"},
        ),
        (
            {"_class_name": "FlaxEulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 7},
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
        ),
        (
            {"_class_name": "FlaxLMSDiscreteScheduler", "use_karras_sigmas": True, "beta_end": 0.01},
            {"_class_name": "LMSDiscreteScheduler", "beta_end": 0.01},
        ),
        ({"_class_name": "FlaxDDIMScheduler", "trained_betas": [0.1] * 1000, "beta_schedule": "laplace"}, None),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, None),
    ],
)
def test_what_a_class_does_not_read_changes_nothing(config, same):
    if same is None:
        same = config | {"_class_name": config["_class_name"].removeprefix("Flax")}
    assert flax_classes.as_pytorch(config, CLASSES) == same


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FlaxKarrasVeScheduler"}, "unknown Flax scheduler class 'FlaxKarrasVeScheduler'"),
        ({"_class_name": "FlaxPNDMSheduler"}, "did you mean 'FlaxPNDMScheduler'"),
        ({"_class_name": "FlaxDDIMScheduler", "set_alpha_to_onne": True}, "unknown setting .*'set_alpha_to_one'"),
        (
            {"_class_name": "FlaxDDPMScheduler", "variance_type": "learned_range"},
            "variance_type of FlaxDDPMScheduler must be 'fixed_small' or 'fixed_large', got 'learned_range'",
        ),
        (
            {"_class_name": "FlaxDPMSolverMultistepScheduler", "thresholding": True},
            "thresholding of FlaxDPMSolverMultistepScheduler must be False, got True",
        ),
        (
            {"_class_name": "FlaxDPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "must be 'dpmsolver\\+\\+' or 'dpmsolver', got 'sde-dpmsolver\\+\\+'",
        ),
        ({"_class_name": "FlaxEulerDiscreteScheduler", "timestep_spacing": "trailing"}, "or 'leading', got 'trailing'"),
        ({"_class_name": "FlaxPNDMScheduler", "prediction_type": "sample"}, "or 'v_prediction', got 'sample'"),
        (
            {"_class_name": "FlaxDDIMScheduler", "beta_schedule": "sigmoid"},
            "beta_schedule of FlaxDDIMScheduler must be",
        ),
        ({"_class_name": "FlaxDDIMScheduler", "beta_schedule": ["linear"]}, r"got \['linear'\]"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=message) as error:
        from_diffusers_config(config, 10)
    assert "\n" not in str(error.value)
