"""The networks that a run can train: one frozen dataclass of settings for each; `model:` is one of them.

The fields' defaults are read from the network, where it has the same; None is what follows from the images.
"""

from typing import get_args

from ddpm_jax.config.networks.transformers import DiTConfig, UViTConfig
from ddpm_jax.config.networks.unet import UNetConfig

NetworkConfig = UNetConfig | DiTConfig | UViTConfig
"""The first is that of a config.json that does not say which."""
NETWORKS: dict[str, type[UNetConfig] | type[DiTConfig] | type[UViTConfig]] = {
    kind.name: kind for kind in get_args(NetworkConfig)
}
