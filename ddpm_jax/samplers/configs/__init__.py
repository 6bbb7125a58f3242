"""diffusers' scheduler_config.json as a table and a denoiser.

Every class is a function (config, num_steps, **options) -> Preset, found in CLASSES by its name in diffusers; options
are the keyword arguments of the class's set_timesteps and step. Facts about diffusers 0.42.1 only: no code of it.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.names import choose
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.samplers.configs.reading import CLASSES as CLASSES
from ddpm_jax.samplers.configs.reading import read as read


def from_diffusers_config(
    config: Mapping[str, Any] | str | Path, num_steps: int | None = None, **options: Any
) -> Preset:
    """(table, denoiser) that step as the diffusers scheduler with this configuration does.

    samplers.sample(denoiser(model_fn), table, key, shape) then runs it. alphas_cumprod is diffusers', in float32; the
    rest is float64 here and float32 there. Traces agree to about 1e-5 relative, never bit for bit.

    Source: diffusers 0.42.1.

    Args:
      config: scheduler_config.json, its path, or its folder; "_class_name" names the class, of PyTorch or of Flax. What
        it leaves out has the default of diffusers; what other classes know changes nothing, as in the class's own
        from_config.
      num_steps: num_inference_steps; None where the options give a list of timesteps or sigmas.
      options: keyword arguments of the class's set_timesteps and step, such as eta=0.5 or timesteps=[...]; and start=k,
        for samplers.sample(..., x_t=x_t): the k-th step is the first, as set_begin_index says it in diffusers. Classes
        that go up, jump or (PNDMScheduler) call the network at wrong times then have no start.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown class or option, or a setting that no class knows, with the nearest match; a setting of
        another kind than its default, or with which diffusers itself is wrong or not finite; a schedule, prediction or
        number of steps that do not fit each other.
    """
    name, settings = read(config)
    build, defaults = CLASSES[name]
    keywords = {key: p for key, p in inspect.signature(build).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for option in options:
        choose(f"option of {name}", option, keywords)
    return build({**defaults, **settings}, num_steps, **options)
