"""Checkpoints of openai/improved-diffusion and openai/guided-diffusion, which hold weights and nothing else.

Most settings of the network show in the names and shapes of the weights. Heads, the order of q, k and v, and dropout do
not, nor does anything about the diffusion: those are known of the published networks, and must be given for others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.interop import kinds, openai, shown
from ddpm_jax.interop.openai.published import CLASSIFIER_DIFFUSIONS, CONFIGS, DIFFUSIONS
from ddpm_jax.names import choose, unknown
from ddpm_jax.noisy_classifier import NoisyClassifier
from ddpm_jax.reading import Reading
from ddpm_jax.samplers.catalogue import ANCESTRAL
from ddpm_jax.trained import Trained

# Their settings of the diffusion, as flags of their scripts, with the defaults of guided-diffusion; None: must be said.
DIFFUSION = {
    "diffusion_steps": None,
    "noise_schedule": None,
    "rescale_timesteps": False,
    "predict_xstart": False,
    "sigma_small": False,
}
# Of these, what a classifier is trained with: noise, and not what is learned from it.
NOISE = {name: DIFFUSION[name] for name in ("diffusion_steps", "noise_schedule", "rescale_timesteps")}
# Settings of EncoderUNetModel that its weights do not show; num_heads or num_head_channels is one more.
HIDDEN = ("num_res_blocks", "channel_mult", "attention_resolutions", "image_size")
SCHEDULES = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}
# (in_channels, out_channels) of networks for RGB images: (image channels, whether the variance is learned). The
# in_channels of SuperResModel are those of the image and of the image to be upsampled.
RGB = {(3, 3): (3, False), (3, 6): (3, True), (6, 3): (3, False), (6, 6): (3, True)}
ABSENT = openai.DEFAULTS | {"num_classes": None}


def load_unet(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Trained:
    """UNetModel or SuperResModel.

    Args:
      weights: by name.
      config: settings of UNetModel and of DIFFUSION; {} for a published network. Settings that show in the weights may
        be left out.

    Raises:
      ValueError: not a U-Net of theirs; none of the published ones, and settings are missing; settings that the class
        has not or the weights contradict.
    """
    seen = shown.unet(weights)
    names = [] if config else shown.matches(seen, CONFIGS, ABSENT)
    if names:
        settings, diffusion = _agreed(names), DIFFUSION | DIFFUSIONS[names[0]]
        origin = f"OpenAI's {' or '.join(names)}"
    else:
        settings, diffusion = _given(seen, config)
        origin = "a U-Net of OpenAI's improved-diffusion or guided-diffusion"
    schedule = choose("noise_schedule", diffusion["noise_schedule"], SCHEDULES)(diffusion["diffusion_steps"])
    channels, learned = _channels(settings)
    variance = "learned_range" if learned else "fixed_small" if diffusion["sigma_small"] else "fixed_large"
    return Trained(
        origin=origin,
        config=settings,
        model=openai.unet_from_config(settings),
        params=openai.unet_to_params(weights, settings),
        schedule=schedule,
        reading=Reading(
            "x_0" if diffusion["predict_xstart"] else "eps",
            variance,
            clip=1.0,
            time_scale=1000 / schedule.num_timesteps if diffusion["rescale_timesteps"] else 1.0,
        ),
        image_shape=(settings["image_size"], settings["image_size"], channels),
        sampler=ANCESTRAL[variance],
    )


def load_classifier(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> NoisyClassifier:
    """EncoderUNetModel, as their scripts train it on noisy images.

    Args:
      weights: by name.
      config: settings of EncoderUNetModel and of NOISE; {} for a published one. Settings that show in the weights may
        be left out.

    Raises:
      ValueError: not a classifier of theirs; none of the published ones, and settings are missing; settings that the
        class has not or the weights contradict.
    """
    seen, origin = shown.classifier(weights), "a noisy classifier of OpenAI's guided-diffusion"
    published = {name: CONFIGS[name] for name in CLASSIFIER_DIFFUSIONS}
    names = [name for name in shown.matches(seen, published, openai.DEFAULTS | {"pool": "adaptive"})
             if shown.input_blocks(weights) == _input_blocks(CONFIGS[name])]  # fmt: skip
    if names and not config:
        settings, noise, origin = CONFIGS[names[0]], NOISE | CLASSIFIER_DIFFUSIONS[names[0]], f"OpenAI's {names[0]}"
    else:
        settings, noise = _told(seen, config)
    schedule = choose("noise_schedule", noise["noise_schedule"], SCHEDULES)(noise["diffusion_steps"])
    size = settings["image_size"]
    return NoisyClassifier(
        origin=origin,
        config=settings,
        model=openai.classifier_from_config(settings),
        params=openai.classifier_to_params(weights, settings),
        schedule=schedule,
        image_shape=(size, size, settings["in_channels"]),
        time_scale=1000 / schedule.num_timesteps if noise["rescale_timesteps"] else 1.0,
    )


def _input_blocks(config: Mapping[str, Any]) -> int:
    """How many there are: a convolution, and the res blocks and downsamplings of every level."""
    return len(config["channel_mult"]) * (config["num_res_blocks"] + 1)


def _told(seen: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of EncoderUNetModel, those of NOISE), from those that show and those that are given."""
    settings, noise, missing = _divided(seen, config, "pool", NOISE)
    missing += [name for name in HIDDEN if name not in settings]
    missing += [] if {"num_heads", "num_head_channels"} & set(config) else ["num_heads or num_head_channels"]
    if missing:
        raise ValueError(
            "a noisy classifier of OpenAI's, and none of those published: its weights do not show everything, give "
            f"config={{...}} with {', '.join(missing)} (and resblock_updown, use_new_attention_order if they are set)"
        )
    return settings, noise


def _divided(
    seen: Mapping[str, Any], config: Mapping[str, Any], own: str, others: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(settings of the network, those of its training, which of these nobody says), from those that show and are given.

    Args:
      seen: what shows in the weights.
      config: what is given.
      own: a setting that only this kind of network has.
      others: those of the training, and what they are where nobody says.

    Raises:
      ValueError: a setting that is unknown, of another type, or not what shows.
    """
    allowed = (*openai.REQUIRED, *openai.DEFAULTS, *openai.NO_EFFECT, own, *others)
    for name in config:
        if name not in allowed:
            raise unknown("setting", name, allowed)
    kinds.check(config, kinds.OPENAI)
    settings = dict(seen) | {name: value for name, value in config.items() if name not in others}
    _check_shown(seen, settings)
    training = {**others, **{name: value for name, value in config.items() if name in others}}
    return settings, training, [name for name, value in training.items() if value is None]


def _check_shown(seen: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Whether settings are what shows in the weights.

    Raises:
      ValueError: they are not.
    """
    if wrong := shown.contradictions(seen, settings):
        said = "; ".join(f"{name} is {seen[name]!r}, not {settings[name]!r}" for name in wrong)
        raise ValueError(f"the weights contradict the settings: {said}")


def _agreed(names: list[str]) -> dict[str, Any]:
    """The one configuration of published networks that look alike.

    They differ in data and training, of which the weights keep no trace. Dropout, which only training reads, is 0 where
    they disagree.
    """
    first = CONFIGS[names[0]]
    same_dropout = all(CONFIGS[name].get("dropout") == first.get("dropout") for name in names)
    return first if same_dropout else first | {"dropout": 0.0}


def _given(seen: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of UNetModel, settings of the diffusion), from those that show and those that are given."""
    settings, diffusion, missing = _divided(seen, config, "num_classes", DIFFUSION)
    missing += [] if "image_size" in settings else ["image_size"]
    missing += [] if {"num_heads", "num_head_channels"} & set(config) else ["num_heads or num_head_channels"]
    if missing:
        raise ValueError(
            "a U-Net of OpenAI's, and none of those published: its weights do not show everything, give "
            f"config={{...}} with {', '.join(missing)} (and use_new_attention_order if it is set); {kinds.COMMAND}"
        )
    return settings, diffusion


def _channels(settings: Mapping[str, Any]) -> tuple[int, bool]:
    """(channels of the images, whether the variance is learned)."""
    inputs, outputs = settings["in_channels"], settings["out_channels"]
    other = {(inputs, inputs): (inputs, False), (inputs, 2 * inputs): (inputs, True)}
    found = RGB.get((inputs, outputs), other.get((inputs, outputs)))
    if found is None:
        raise ValueError(f"out_channels must be in_channels {inputs} or twice as many, got {outputs}")
    return found
