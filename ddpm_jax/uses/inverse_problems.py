"""p(x_0 | y) for y = A x_0 + noise, by a network of p(x_0): its score, and an estimate of grad log p(y | x_t).

Each is a function from a denoiser to a denoiser, for any sampler but where it says otherwise. A is a linear function of
one image [...] -> [...], such as lambda x: x[::2, ::2]; y is [B, ...] of its values; x_0(x_t) is what the network
predicts.

  posterior_score    p(y | x_t) = N(y; A x_0(x_t), variance): Chung et al.'s approximation, as a score
  posterior_step     the same as their algorithm steps: X' - step grad |y - A x_0(x_t)|
  pseudoinverse      p(y | x_t) = N(y; A x_0(x_t), r^2 A A^T + variance), r^2 the variance of x_0 given x_t: exact where
                     the data are normal with independent pixels of one variance

Sources: Chung et al. 2023 (arXiv:2209.14687), "DPS"; Song et al. 2023 (ICLR, openreview 9_gsMA8MRKQ), "PiGDM".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.samplers import Denoise, Denoised, Row

Operator = Callable[[jax.Array], jax.Array]


def posterior_score(denoise: Denoise, operator: Operator, y: jax.Array, *, variance: float) -> Denoise:
    """score + grad log N(y; A x_0(x), variance) with respect to x.

    Source: Chung et al. 2023 (arXiv:2209.14687), theorem 1 and eq. 14.

    Args:
      denoise: what to wrap.
      operator: A, of one image; may be nonlinear.
      y: [B, ...].
      variance: of the noise of y; positive.

    Raises:
      ValueError: variance not positive.
    """
    if not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}")

    def log_likelihood(x_0: jax.Array) -> jax.Array:
        return -((y - jax.vmap(operator)(x_0)) ** 2).sum() / (2 * variance)

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found, pull = _with_pull(denoise, x, row)
        return _moved(x, row, found, pull(jax.grad(log_likelihood)(found.x_0)))

    return wrapped


def posterior_step(denoise: Denoise, operator: Operator, y: jax.Array, *, step: float) -> Denoise:
    """X' - step grad |y - A x_0(x)|, X' what the sampler makes of x, the gradient with respect to x.

    For samplers that remember nothing, such as ddpm and ddim.

    Source: Chung et al. 2023 (arXiv:2209.14687), algorithm 1, with the step of section 4 as their code has it: half of
    zeta' / |y - A x_0| grad |y - A x_0|^2.

    Args:
      denoise: what to wrap.
      operator: A, of one image; may be nonlinear.
      y: [B, ...].
      step: zeta'; positive.

    Raises:
      ValueError: step not positive; while tracing, a sampler that remembers more than X.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")

    def distance(x_0: jax.Array) -> jax.Array:
        squares = ((y - jax.vmap(operator)(x_0)) ** 2).reshape(len(x_0), -1).sum(axis=1)
        return jnp.sqrt(jnp.where(squares > 0, squares, 1)).sum(where=squares > 0)  # has no gradient at 0

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        if row.update.shape[0] > 1:
            raise ValueError("posterior_step is for samplers that remember nothing: take ddpm or ddim")
        found, pull = _with_pull(denoise, x, row)
        move = -step * pull(jax.grad(distance)(found.x_0)) / row.update[0, -3]
        return found._replace(x_0=found.x_0 + move)

    return wrapped


def pseudoinverse(
    denoise: Denoise, operator: Operator, y: jax.Array, *, variance: float, data_variance: float = 1.0, most: int = 200
) -> Denoise:
    """score + (d x_0 / d x)^T A^T (r^2 A A^T + variance)^-1 (y - A x_0(x)).

    r^2 = s^2 data_variance / (s^2 + data_variance) with s = sigma / alpha: the variance of x_0 given x_t where that of
    x_0 is data_variance.

    Source: Song et al. 2023 (openreview 9_gsMA8MRKQ), eq. 7 and 8; r^2 as in section 3.2, whose data_variance is 1.

    Args:
      denoise: what to wrap.
      operator: A, of one image; linear.
      y: [B, ...].
      variance: of the noise of y; 0 only where A A^T can be inverted.
      data_variance: positive.
      most: iterations of conjugate gradients.

    Raises:
      ValueError: variance negative, data_variance not positive.
    """
    if not variance >= 0:
        raise ValueError(f"variance must not be negative, got {variance}")
    if not data_variance > 0:
        raise ValueError(f"data_variance must be positive, got {data_variance}")

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found, pull = _with_pull(denoise, x, row)
        transposed = jax.linear_transpose(operator, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        s_2 = (row.sigma / row.alpha) ** 2
        r_2 = s_2 * data_variance / (s_2 + data_variance)

        def towards(x_0: jax.Array, y: jax.Array) -> jax.Array:
            """A^T (r^2 A A^T + variance)^-1 (y - A x_0) of one image."""
            covariance = lambda u: r_2 * operator(transposed(u)[0]) + variance * u
            solved, _ = jax.scipy.sparse.linalg.cg(covariance, y - operator(x_0), tol=1e-6, maxiter=most)
            return transposed(solved)[0]

        return _moved(x, row, found, pull(jax.vmap(towards)(found.x_0, y)))

    return wrapped


def _with_pull(denoise: Denoise, x: jax.Array, row: Row) -> tuple[Denoised, Callable[[jax.Array], jax.Array]]:
    """What the network says at x, and v -> (d x_0 / d x)^T v."""

    def predicted(x: jax.Array) -> tuple[jax.Array, Denoised]:
        found = denoise(x, row)
        return found.x_0, found

    _, pull, found = jax.vjp(predicted, x, has_aux=True)
    return found, lambda v: pull(v)[0]


def _moved(x: jax.Array, row: Row, found: Denoised, gradient: jax.Array) -> Denoised:
    """eps - sigma gradient, and the x_0 that goes with it."""
    eps = found.eps - row.sigma * gradient
    return Denoised((x - row.sigma * eps) / row.alpha, eps, found.noise_scale)
