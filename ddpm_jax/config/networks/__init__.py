"""The networks that a run can train: one frozen dataclass of settings for each; `model:` is one of them.

The fields' defaults are read from the network, where it has the same; None is what follows from the images.
"""

from typing import Any, Literal, get_args

from ddpm_jax.config.networks.autoencoders import AutoencoderConfig as AutoencoderConfig
from ddpm_jax.config.networks.autoencoders import FSQConfig, KLConfig, VQConfig
from ddpm_jax.config.networks.classifier import ClassifierConfig
from ddpm_jax.config.networks.transformers import DiTConfig, UViTConfig
from ddpm_jax.config.networks.unet import UNetConfig

NetworkConfig = UNetConfig | DiTConfig | UViTConfig | ClassifierConfig | KLConfig | VQConfig | FSQConfig
"""The first is that of a config.json that does not say which."""
NetworkName = Literal["unet", "dit", "uvit", "classifier", "kl", "vq", "fsq"]
"""What --model takes: their names."""
NETWORKS: dict[str, Any] = {kind.name: kind for kind in get_args(NetworkConfig)}
