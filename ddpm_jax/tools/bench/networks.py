"""The networks that are measured, by name, with random weights."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import keys
from ddpm_jax.models import UNet


class Network(NamedTuple):
    """A U-Net and its images [H, W, C]."""

    model: UNet
    image_shape: tuple[int, int, int]


NETWORKS = {
    # DDPM's on CIFAR-10 (Ho et al. 2020, appendix B), of which `dropout` is for training only.
    "cifar10": Network(UNet(), (32, 32, 3)),
    # The one that `ddpm-jax train` trains.
    "digits": Network(
        UNet(
            channels=16,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
            out_channels=1,
            num_groups=8,
        ),
        (8, 8, 1),
    ),
}


def parameters(network: Network, seed: int = 0, **told: jax.Array) -> Any:
    """Random ones on the host, nothing compiled: kernels of N(0, 1 / fan_in), scales near 1, biases near 0.

    Args:
      network: and its images.
      seed: of the draws.
      told: what it is told of one example beside x_t and t, arrays [1, ...].
    """
    x, t = jnp.zeros((1, *network.image_shape)), jnp.zeros(1)
    init = lambda key, told: network.model.init(key, x, t, **told)
    shapes = jax.eval_shape(init, keys.make(seed), told)["params"]
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        normal = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            return normal / np.float32(math.prod(leaf.shape[:-1]) ** 0.5)
        return np.float32(path[-1].key == "scale") + np.float32(0.02) * normal

    return jax.tree_util.tree_map_with_path(draw, shapes)
