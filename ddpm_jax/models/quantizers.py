"""Quantization beside a learned codebook: averages in the place of its gradient, and a fixed grid of levels.

z is [..., D], and a code is an index in [0, K). The codebook of `vq.VQModel` may be learned by either.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddpm_jax.models.vq import Quantized, Quantizing


def usage(indices: jax.Array, num_codes: int) -> jax.Array:
    """[K] the share of each code among indices of any shape."""
    return jnp.bincount(indices.ravel(), length=num_codes).astype(jnp.float32) / indices.size


def perplexity(shares: jax.Array) -> jax.Array:
    """exp(-sum_k p_k log p_k) of shares [K]: how many codes are used, counted as equals; from 1 to K.

    Source: van den Oord et al. 2017 (arXiv:1711.00937) report it; 1e-10 inside the logarithm as in taming's code.
    """
    return jnp.exp(-jnp.sum(shares * jnp.log(shares + 1e-10)))


# ------------------------------------------------------------------------------------------------ averages


class CodebookAverages(NamedTuple):
    """How many vectors each code had, [K], and their sum, [K, D]: exponential averages over the steps."""

    counts: jax.Array
    sums: jax.Array


def codebook_averages(codebook: jax.Array, counts: float = 1.0) -> CodebookAverages:
    """Those of a codebook [K, D] before the first step, of which the codebook itself is the quotient.

    taming's begins with counts 0 and the same sums: its first steps scale every code that is not used up.
    """
    return CodebookAverages(jnp.full(codebook.shape[:1], counts, jnp.float32), counts * codebook)


def update_averages(
    averages: CodebookAverages, z: jax.Array, indices: jax.Array, *, decay: float = 0.99
) -> CodebookAverages:
    """decay averages + (1 - decay) of the vectors z [..., D] with codes [...].

    Source: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1, eq. 6 and 7.
    """
    z, indices = z.reshape(-1, z.shape[-1]), indices.ravel()
    counts = jnp.zeros_like(averages.counts).at[indices].add(1.0)
    sums = jnp.zeros_like(averages.sums).at[indices].add(z)
    average = lambda old, new: decay * old + (1 - decay) * new
    return CodebookAverages(average(averages.counts, counts), average(averages.sums, sums))


def codebook_of(averages: CodebookAverages, *, eps: float = 1e-5) -> jax.Array:
    """sums_k / counts_k, the counts with eps added to each and scaled back to their sum: [K, D].

    Source: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1, eq. 8; the smoothing is that of taming's code.
    """
    total = averages.counts.sum()
    counts = (averages.counts + eps) / (total + len(averages.counts) * eps) * total
    return averages.sums / counts[:, None]


# ------------------------------------------------------------------------------------------------ levels


def levels_quantized(z: jax.Array, levels: Sequence[int]) -> Quantized:
    """FSQ: each channel i of z [..., D] on one of levels[i] equally distant values in [-1, 1]; gradient as if rounding
    were the identity.

    An even number of levels lies at -1, ..., and not at 1: the grid has 0 in it, and z = 0 is there.

    Source: Mentzer et al. 2023 (arXiv:2309.15505), section 3.1; the outermost levels are 1e-3 inside the range of tanh.

    Returns:
      z [..., D] on the grid, and codes [...] int32 in [0, prod levels), the first channel's digit counting 1.
    """
    numbers = np.asarray(levels, np.int32)
    half = ((numbers - 1) * (1 + 1e-3) / 2).astype(np.float32)
    offset = np.where(numbers % 2 == 0, 0.5, 0.0).astype(np.float32)
    wide = lambda row: jnp.asarray(row).reshape((1,) * (z.ndim - 1) + (-1,))
    bounded = wide(half) * jnp.tanh(z + wide(np.arctanh(offset / half))) - wide(offset)
    rounded = bounded + lax.stop_gradient(jnp.round(bounded) - bounded)
    digits = lax.stop_gradient(jnp.round(bounded)).astype(jnp.int32) + wide(numbers // 2)
    basis = np.concatenate([[1], np.cumprod(numbers[:-1])]).astype(np.int32)
    return Quantized(rounded / wide((numbers // 2).astype(np.float32)), (digits * wide(basis)).sum(axis=-1))


def level_entries(indices: jax.Array, levels: Sequence[int]) -> jax.Array:
    """The values [..., D] of codes [...]: what `levels_quantized` has for them."""
    digits, rest = [], indices
    for number in levels:
        digits.append((rest % number - number // 2).astype(jnp.float32) / (number // 2))
        rest = rest // number
    return jnp.stack(digits, axis=-1)


class FSQModel(Quantizing):
    """decode(encode(x)), with each channel of z rounded to one of a few levels on the way: no codebook to learn.

    Source: Mentzer et al. 2023 (arXiv:2309.15505), section 3.

    Attributes: those of Autoencoder, and
      levels: of each of the latent_channels; prod levels codes.
    """

    levels: Sequence[int] = (8, 5, 5, 5)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @nn.nowrap
    def _check(self) -> None:
        if len(self.levels) != self.latent_channels or min(self.levels) < 2:
            raise ValueError(
                f"levels must be {self.latent_channels} numbers from 2 on, one for each of the latent_channels, "
                f"got {tuple(self.levels)}"
            )

    def encode(self, x: jax.Array) -> jax.Array:
        self._check()
        return super().encode(x)

    def quantize(self, z: jax.Array) -> Quantized:
        """As `levels_quantized`."""
        return levels_quantized(z, self.levels)

    def entries(self, indices: jax.Array) -> jax.Array:
        """The values [..., D] of codes [...]."""
        return level_entries(indices, self.levels)
