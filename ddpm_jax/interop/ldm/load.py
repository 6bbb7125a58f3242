"""Checkpoints of CompVis/latent-diffusion and Stable Diffusion: U-Net, first stage and schedule in one file.

The weights of the U-Net are those of the moving average ("model_ema.") where the file has them, since their code
samples with those unless its use_ema is off. The encoder of the condition ("cond_stage_model.") is left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.interop import autoencoder, kinds, ldm, openai, rounding, shown
from ddpm_jax.interop.contents import UNET
from ddpm_jax.interop.openai.load import ABSENT
from ddpm_jax.interop.published import LATENT_DIFFUSION
from ddpm_jax.interop.wrapped import COUNTERS, EMA
from ddpm_jax.names import choose, unknown
from ddpm_jax.process import PredictionType
from ddpm_jax.reading import Reading
from ddpm_jax.schedules import Schedule
from ddpm_jax.trained import FirstStage, Trained

FIRST_STAGE = "first_stage_model."
# Arguments of LatentDiffusion that are read here; None: must be said by the file, a published model or the config.
SETTINGS = {
    "unet_config": None,
    "first_stage_config": {},
    "linear_start": None,
    "linear_end": None,
    "beta_schedule": "linear",
    "timesteps": 1000,
    "image_size": None,
    "parameterization": None,
    "scale_factor": 1.0,
    "use_ema": True,
}
# Those about training, logging and the condition.
NO_EFFECT = (
    *("base_learning_rate", "channels", "ckpt_path", "cond_stage_config", "cond_stage_key", "cond_stage_trainable"),
    *("concat_mode", "conditioning_key", "finetune_keys", "first_stage_key", "ignore_keys", "log_every_t"),
    *("loss_type", "monitor", "num_timesteps_cond", "scale_by_std", "scheduler_config"),
)
PREDICTIONS: dict[str, PredictionType] = {"eps": "eps", "x0": "x_0", "v": "v"}


def load_latent_diffusion(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Trained:
    """LatentDiffusion.

    Args:
      weights: by name, all of the file.
      config: `model.params` of their YAML file; {} for a published network.

    Raises:
      ValueError: no U-Net of theirs; none of the published ones, and settings are missing; settings that are not known
        here.
    """
    for name in config:
        if name not in (*SETTINGS, *NO_EFFECT):
            raise unknown("setting of LatentDiffusion", name, SETTINGS)
    kinds.check(config, kinds.LATENT_DIFFUSION)
    unet, average = _unet_weights(weights, config.get("use_ema", SETTINGS["use_ema"]))
    candidates = {name: entry["unet_config"] for name, entry in LATENT_DIFFUSION.items()}
    absent = ABSENT | {name: default for name, (default, _) in ldm.SETTINGS.items()}
    given = "unet_config" in config
    names = [] if given else shown.matches(shown.conditional_unet(unet), candidates, absent)
    settings = SETTINGS | (LATENT_DIFFUSION[names[0]] if names else {}) | dict(config)
    missing = [name for name in ("unet_config", "image_size", "parameterization") if settings[name] is None]
    if missing:
        raise ValueError(
            f"{names[0] if names else 'an unpublished LatentDiffusion'}: its weights do not show "
            f"{', '.join(missing)}; give them as config={{...}}, in the words of model.params of its YAML file; "
            f"{kinds.COMMAND}"
        )
    unet_settings = _params_of("unet_config", settings["unet_config"])
    kinds.check(unet_settings, kinds.OPENAI)
    family = ldm if unet_settings.get("use_spatial_transformer", False) else openai
    model, params = family.unet_from_config(unet_settings), family.unet_to_params(unet, unet_settings)
    out, size = unet_settings["out_channels"], settings["image_size"]
    schedule, said = _schedule(weights, settings)
    left_out = sum(name.startswith("cond_stage_model.") for name in weights)
    return Trained(
        origin=f"{names[0] if names else 'a LatentDiffusion of CompVis'}; "
        f"left out: the encoder of its condition, {left_out} arrays{average}{said}",
        config=unet_settings,
        model=model,
        params=params,
        schedule=schedule,
        reading=Reading(choose("parameterization", settings["parameterization"], PREDICTIONS), "fixed_small"),
        image_shape=(size, size, out),
        sampler="ddim",
        first_stage=_first_stage(weights, settings),
    )


def _params_of(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a class, from {"target": class, "params": arguments} or by themselves."""
    kinds.check({name: config.get("params", {})}, {name: kinds.MAPPING})
    return config.get("params", config)


def _unet_weights(weights: Mapping[str, np.ndarray], use_ema: bool) -> tuple[dict[str, np.ndarray], str]:
    """(the U-Net's under its own names, what is to be said of them).

    They are the moving averages, which have no dots in their names, or the plain ones.
    """
    plain = {name: name.removeprefix(UNET) for name in weights if name.startswith(UNET)}
    averages = {name: EMA + name.removeprefix("model.").replace(".", "") for name in plain}
    found = sum(average in weights for average in averages.values())
    others = [name for name in weights if name.startswith(EMA) and name.removeprefix(EMA) not in COUNTERS]
    if not others or not use_ema:
        return {plain[name]: weights[name] for name in plain}, "; weights: not the average, model_ema" if others else ""
    if found != len(plain):
        raise ValueError(f"moving averages of {found} of the {len(plain)} arrays of the U-Net")
    return {plain[name]: weights[averages[name]] for name in plain}, "; weights: the average, model_ema"


def _first_stage(weights: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> FirstStage | None:
    """Their AutoencoderKL or VQModel, as configured or as it shows, without the discriminator it was trained with."""
    found = {name.removeprefix(FIRST_STAGE): array for name, array in weights.items() if name.startswith(FIRST_STAGE)}
    found = {name: array for name, array in found.items() if not name.startswith("loss.")}
    if not found:
        return None
    given = _params_of("first_stage_config", settings["first_stage_config"])
    config = _shown_first_stage(found)
    if given:
        if "ddconfig" not in given:
            raise ValueError("first_stage_config misses ddconfig")
        kinds.check(given, kinds.FIRST_STAGE)
        kinds.check(given["ddconfig"], kinds.DDPM)
        config = {name: given[name] for name in ("embed_dim", "n_embed") if name in given} | given["ddconfig"]
    scale, stored = settings["scale_factor"], weights.get("scale_factor")
    beside = weights.get("betas", next(iter(found.values())))
    if stored is not None and rounding.misfit(stored, scale, slack=1e-6 * scale, beside=beside):
        scale = float(stored)
    return FirstStage(autoencoder.ldm_from_config(config), autoencoder.ldm_to_params(found, config), scale)


def _shown_first_stage(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    seen = shown.levels(weights, "encoder.")
    attention_levels = seen.pop("attention_levels")
    codes = "quantize.embedding.weight"
    config = seen | {
        "in_channels": shown.size(weights, "encoder.conv_in.weight", axis=1),
        "out_ch": shown.size(weights, "decoder.conv_out.weight"),
        "z_channels": shown.size(weights, "post_quant_conv.weight"),
        "embed_dim": shown.size(weights, "post_quant_conv.weight", axis=1),
        "double_z": codes not in weights,
        # The weights fit images of any size; this only says at which levels there is attention.
        "resolution": 256,
        "attn_resolutions": [256 >> level for level in attention_levels],
    }
    return config | ({"n_embed": shown.size(weights, codes)} if codes in weights else {})


def _schedule(weights: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> tuple[Schedule, str]:
    """(schedule, what is to be said of it).

    Of the settings, where the betas of the file are theirs, rounded to what they are stored in; of the file otherwise.
    """
    ends, betas = (settings["linear_start"], settings["linear_end"]), weights.get("betas")
    kind, length = settings["beta_schedule"], settings["timesteps"]
    exact = None if None in ends else schedules.make_beta_schedule(kind, length, *ends)
    if betas is None and exact is None:
        raise ValueError("the file has no betas: give linear_start and linear_end as config={...}")
    if exact is not None and (betas is None or _same(betas, exact)):
        return schedules.from_betas(exact), ""
    assert betas is not None
    said = ""
    if exact is not None:
        said = "; betas: those of the file, which are not of linear_start and linear_end"
    elif rounding.of_precision(betas):
        said = "; betas: those of the file, in half precision; give linear_start and linear_end for exact ones"
    return schedules.from_betas(betas.astype(np.float64)), said


def _same(betas: np.ndarray, exact: np.ndarray) -> bool:
    return betas.shape == exact.shape and not rounding.misfit(betas, exact, slack=1e-6 * exact)
