"""Small networks of diffusers with random weights, and the noise its pipelines draw."""

import jax.numpy as jnp
import numpy as np

from ddpm_jax.tools.parity import networks
from ddpm_jax.tools.parity.networks import NETWORKS as NETWORKS
from ddpm_jax.tools.parity.networks import OURS as OURS
from ddpm_jax.tools.parity.networks import weights as weights
from ddpm_jax.tools.parity.theirs import Libraries


def network(torch, theirs, name: str, seed: int = 0, **changes):
    """A network of NETWORKS in eval mode; no parameter is left as it starts, neither 0 nor 1."""
    return networks.network(Libraries(torch, theirs), name, seed, **changes)


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
