"""Settings of published checkpoints that hold weights only: latent-diffusion's, Stable Diffusion's, ermongroup/ddim's.

LATENT_DIFFUSION has `model.params` of the YAML files of CompVis/latent-diffusion, CompVis/stable-diffusion and
Stability-AI/stablediffusion, without what only training reads and without the first stage, all of which shows in the
weights. DDIM has the sections `data`, `model` and `diffusion` of the YAML files of ermongroup/ddim merged into one.
"""

from typing import Any

_UNET = {"num_res_blocks": 2}
_STABLE_DIFFUSION = {"linear_start": 0.00085, "linear_end": 0.012, "scale_factor": 0.18215, "image_size": 64}
_TEXT_UNET = _UNET | {
    **{"model_channels": 320, "channel_mult": (1, 2, 4, 4), "attention_resolutions": (4, 2, 1)},
    **{"out_channels": 4, "use_spatial_transformer": True, "transformer_depth": 1},
}
_SD_1 = _TEXT_UNET | {"in_channels": 4, "num_heads": 8, "context_dim": 768, "legacy": False}
_SD_2 = _TEXT_UNET | {
    **{"in_channels": 4, "num_head_channels": 64, "context_dim": 1024, "legacy": False},
    **{"use_linear_in_transformer": True},
}
_VQ_F4 = {"linear_start": 0.0015, "linear_end": 0.0195, "image_size": 64, "parameterization": "eps"}
_FACES = _UNET | {
    **{"in_channels": 3, "out_channels": 3, "model_channels": 224, "num_head_channels": 32},
    **{"attention_resolutions": (8, 4, 2), "channel_mult": (1, 2, 3, 4)},
}
_IMAGENET = _UNET | {
    **{"in_channels": 3, "out_channels": 3, "model_channels": 192, "num_heads": 1, "channel_mult": (1, 2, 3, 5)},
    **{"attention_resolutions": (8, 4, 2), "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 512},
}
_CHURCHES = _UNET | {
    **{"in_channels": 4, "out_channels": 4, "model_channels": 192, "num_heads": 8, "channel_mult": (1, 2, 2, 4, 4)},
    **{"attention_resolutions": (1, 2, 4, 8), "use_scale_shift_norm": True, "resblock_updown": True},
}

LATENT_DIFFUSION: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": _STABLE_DIFFUSION | {"unet_config": _SD_1, "parameterization": "eps"},
    "Stable Diffusion 1 in-painting": _STABLE_DIFFUSION
    | {"unet_config": _SD_1 | {"in_channels": 9}, "parameterization": "eps"},
    # The base model predicts eps, the one for 768 x 768 images v: the weights look alike.
    "Stable Diffusion 2": _STABLE_DIFFUSION | {"unet_config": _SD_2},
    "Stable Diffusion 2 in-painting": _STABLE_DIFFUSION
    | {"unet_config": _SD_2 | {"in_channels": 9}, "parameterization": "eps"},
    "LDM text-to-image": _STABLE_DIFFUSION
    | {"image_size": 32, "parameterization": "eps"}
    | {"unet_config": _TEXT_UNET | {"in_channels": 4, "num_heads": 8, "context_dim": 1280}},
    "LDM ImageNet, class-conditional": _VQ_F4 | {"unet_config": _IMAGENET},
    "LDM CelebA-HQ, FFHQ or LSUN bedrooms": _VQ_F4 | {"unet_config": _FACES},
    "LDM LSUN churches": _VQ_F4 | {"linear_end": 0.0155, "image_size": 32, "unet_config": _CHURCHES},
}

_HO = {
    **{"in_channels": 3, "out_ch": 3, "ch": 128, "num_res_blocks": 2, "attn_resolutions": (16,)},
    **{"resamp_with_conv": True, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    **{"num_diffusion_timesteps": 1000},
}

DDIM: dict[str, dict[str, Any]] = {
    "CIFAR-10": _HO | {"image_size": 32, "ch_mult": (1, 2, 2, 2), "dropout": 0.1, "var_type": "fixedlarge"},
    "CelebA 64": _HO | {"image_size": 64, "ch_mult": (1, 2, 2, 2, 4), "dropout": 0.1, "var_type": "fixedlarge"},
    "LSUN or CelebA-HQ 256": _HO
    | {"image_size": 256, "ch_mult": (1, 1, 2, 2, 4, 4), "dropout": 0.0, "var_type": "fixedsmall"},
}
