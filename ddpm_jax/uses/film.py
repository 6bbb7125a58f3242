"""What the network takes x_0 for at each step: a strip of pictures, and one that moves."""

import io

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import images, samplers
from ddpm_jax.samplers import Denoise, Table


def chosen(num_calls: int, columns: int) -> np.ndarray:
    """[columns] rows of a table, evenly spread, the first and the last among them.

    Raises:
      ValueError: more columns than rows, or none.
    """
    if not 1 <= columns <= num_calls:
        raise ValueError(f"--columns must lie in [1, {num_calls}], the calls of the network, got {columns}")
    return np.round(np.linspace(0, num_calls - 1, columns)).astype(int) if columns > 1 else np.array([num_calls - 1])


def predictions(
    denoise: Denoise,
    table: Table,
    key: jax.Array,
    shape: tuple[int, ...],
    rows: np.ndarray,
    *,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """[B, R, ...] x_0 as the network predicts it at these rows of the table, of the samples that it draws.

    The network is called once more for each of them.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 4.3 and figure 6.

    Args:
      denoise: the network's.
      table: of any sampler.
      key: of all samples.
      shape: [B, ...].
      rows: [R] in [0, N).
      first_index: the index of the first sample.
    """
    _, xs = samplers.trajectory(denoise, table, key, shape, first_index=first_index)
    some = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows], xs.dtype), table.rows)
    found = jax.lax.map(lambda at: denoise(*at).x_0, (xs[rows], some))
    return jnp.moveaxis(found, 0, 1)


def strip(pictures: np.ndarray) -> np.ndarray:
    """One picture [H', W', C] of uint8 [N, R, H, W, C]: a line for each image, a column for each row of the table."""
    return images.grid(pictures.reshape(-1, *pictures.shape[2:]), columns=pictures.shape[1])


def moving(pictures: np.ndarray, *, milliseconds: int = 100, last: int = 1500) -> bytes:
    """A GIF of uint8 [N, R, H, W, C]: a frame for each row of the table, all images side by side, the last one longer.

    Args:
      pictures: of 1 or 3 channels.
      milliseconds: of each frame.
      last: of the last frame.
    """
    from PIL import Image

    frames = [images.grid(pictures[:, k]) for k in range(pictures.shape[1])]
    shown = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in frames]
    content, durations = io.BytesIO(), [milliseconds] * (len(shown) - 1) + [last]
    shown[0].save(content, "GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0)
    return content.getvalue()
