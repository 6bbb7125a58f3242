"""What kind of value a setting has which a person has written down: so that an error names the setting."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.samplers.configs.reading import MOST

# Where settings are missing, and a command was what missed them.
COMMAND = "on the command line --config FILE.json"


class Kind(NamedTuple):
    said: str
    fits: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(1 <= value <= MOST)


def _number(value: Any) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and bool(abs(value) <= sys.float_info.max)  # which NaN and infinity are not


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


COUNT = Kind(f"a whole number in [1, {MOST}]", _whole)
COUNT_OR_NULL = Kind(f"{COUNT.said}, or null", lambda value: value is None or _whole(value))
COUNT_OR_MINUS_1 = Kind(f"{COUNT.said}, or -1", lambda value: value == -1 or _whole(value))
COUNTS = Kind("a list of whole numbers", lambda value: isinstance(value, list | tuple) and all(map(_whole, value)))
FACTORS = Kind(
    "a list of numbers above 0",
    lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(_positive, value)),
)
POSITIVE = Kind("a finite number above 0", _positive)
FRACTION = Kind("a number in [0, 1]", lambda value: _number(value) and 0 <= value <= 1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WORD = Kind("a word", lambda value: isinstance(value, str))
MAPPING = Kind("a mapping", lambda value: isinstance(value, Mapping))

# Of OpenAI's UNetModel and its diffusion, and what latent-diffusion's has beside.
OPENAI = {
    **dict.fromkeys(("in_channels", "model_channels", "out_channels", "num_res_blocks", "image_size"), COUNT),
    **dict.fromkeys(("num_heads", "dims", "diffusion_steps", "transformer_depth"), COUNT),
    **dict.fromkeys(("num_classes", "context_dim"), COUNT_OR_NULL),
    **dict.fromkeys(("num_head_channels", "num_heads_upsample"), COUNT_OR_MINUS_1),
    **{"channel_mult": FACTORS, "attention_resolutions": COUNTS, "dropout": FRACTION, "noise_schedule": WORD},
    **dict.fromkeys(("conv_resample", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order"), FLAG),
    **dict.fromkeys(("rescale_timesteps", "predict_xstart", "sigma_small"), FLAG),
    **dict.fromkeys(("use_spatial_transformer", "use_linear_in_transformer", "legacy"), FLAG),
}
LATENT_DIFFUSION = {
    **dict.fromkeys(("unet_config", "first_stage_config"), MAPPING),
    **dict.fromkeys(("linear_start", "linear_end"), FRACTION),
    **{"timesteps": COUNT, "image_size": COUNT, "scale_factor": POSITIVE, "use_ema": FLAG},
    **dict.fromkeys(("beta_schedule", "parameterization"), WORD),
}
FIRST_STAGE = {**dict.fromkeys(("embed_dim", "n_embed"), COUNT), "ddconfig": MAPPING}
# Of the networks with the names of DDPM in PyTorch: ermongroup/ddim's, and latent-diffusion's autoencoders.
DDPM = {
    **dict.fromkeys(("in_channels", "out_ch", "ch", "num_res_blocks", "image_size", "resolution", "z_channels"), COUNT),
    **{"ch_mult": FACTORS, "attn_resolutions": COUNTS, "dropout": FRACTION},
    **dict.fromkeys(("resamp_with_conv", "double_z"), FLAG),
    **{"num_diffusion_timesteps": COUNT, "beta_start": FRACTION, "beta_end": FRACTION},
    **dict.fromkeys(("beta_schedule", "var_type"), WORD),
}
DIT = {
    **dict.fromkeys(("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads"), COUNT),
    **{"num_classes": COUNT, "mlp_ratio": POSITIVE, "learn_sigma": FLAG, "class_dropout_prob": FRACTION},
}


def check(settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Whether every setting of which the kind is known is of it.

    Raises:
      ValueError: one is not.
    """
    for name, value in settings.items():
        if name in kinds and not kinds[name].fits(value):
            raise ValueError(f"{name} must be {kinds[name].said}, got {value!r}")
