"""Sinusoidal embeddings of time.

t [B] is the model's own time, float32, any real number: fractional times are not rounded.
"""

import jax
import jax.numpy as jnp
import numpy as np


def timestep_embedding(t: jax.Array, dim: int, *, cosine_first: bool = False, endpoint: bool = True) -> jax.Array:
    """[sin(t w_0), .., sin(t w_{n-1}), cos(t w_0), .., cos(t w_{n-1})], w_i = 10000^(-i / (n - 1)), n = dim // 2.

    The convention of DDPM: sines first, and the slowest frequency is exactly 1/10000. OpenAI's code and its
    descendants (cosine_first, not endpoint) put cosines first and divide by n, not n - 1.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, in the variant used by Ho et al. 2020
    (arXiv:2006.11239), appendix B.

    Args:
      t: [B] float, the model's time.
      dim: length of the embedding, at least 4. An odd dim ends with a zero.
      cosine_first: [cos, sin] instead of [sin, cos].
      endpoint: whether the frequencies reach 1/10000: divided by n - 1, not by n.

    Returns:
      [B, dim] float32.

    Raises:
      ValueError: t is not [B], or dim < 4. Raised while tracing.

    Example:
      >>> timestep_embedding(jnp.zeros(1), 4).tolist()
      [[0.0, 0.0, 1.0, 1.0]]
    """
    if t.ndim != 1:
        raise ValueError(f"t must be [B], got shape {t.shape}")
    half = dim // 2
    if half < 2:
        raise ValueError(f"dim must be at least 4, got {dim}")
    frequencies = np.exp(-np.log(10000) * np.arange(half) / (half - endpoint)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def fourier_embedding(t: jax.Array, frequencies: jax.Array, *, cosine_first: bool = False) -> jax.Array:
    """[sin(2 pi w_0 log t), .., sin(2 pi w_{n-1} log t), cos(2 pi w_0 log t), .., cos(2 pi w_{n-1} log t)].

    Source: Song et al. 2020 (arXiv:2011.13456), appendix H.2; of the logarithm of the noise level, as in their code.

    Args:
      t: [B] float, positive: for a network of score-SDE, the noise level. NaN at 0 and below.
      frequencies: [n] float32, the w.
      cosine_first: [cos, sin] instead of [sin, cos].

    Returns:
      [B, 2 n] float32.

    Raises:
      ValueError: t is not [B]. Raised while tracing.

    Example:
      >>> fourier_embedding(jnp.ones(1), jnp.ones(2)).tolist()
      [[0.0, 0.0, 1.0, 1.0]]
    """
    if t.ndim != 1:
        raise ValueError(f"t must be [B], got shape {t.shape}")
    # Angles are large: another order of the products would be other digits than PyTorch's.
    angles = jnp.log(t.astype(jnp.float32))[:, None] * frequencies[None, :] * 2 * np.float32(np.pi)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)
