"""RePaint: in-painting with any unconditional network, going back and forth in time."""

from collections.abc import Iterator
from math import sqrt

import jax
import jax.numpy as jnp

from ddpm_jax.samplers.denoise import Denoise, Denoised
from ddpm_jax.samplers.families.ancestral import posterior_variance
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.table import EPS, X0, Row, Z, row, sampler


@sampler
def repaint(grid: Grid, *, jump_length: int = 10, num_visits: int = 10, eta: float = 1.0) -> Iterator[Row]:
    """A step of `ddim` with this eta; at every jump_length-th level, noise again and repeat, num_visits times in all.

    Use it with a denoiser under `known`, which fixes the known pixels. eta = 1 is the paper's; jump_length larger
    than the number of steps, or num_visits = 1, is in-painting without resampling (Song et al.; LDM, with any eta).

    Source: Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1 and appendix B ("jump length").

    Args:
      grid: levels of a variance-preserving process.
      jump_length: how many levels a jump goes back; at least 1.
      num_visits: how often each stretch is sampled; at least 1.
      eta: in [0, 1].

    Raises:
      ValueError: an argument outside its range.
    """
    clean = list(reversed(grid.levels))  # clean[i + 1] is where the call of visit i is made
    for i, climb in visits(grid.num_steps, jump_length, num_visits):
        s, t, back = clean[i + 1], clean[i], clean[i + climb]
        yield resampled(s, t, back.alpha / t.alpha, eta)


def visits(num_steps: int, jump_length: int, num_visits: int) -> list[tuple[int, int]]:
    """(step, how many levels to climb after it), step N-1 being the first and 0 the last of a run without jumps."""
    if jump_length < 1 or num_visits < 1:
        raise ValueError(f"jump_length and num_visits must be at least 1, got {jump_length} and {num_visits}")
    left = dict.fromkeys(range(0, num_steps - jump_length, jump_length), num_visits - 1)
    path, i = [], num_steps
    while i > 0:
        i -= 1
        climb = jump_length if left.get(i, 0) > 0 else 0
        path.append((i, climb))
        if climb:
            left[i] -= 1
            i += climb
    return path


def resampled(s: Level, t: Level, keep: float, eta: float) -> Row:
    """The row of one visit: from s to t, then noised until a factor `keep` of x_t is left.

    Z has the weight it needs where the pixels are known; `variance` says what it is elsewhere.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    small = eta**2 * posterior_variance(s, t)
    known, unknown = (keep**2 * v + 1 - keep**2 for v in (t.sigma**2, small))
    x = keep * (t.alpha * X0 + sqrt(max(t.sigma**2 - small, 0)) * EPS) + sqrt(known) * Z
    return row(s, variance=unknown, X=x)


def known(denoise: Denoise, original: jax.Array, mask: jax.Array) -> Denoise:
    """Where mask is 1, x_0 is `original` and x_t a sample of q(x_t | original); elsewhere what `denoise` says.

    For tables of `repaint`. In every other table the noise of the known pixels would be too small.

    Source: Lugmayr et al. 2022 (arXiv:2201.09865), eq. 8.

    Args:
      denoise: what to wrap.
      original: like x.
      mask: like x, 1 where `original` is known and 0 elsewhere.
    """

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found = denoise(x, row)
        # Both are 0 at the clean level, where no noise is left.
        weight = row.update[0, -1]
        scale = jnp.where(weight == 0, 0, jnp.sqrt(row.variance) / jnp.where(weight == 0, 1, weight))
        return Denoised(
            x_0=mask * original + (1 - mask) * found.x_0,
            eps=(1 - mask) * found.eps,
            noise_scale=mask + (1 - mask) * scale,
        )

    return wrapped
