"""diffusers' scheduler_config.json as a table and a denoiser.

Every class is a function (config, num_steps, **options) -> Preset, found in CLASSES by its name in diffusers; options
are the keyword arguments of the class's set_timesteps and step. Facts about diffusers 0.42.1 only: no code of it.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.names import choose
from ddpm_jax.samplers.configs import dpm, markov, sigma
from ddpm_jax.samplers.configs.common import Preset

# Name of the class: (function, what its configuration may say and means where it does not).
CLASSES: dict[str, tuple[Callable[..., Preset], Mapping[str, Any]]] = {**markov.CLASSES, **sigma.CLASSES, **dpm.CLASSES}


def from_diffusers_config(
    config: Mapping[str, Any] | str | Path, num_steps: int | None = None, **options: Any
) -> Preset:
    """(table, denoiser) that step as the diffusers scheduler with this configuration does.

    samplers.sample(denoiser(model_fn), table, key, shape) then runs it. alphas_cumprod is diffusers', in float32; the
    rest is float64 here and float32 there. Traces agree to about 1e-5 relative, never bit for bit.

    Source: diffusers 0.42.1.

    Args:
      config: scheduler_config.json, its path, or its folder; "_class_name" names the class. What it leaves out has the
        default of diffusers.
      num_steps: num_inference_steps; None where the options give a list of timesteps or sigmas.
      options: keyword arguments of the class's set_timesteps and step, such as eta=0.5 or timesteps=[...].

    Raises:
      ValueError: unknown class, setting or option, with the nearest match; a setting with which diffusers itself is
        wrong or not finite; a schedule, prediction or number of steps that do not fit each other.
    """
    if isinstance(config, str | Path):
        path = Path(config)
        config = json.loads((path / "scheduler_config.json" if path.is_dir() else path).read_text())
    assert isinstance(config, Mapping)
    if "_class_name" not in config:
        raise ValueError(f"the configuration must have _class_name, one of {', '.join(CLASSES)}")
    build, defaults = choose("scheduler class", config["_class_name"], CLASSES)
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    for name in settings:
        choose(f"setting of {config['_class_name']}", name, defaults)
    keywords = {name: p for name, p in inspect.signature(build).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in options:
        choose(f"option of {config['_class_name']}", name, keywords)
    return build({**defaults, **settings}, num_steps, **options)
