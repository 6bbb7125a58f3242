"""Small networks of diffusers with random weights, and the noise its pipelines draw."""

import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import autoencoder, conditional, diffusers, dit

LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = LEVELS | {
    "sample_size": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip
CONDITIONAL = LEVELS | {
    "sample_size": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 6,
}  # fmt: skip
STAGE = LEVELS | {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"), "latent_channels": 3,
}  # fmt: skip

# Name: (class of diffusers, its settings).
NETWORKS = {
    "ddpm": (
        "UNet2DModel",
        PLAIN | {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    ),
    "adm": (
        "UNet2DModel",
        PLAIN
        | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "num_class_embeds": 5}
        | {"downsample_type": "resnet", "upsample_type": "resnet", "out_channels": 6},
    ),
    "stable_diffusion_1": ("UNet2DConditionModel", CONDITIONAL | {"attention_head_dim": 2}),
    "stable_diffusion_2": (
        "UNet2DConditionModel",
        CONDITIONAL | {"attention_head_dim": (2, 4), "use_linear_projection": True},
    ),
    "dit": (
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "out_channels": 8},
    ),
    "kl": ("AutoencoderKL", STAGE | {"latent_channels": 4}),
    "vq": ("VQModel", STAGE | {"num_vq_embeddings": 7, "vq_embed_dim": 2}),
}
# Class of diffusers: (from_config, to parameters, back).
OURS = {
    "UNet2DModel": (diffusers.unet_from_config, diffusers.unet2d_to_params, diffusers.params_to_unet2d),
    "UNet2DConditionModel": (
        conditional.unet_from_config, conditional.unet2dcond_to_params, conditional.params_to_unet2dcond,
    ),
    "DiTTransformer2DModel": (
        dit.transformer2d_from_config, dit.transformer2d_to_params, dit.params_to_transformer2d,
    ),
    "AutoencoderKL": (autoencoder.kl_from_config, autoencoder.kl_to_params, autoencoder.params_to_kl),
    "VQModel": (autoencoder.vq_from_config, autoencoder.vq_to_params, autoencoder.params_to_vq),
}  # fmt: skip


def network(torch, theirs, name: str, seed: int = 0, **changes):
    """A network of NETWORKS in eval mode; no parameter is left as it starts, neither 0 nor 1."""
    class_name, settings = NETWORKS[name]
    torch.manual_seed(seed)
    net = getattr(theirs, class_name)(**settings | changes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return net


def weights(net) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def drawn(torch, seed: int, shape, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """x_T [B, H, W, C] and the noise [N, B, H, W, C] that a pipeline draws with a generator of this seed: one image
    after the other from one stream, none in the last step, which ends at t = 0."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width, channels = shape
    draw = lambda: torch.randn((batch, channels, height, width), generator=generator).numpy().transpose(0, 2, 3, 1)
    x_T, *noise = [draw() for _ in range(num_steps)]
    return x_T, np.stack([*noise, np.zeros_like(x_T)])


def nchw(torch, images):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2)))


def nhwc(tensor):
    return jnp.asarray(tensor.detach().numpy().transpose(0, 2, 3, 1))
