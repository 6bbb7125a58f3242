"""Checkpoints of ermongroup/ddim and pesser/pytorch_diffusion: DDPM's network in PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.interop import ddim, kinds, shown
from ddpm_jax.interop.published import DDIM
from ddpm_jax.names import choose, unknown
from ddpm_jax.process import VarianceType
from ddpm_jax.reading import Reading
from ddpm_jax.samplers.catalogue import ANCESTRAL
from ddpm_jax.trained import Trained

# Their name of the schedule, and of the variance.
SCHEDULES = {name: schedules.BY_NAME[name] for name in ("linear", "quad", "const", "jsd", "sigmoid")}
VARIANCES: dict[str, VarianceType] = {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}
NETWORK = (
    *("in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "resamp_with_conv"),
    "image_size",
)
DIFFUSION = ("beta_schedule", "beta_start", "beta_end", "num_diffusion_timesteps", "var_type")
# Settings of the same sections about data and training.
NO_EFFECT = ("type", "ema", "ema_rate", "dataset", "channels", "category", "logit_transform", "uniform_dequantization",
             "gaussian_dequantization", "random_flip", "rescaled", "num_workers")  # fmt: skip


def load_ddim(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Trained:
    """Model of ermongroup/ddim.

    Args:
      weights: by name.
      config: the sections `data`, `model` and `diffusion` of their YAML file merged; {} for a published network.

    Raises:
      ValueError: not such a network; none of the published ones, and settings are missing.
    """
    for name in config:
        if name not in (*NETWORK, *DIFFUSION, *NO_EFFECT):
            raise unknown("setting", name, (*NETWORK, *DIFFUSION))
    kinds.check(config, kinds.DDPM)
    name, settings = ("one that is not published", dict(config)) if config else _published(weights)
    missing = [setting for setting in (*NETWORK, *DIFFUSION) if setting not in settings]
    if missing:
        raise ValueError(f"the settings miss {', '.join(missing)}")
    variance = choose("var_type", settings["var_type"], VARIANCES)
    network = {setting: settings[setting] for setting in NETWORK}
    size = settings["image_size"]
    return Trained(
        origin=f"a DDPM of ermongroup/ddim or pesser/pytorch_diffusion ({name})",
        config=network,
        model=ddim.unet_from_config(network),
        params=ddim.ddim_to_params(weights, network),
        schedule=_schedule(settings),
        reading=Reading("eps", variance, clip=1.0),
        image_shape=(size, size, settings["out_ch"]),
        sampler=ANCESTRAL[variance],
    )


def _published(weights: Mapping[str, np.ndarray]) -> tuple[str, Mapping[str, Any]]:
    """(name, settings) of the published network with these weights."""
    seen = shown.levels(weights) | {
        "in_channels": shown.size(weights, "conv_in.weight", axis=1),
        "out_ch": shown.size(weights, "conv_out.weight"),
        "resamp_with_conv": "down.0.downsample.conv.weight" in weights,
    }
    for name, settings in DDIM.items():
        levels = range(len(settings["ch_mult"]))
        attends = tuple(level for level in levels if settings["image_size"] >> level in settings["attn_resolutions"])
        if all({**settings, "attention_levels": attends}[key] == value for key, value in seen.items()):
            return name, settings
    raise ValueError(
        f"none of the published networks ({'; '.join(DDIM)}): give config={{...}} with the sections data, model and "
        f"diffusion of its YAML file in one mapping; {kinds.COMMAND}"
    )


def _schedule(settings: Mapping[str, Any]) -> schedules.Schedule:
    name, length = settings["beta_schedule"], settings["num_diffusion_timesteps"]
    make = choose("beta_schedule", name, SCHEDULES)
    taken = make.__kwdefaults__ or {}
    ends = {end: settings[end] for end in ("beta_start", "beta_end") if end in taken}
    return make(length, **ends)
