"""The Flax schedulers that diffusers had until 0.39, as configurations of their PyTorch namesakes.

Each does what its namesake does with the settings below, and does not read others that a file may have. Two fail in
diffusers and are read as what their settings say: FlaxDDPMScheduler, which with fewer steps than timesteps takes the
means and variances of single timesteps and leaves noise in, and FlaxLMSDiscreteScheduler, which divides by 0.
Facts about diffusers 0.30.3 and 0.35.2 only: no code of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.names import unknown
from ddpm_jax.samplers.configs.common import BETA_SCHEDULES, Preset

Classes = Mapping[str, tuple[Callable[..., Preset], Mapping[str, Any]]]


class Flax(NamedTuple):
    """What a Flax scheduler reads beside the schedule and the prediction."""

    reads: tuple[str, ...]
    allowed: Mapping[str, tuple[Any, ...]] = {}
    fixed: Mapping[str, Any] = {}  # in the words of its namesake


READ_BY_ALL = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    "prediction_type",
)
BETAS = {"beta_schedule": BETA_SCHEDULES}
NO_X_0 = {"prediction_type": ("epsilon", "v_prediction")}
FLAX = {
    "FlaxDDPMScheduler": Flax(
        ("variance_type", "clip_sample"),
        # The others are logarithms that it takes for variances, or fail.
        {**BETAS, "variance_type": ("fixed_small", "fixed_large")},
    ),
    "FlaxDDIMScheduler": Flax(("clip_sample", "clip_sample_range", "set_alpha_to_one", "steps_offset"), BETAS),
    # It has set_alpha_to_one, and ends at the first timestep whatever that says.
    "FlaxPNDMScheduler": Flax(("skip_prk_steps", "steps_offset"), {**BETAS, **NO_X_0}),
    "FlaxDPMSolverMultistepScheduler": Flax(
        ("solver_order", "algorithm_type", "solver_type", "lower_order_final", "timestep_spacing", "steps_offset"),
        {
            **BETAS,
            "algorithm_type": ("dpmsolver++", "dpmsolver"),
            "solver_type": ("midpoint", "heun"),
            # Its threshold is at 0.995 percent of the pixels, and its sample_max_value a lower bound.
            "thresholding": (False,),
        },
        {"final_sigmas_type": "sigma_min"},
    ),
    "FlaxEulerDiscreteScheduler": Flax(
        ("timestep_spacing",),
        {**BETAS, **NO_X_0, "timestep_spacing": ("linspace", "leading")},
        {"steps_offset": 1},  # of "leading"
    ),
    "FlaxLMSDiscreteScheduler": Flax((), {**BETAS, **NO_X_0}),
}


def as_pytorch(config: Mapping[str, Any], classes: Classes) -> Mapping[str, Any]:
    """The configuration of the PyTorch scheduler that does what this Flax scheduler does; others as they are.

    Args:
      config: scheduler_config.json as a mapping.
      classes: the PyTorch schedulers by name, with their settings. What none of them knows stays, to be refused.

    Raises:
      ValueError: a Flax scheduler without a namesake here, or with a setting that means something else there.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.startswith("Flax"):
        return config
    if name not in FLAX:
        raise unknown("Flax scheduler class", name, FLAX)
    found, namesake = FLAX[name], name.removeprefix("Flax")
    for setting, allowed in found.allowed.items():
        unread = setting == "beta_schedule" and config.get("trained_betas") is not None
        if setting in config and config[setting] not in allowed and not unread:
            raise ValueError(
                f"{setting} of {name} must be {' or '.join(map(repr, allowed))}, got {config[setting]!r}: "
                f"the Flax class does not do what {namesake} does with it"
            )
    reads, known = (*READ_BY_ALL, *found.reads), classes[namesake][1]
    settings = {key: value for key, value in config.items() if key in reads or key not in known}
    return {**settings, **found.fixed, "_class_name": namesake}
