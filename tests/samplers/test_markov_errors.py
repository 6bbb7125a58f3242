"""What the Markov and DDIM-type samplers, their wrappers and their configurations refuse, and what they just accept."""

import jax
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.configs import CLASSES, from_diffusers_config
from ddpm_jax.samplers.families import consistency
from ddpm_jax.samplers.grids import Level, Pairs, dpm_grids, fastdpm

S = schedules.linear()
ZERO = schedules.zero_terminal_snr(schedules.linear(20, beta_start=1e-3, beta_end=0.4))
GRID = grids.leading(S, 10)
KEY = jax.random.key(0)


def nothing(x, row):
    """A denoiser that no test runs."""
    raise NotImplementedError


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def config(name, **settings):
    return {"_class_name": f"{name}Scheduler", **settings}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: samplers.ddpm(GRID, variance=[0.1]), r"one number a step, 10, got 1"),
        (lambda: samplers.ddpm(GRID, last_step="noise"), r"unknown last_step 'noise'"),
        (lambda: samplers.analytic_variances(GRID, [1.0]), r"one number a step, 10, got 1"),
        (lambda: samplers.analytic_variances(GRID, [9.0] * 10), r"gamma must lie in \[0, 1\.0.*at time 900, got 9"),
        (lambda: samplers.ddim_inverse(GRID, told="then"), r"unknown told 'then'.*known: next, now"),
        (lambda: samplers.plms(GRID, order=5), r"order must be one of 1, 2, 3, 4, got 5"),
        (lambda: samplers.plms(GRID, average="x_0"), r"unknown average 'x_0'"),
        (lambda: samplers.plms(grids.trailing(ZERO, 5)), r"says nothing about x_0 where alpha is 0, at time 19"),
        (lambda: samplers.pndm(grids.leading(S, 3), middle=[]), r"at least 4 steps and 3 levels.*got 3 steps"),
        (lambda: samplers.tcd(GRID, inner=[]), r"one level a step, 10, got 0"),
        (lambda: consistency.inner_levels(S, GRID, 1.5), r"eta must lie in \[0, 1\], got 1\.5"),
        (lambda: samplers.repaint(GRID, jump_length=0), r"must be at least 1, got 0 and 10"),
        (lambda: samplers.repaint(GRID, eta=2.0), r"eta must lie in \[0, 1\], got 2"),
        (lambda: fastdpm.var_grid(S, 1), r"whole number in \[2, 1000\], got 1"),
        (lambda: fastdpm.var_grid(schedules.cosine(), 10), r"betas must grow linearly"),
        (lambda: fastdpm.var_grid(S, 10, "cubic"), r"unknown shape 'cubic'"),
        (lambda: Pairs(()), r"at least 1 step"),
        (lambda: Pairs(((Level(1, 0.8, 0.6), Level(9, 0.6, 0.8)),)), r"must not add noise, got sigma/alpha 0\.75"),
        (lambda: grids.level(S, 1000), r"in \[0, 1000\), got 1000"),
        (lambda: samplers.thresholded(nothing, 2.0), r"ratio must lie in \[0, 1\], got 2"),
        (lambda: samplers.thresholded(nothing, 0.9, 0.0), r"max_value must be positive, got 0\.0"),
        (lambda: samplers.denoiser(lambda x, t: x, variance="small"), r"unknown variance 'small'"),
        (lambda: guidance.classifier_free(nothing, nothing), r"either scale or weight"),
        (lambda: run_zero("eps", grids.trailing(ZERO, 4)), r"eps says nothing about x_0 at time 19, where alpha is 0"),
        (lambda: from_diffusers_config(config("DDPM", variance_type="fixed_large_log"), 10), r"use 'fixed_large'"),
        (lambda: from_diffusers_config(config("DDPM", **ZERO_SNR), 10), r"'epsilon' says nothing.*at time 999"),
        (lambda: from_diffusers_config(config("DDIM", **ZERO_SNR), 10), r"'epsilon' says nothing.*at time 999"),
        (lambda: from_diffusers_config(config("DDIMInverse", prediction_type="sample"), 10), r"'sample' says nothing"),
        (lambda: from_diffusers_config(config("PNDM", prediction_type="sample"), 10), r"must be epsilon or v_pred"),
        (lambda: from_diffusers_config(config("PNDM"), 3), r"at least 4 steps, or skip_prk_steps, got 3"),
        (lambda: from_diffusers_config(config("DDIM"), 1001), r"\[1, 1000\], got 1001"),
        (lambda: from_diffusers_config(config("DDIM", etta=0.5), 10), r"unknown setting of DDIMScheduler 'etta'"),
        (lambda: from_diffusers_config(config("DDIM"), 10, etta=0.5), r"unknown option of DDIMScheduler 'etta'.*'eta'"),
        (lambda: from_diffusers_config(config("DDPM"), 10, timesteps=[5]), r"give either num_steps or timesteps"),
        (lambda: from_diffusers_config(config("DDPM"), timesteps=[5, 9]), r"decrease strictly, got 5 followed by 9"),
        (lambda: from_diffusers_config(config("DDIM", beta_schedule="sigmoid"), 9), r"unknown beta_schedule 'sigmoid'"),
        (lambda: from_diffusers_config(config("RePaint", beta_schedule="exp"), 9), r"unknown beta_schedule 'exp'"),
        (
            lambda: from_diffusers_config(config("DDPM", trained_betas=[0.1, 0.2]), 2),
            r"number of trained_betas, 2, got",
        ),
        (lambda: from_diffusers_config(config("TCD"), 20, original_inference_steps=13), r"in \[1, 13\], the .* got 20"),
        (lambda: from_diffusers_config(config("LCM"), 51), r"in \[1, 50\], the steps distilled, got 51"),
        (lambda: from_diffusers_config(config("DDPM", timestep_spacing="even"), 9), r"unknown timestep_spacing 'even'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The classes with timestep_spacing "trailing", and what else they need.
TRAILING = {
    **{f"DD{name}": {} for name in ("PM", "PMParallel", "IM", "IMParallel", "IMInverse")},
    **{f"{name}Discrete": {} for name in ("Euler", "EulerAncestral", "Heun", "KDPM2", "KDPM2Ancestral", "LMS")},
    **{f"DPMSolver{name}": {} for name in ("SDE", "Multistep", "MultistepInverse")},
    **{name: {} for name in ("UniPCMultistep", "DEISMultistep", "SASolver")},
    "PNDM": {"skip_prk_steps": True},
}


@pytest.mark.parametrize("name", TRAILING)
def test_trailing_that_ends_at_minus_1_is_refused(name):
    """diffusers has N + 1 timesteps for these N, by rounding; the same message of every class."""
    config_ = {**config(name, timestep_spacing="trailing"), **TRAILING[name]}
    for num_steps in (61, 103, 121, 122):
        with pytest.raises(ValueError, match=rf"^num_steps {num_steps} of 1000 timesteps makes .* end at timestep -1"):
            from_diffusers_config(config_, num_steps)
    for num_steps in (60, 62):
        times = from_diffusers_config(config_, num_steps).table.rows.time
        assert 0 <= times.min() and times.max() == 999


def test_trailing_of_every_class_is_in_the_list():
    spaced = {name for name, (_, defaults) in CLASSES.items() if "timestep_spacing" in defaults}
    # Those that were distilled step at their own timesteps.
    assert spaced - {"LCMScheduler", "TCDScheduler"} == {f"{name}Scheduler" for name in TRAILING}


def test_trailing_grids_have_as_many_steps_as_asked():
    for num_steps in range(1, 1001):
        assert grids.trailing(S, num_steps).num_steps == num_steps
    for num_steps in (60, 61, 103):
        assert dpm_grids.trailing(S, num_steps).num_steps == num_steps


def run_zero(prediction, grid):
    denoise = samplers.denoiser(lambda x, t: x, prediction)
    return jax.jit(lambda: samplers.sample(denoise, samplers.ddim(grid), KEY, (2, 3)))()


def test_other_predictions_run_at_zero_terminal_snr():
    for prediction in ("v", "x_0"):
        assert np.isfinite(run_zero(prediction, grids.trailing(ZERO, 4))).all()


def test_published_configuration_of_stable_diffusion():
    published = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    assert from_diffusers_config(published, 50).table.num_calls == 51
