"""Every scheduler class of diffusers that is read here, in several configurations, run beside the table made of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax import samplers
from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.samplers.configs import CLASSES
from ddpm_jax.tools.parity import mixture
from ddpm_jax.tools.parity.mixture import Answer
from ddpm_jax.tools.parity.ours import calls
from ddpm_jax.tools.parity.results import Result, along, compared, not_compared
from ddpm_jax.tools.parity.samplers import OUTPUTS, TOLERANCE, by_rounding, noise_of
from ddpm_jax.tools.parity.theirs import Calls, Libraries, nchw
from ddpm_jax.tools.parity.theirs import calls as their_calls

GROUP = "schedulers"
NUM_STEPS = 10
V, X_0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
TRAILING, KARRAS = {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
ZERO_SNR = {"rescale_betas_zero_snr": True}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
# The configurations of a class: {} is what it says of itself.
CONFIGURATIONS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "DDPMScheduler": ({}, V | TRAILING, {"variance_type": "fixed_large"} | TRAILING, {"thresholding": True}, X_0),
    "DDIMScheduler": (
        {},
        STABLE_DIFFUSION | {"set_alpha_to_one": False, "clip_sample": False},
        V | TRAILING | ZERO_SNR,
        X_0 | {"timestep_spacing": "linspace"},
    ),
    "DDPMParallelScheduler": ({},),
    "DDIMParallelScheduler": ({},),
    "DDIMInverseScheduler": ({"clip_sample": False}, V | TRAILING),
    "PNDMScheduler": ({}, STABLE_DIFFUSION | {"skip_prk_steps": True}, V),
    "LCMScheduler": ({}, V),
    "TCDScheduler": ({}, V),
    "UnCLIPScheduler": (),
    "RePaintScheduler": ({},),
    "EulerDiscreteScheduler": ({}, V | TRAILING, {"use_exponential_sigmas": True}, STABLE_DIFFUSION),
    "EulerAncestralDiscreteScheduler": ({}, V | TRAILING),
    "HeunDiscreteScheduler": ({}, V | KARRAS, X_0 | {"clip_sample": True}),
    "KDPM2DiscreteScheduler": ({}, V | KARRAS),
    "KDPM2AncestralDiscreteScheduler": ({}, V | KARRAS),
    "DPMSolverSDEScheduler": (),
    "LMSDiscreteScheduler": ({}, V | KARRAS),
    "EDMEulerScheduler": ({}, V | {"sigma_schedule": "exponential"}),
    "IPNDMScheduler": ({},),
    "DPMSolverMultistepScheduler": (
        {},
        {"solver_order": 3, "use_lu_lambdas": True},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"algorithm_type": "dpmsolver"} | SIGMA_MIN,
        {"use_beta_sigmas": True} | V,
        {"euler_at_final": True, "thresholding": True} | COSINE,
    ),
    "DPMSolverMultistepInverseScheduler": ({},),
    "DPMSolverSinglestepScheduler": ({}, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"} | KARRAS),
    "EDMDPMSolverMultistepScheduler": ({}, {"algorithm_type": "sde-dpmsolver++"}),
    "UniPCMultistepScheduler": ({}, {"solver_type": "bh1"} | SIGMA_MIN, {"predict_x0": False} | SIGMA_MIN, KARRAS | V),
    "DEISMultistepScheduler": ({}, {"solver_order": 3} | TRAILING),
    "SASolverScheduler": ({}, {"algorithm_type": "noise_prediction"}, {"predictor_order": 3, "corrector_order": 3}),
    "CMStochasticIterativeScheduler": ({}, {"clip_denoised": False}),
    "ScoreSdeVeScheduler": (),
}
PIPELINES = "its steps need what only its pipeline tells them; as the pipeline in tests/tools/parity/test_start.py"
NOT_HERE = {
    "DPMSolverSDEScheduler": "the class needs torchsde and its Brownian tree, which replaced noise cannot stand in "
    "for; against k-diffusion's step along a Brownian path in tests/samplers/test_dpm_sde.py",
    **dict.fromkeys(("UnCLIPScheduler", "ScoreSdeVeScheduler"), PIPELINES),
}


def compare(libraries: Libraries) -> Iterator[Result]:
    """A line for every class and configuration."""
    for name in CLASSES:
        if not CONFIGURATIONS[name]:
            yield not_compared(GROUP, f"preset of {name}", "", NOT_HERE[name])
        for settings in CONFIGURATIONS[name]:
            yield compare_one(libraries, name, settings)


def compare_one(libraries: Libraries, name: str, settings: Mapping[str, Any], num_steps: int = NUM_STEPS) -> Result:
    """from_diffusers_config of these settings beside the class itself."""
    scheduler = getattr(libraries.diffusers, name)(**settings)
    config = {"_class_name": name, **settings}
    options, step_options, wrap = {}, {}, lambda denoise: denoise
    x_T, noise = noise_of(4 * num_steps)
    if name == "RePaintScheduler":
        # Without jumps back, after which it would use one draw of noise for two things.
        options = {"jump_length": 1, "jump_n_sample": 1}
        original, mask = noise_of(1, seed=1)[0], np.zeros(mixture.SHAPE)
        mask[:, :2] = 1
        parts = {"original_image": original, "mask": mask}
        step_options = {key: nchw(libraries.torch, value) for key, value in parts.items()}
        wrap = lambda denoise: samplers.known(denoise, jnp.asarray(original), jnp.asarray(mask))
    answer = answer_of(scheduler, name)

    def run(changed: Callable[[Answer], Answer] = lambda answer: answer) -> Calls:
        scheduler.set_timesteps(num_steps, **options)
        if name == "RePaintScheduler":
            scheduler.timesteps = libraries.torch.as_tensor([int(t) for t in scheduler.timesteps])
        return their_calls(libraries.torch, scheduler, changed(answer), x_T, noise, step_options)

    theirs = run()
    ours = calls(from_diffusers_config(config, num_steps, **options), answer, x_T, noise, wrap)
    said = ", ".join(f"{key}={value}" for key, value in settings.items())
    found = along(ours.xs, theirs.xs, TOLERANCE)
    result = compared(GROUP, f"preset, {num_steps} steps", f"{name}({said})", found, TOLERANCE)
    return by_rounding(result, theirs, run) if result.verdict == "different" else result


def answer_of(scheduler: Any, name: str) -> Answer:
    """The exact network in the form that the class asks for."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        return mixture.preconditioned(scheduler.config.sigma_data, 1 if kind == "epsilon" else -1)
    if name == "IPNDMScheduler":
        return mixture.angle
    if name == "CMStochasticIterativeScheduler":
        preconditioned = mixture.preconditioned(scheduler.config.sigma_data, 1)
        return lambda x, time: preconditioned(x, time / 1000)
    return mixture.at_table(scheduler.alphas_cumprod.double().numpy(), OUTPUTS[kind])
