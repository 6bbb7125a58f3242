"""Parameters of published networks: ours by eval_shape, diffusers' on PyTorch's meta device; neither takes memory."""

import math

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.interop import layers
from tests.tools.parity.live import OURS

DDPM = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
WITH_ATTENTION = ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D")
STABLE_DIFFUSION = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
STAGE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
STAGE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}

# google/ddpm-cifar10-32, google/ddpm-celebahq-256 and its relatives, Stable Diffusion 1 with its first stage,
# facebook/DiT-XL-2-256: class, settings, inputs beside image and time, parameters.
PUBLISHED = {
    "ddpm-cifar10-32": (
        "UNet2DModel",
        DDPM
        | {"block_out_channels": (128, 256, 256, 256), "sample_size": 32}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
        {},
        35_746_307,
    ),
    "ddpm-256": (
        "UNet2DModel",
        DDPM
        | {"block_out_channels": (128, 128, 256, 256, 512, 512), "sample_size": 256}
        | {"down_block_types": WITH_ATTENTION}
        | {"up_block_types": tuple(name.replace("Down", "Up") for name in reversed(WITH_ATTENTION))},
        {},
        113_673_219,
    ),
    "stable-diffusion-1": ("UNet2DConditionModel", STABLE_DIFFUSION, {"context": (1, 77, 768)}, 859_520_964),
    "stable-diffusion-1-vae": ("AutoencoderKL", STAGE, None, 83_653_863),
    "DiT-XL-2-256": ("DiTTransformer2DModel", {"out_channels": 8}, {"y": (1,)}, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters(name, torch, theirs):
    class_name, settings, inputs, known = PUBLISHED[name]
    with torch.device("meta"):
        net = getattr(theirs, class_name)(**settings)
    from_config, _, _ = OURS[class_name]
    config = dict(net.config)
    image = jnp.zeros((1, 64, 64, config["in_channels"]))
    if inputs is None:
        shapes = layers.param_shapes(from_config(config), image)
    else:
        given = {
            key: jax.ShapeDtypeStruct(shape, jnp.int32 if key == "y" else jnp.float32) for key, shape in inputs.items()
        }
        shapes = layers.shapes(from_config(config), image.shape[1:], **given)
    ours, expected = sum(map(math.prod, shapes.values())), sum(p.numel() for p in net.parameters())
    assert ours == expected and known in (expected, None)
