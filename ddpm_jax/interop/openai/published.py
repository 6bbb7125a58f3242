"""Configurations of OpenAI's published checkpoints, by file name without ".pt".

The files hold weights only; these are the flags of the READMEs of openai/guided-diffusion (22e0df8) and
openai/improved-diffusion (1bc7bbb) as arguments of `UNetModel`, `SuperResModel` (its in_channels doubled) and
`EncoderUNetModel`: "attention_resolutions 32,16,8" at image size 64 are the factors 2, 4, 8, and learn_sigma doubles
out_channels. DIFFUSIONS has the flags of the diffusion of each U-Net.
"""

from typing import Any

_ADM = {
    "in_channels": 3,
    "model_channels": 256,
    "out_channels": 6,
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
_IDDPM = {
    "in_channels": 3,
    "model_channels": 128,
    "out_channels": 6,
    "num_res_blocks": 3,
    "num_heads": 4,
    "use_scale_shift_norm": True,
}
_CLASSIFIER = _ADM | {"model_channels": 128, "out_channels": 1000, "pool": "attention"}
_CLASSES = {"num_classes": 1000}
_SIZE = {
    64: {"image_size": 64, "channel_mult": (1, 2, 3, 4), "attention_resolutions": (2, 4, 8)},
    128: {"image_size": 128, "channel_mult": (1, 1, 2, 3, 4), "attention_resolutions": (4, 8, 16)},
    256: {"image_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32)},
    512: {"image_size": 512, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "attention_resolutions": (16, 32, 64)},
}
_LSUN = _ADM | _SIZE[256] | {"dropout": 0.1}
# improved-diffusion has attention at heights 16 and 8 unless told otherwise.
_IDDPM_32 = _IDDPM | {"image_size": 32, "channel_mult": (1, 2, 2, 2), "attention_resolutions": (2, 4), "dropout": 0.3}
_IDDPM_64 = _IDDPM | _SIZE[64] | {"attention_resolutions": (4, 8)}
_IDDPM_LSUN = _IDDPM | _SIZE[256] | {
    "num_res_blocks": 2, "num_heads": 1, "use_scale_shift_norm": False, "attention_resolutions": (16,)
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "64x64_diffusion": _ADM | _SIZE[64] | _CLASSES
    | {"model_channels": 192, "num_res_blocks": 3, "dropout": 0.1, "use_new_attention_order": True},
    "128x128_diffusion": _ADM | _SIZE[128] | _CLASSES | {"num_heads": 4, "num_head_channels": -1},
    "256x256_diffusion": _ADM | _SIZE[256] | _CLASSES,
    "256x256_diffusion_uncond": _ADM | _SIZE[256],
    "512x512_diffusion": _ADM | _SIZE[512] | _CLASSES,
    "64_256_upsampler": _ADM | _SIZE[256] | _CLASSES
    | {"in_channels": 6, "model_channels": 192, "num_heads": 4, "num_head_channels": -1},
    "128_512_upsampler": _ADM | _SIZE[256] | _CLASSES
    | {"image_size": 512, "in_channels": 6, "model_channels": 192, "attention_resolutions": (16, 32)},
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
    "lsun_horse_nodropout": _LSUN | {"dropout": 0.0},
    "64x64_classifier": _CLASSIFIER | _SIZE[64] | {"num_res_blocks": 4},
    "128x128_classifier": _CLASSIFIER | _SIZE[128],
    "256x256_classifier": _CLASSIFIER | _SIZE[256],
    "512x512_classifier": _CLASSIFIER | _SIZE[512],
    "cifar10_uncond_50M_500K": _IDDPM_32,
    "cifar10_uncond_vlb_50M_500K": _IDDPM_32,
    "imagenet64_uncond_100M_1500K": _IDDPM_64,
    "imagenet64_uncond_vlb_100M_1500K": _IDDPM_64,
    "imagenet64_cond_270M_250K": _IDDPM_64 | _CLASSES | {"model_channels": 192},
    "upsample_cond_500K": _IDDPM | _SIZE[256] | _CLASSES
    | {"in_channels": 6, "model_channels": 192, "num_res_blocks": 2, "attention_resolutions": (16, 32)},
    "lsun_uncond_100M_1200K_bs128": _IDDPM_LSUN,
    "lsun_uncond_100M_2400K_bs64": _IDDPM_LSUN,
}  # fmt: skip

_LINEAR = {"diffusion_steps": 1000, "noise_schedule": "linear"}
_COSINE = {"diffusion_steps": 4000, "noise_schedule": "cosine"}
# rescale_timesteps is on in improved-diffusion unless told otherwise, and off in guided-diffusion.
_RESCALED = _COSINE | {"rescale_timesteps": True}

DIFFUSIONS: dict[str, dict[str, Any]] = {
    "64x64_diffusion": _COSINE | {"diffusion_steps": 1000},
    "128x128_diffusion": _LINEAR,
    "256x256_diffusion": _LINEAR,
    "256x256_diffusion_uncond": _LINEAR,
    "512x512_diffusion": _LINEAR,
    "64_256_upsampler": _LINEAR,
    "128_512_upsampler": _LINEAR,
    "lsun_bedroom": _LINEAR,
    "lsun_cat": _LINEAR,
    "lsun_horse": _LINEAR,
    "lsun_horse_nodropout": _LINEAR,
    "cifar10_uncond_50M_500K": _RESCALED,
    "cifar10_uncond_vlb_50M_500K": _RESCALED,
    "imagenet64_uncond_100M_1500K": _RESCALED,
    "imagenet64_uncond_vlb_100M_1500K": _RESCALED,
    "imagenet64_cond_270M_250K": _COSINE,
    "upsample_cond_500K": _LINEAR | {"diffusion_steps": 4000},
    "lsun_uncond_100M_1200K_bs128": _LINEAR,
    "lsun_uncond_100M_2400K_bs64": _LINEAR,
}

# Of the noise that each classifier learned from: that of the diffusion models that it guides.
CLASSIFIER_DIFFUSIONS: dict[str, dict[str, Any]] = {
    "64x64_classifier": _COSINE | {"diffusion_steps": 1000},
    "128x128_classifier": _LINEAR,
    "256x256_classifier": _LINEAR,
    "512x512_classifier": _LINEAR,
}
