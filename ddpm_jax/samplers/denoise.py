"""What a network says about x_0 and eps, as functions around functions: `denoise(x, row) -> Prediction(x_0, eps)`.

Prediction type and clipping are wrappers here, so that neither samplers nor the loop have options for them.
`row` gives the noise level of the call: x = row.alpha x_0 + row.sigma eps, and row.time, which the network is told.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ddpm_jax.names import unknown
from ddpm_jax.process import ModelFn, Prediction
from ddpm_jax.samplers.table import Row

Denoise = Callable[[jax.Array, Row], Prediction]
EpsAfterClip = Literal["rederived", "raw"]


def denoiser(
    model_fn: ModelFn,
    prediction: Literal["eps", "x_0", "v"] = "eps",
    clip: float | None = None,
    eps_after_clip: EpsAfterClip = "rederived",
) -> Denoise:
    """denoise(x, row) -> (x_0, eps) with x = alpha x_0 + sigma eps, from what the network predicts.

    Args:
      model_fn: model_fn(x [B, ...], t [B] float32) -> like x.
      prediction: what that is.
      clip: x_0 is clipped to [-clip, clip]; None leaves it.
      eps_after_clip: as in `clipped`.

    Raises:
      ValueError: unknown prediction; clip not positive.
    """
    if prediction not in FROM_OUTPUT:
        raise unknown("prediction", prediction, FROM_OUTPUT)
    from_output = FROM_OUTPUT[prediction]

    def denoise(x: jax.Array, row: Row) -> Prediction:
        # The network's time is float32 whatever the images are: its embedding is.
        return from_output(x, model_fn(x, jnp.full(x.shape[:1], row.time, jnp.float32)), row)

    return denoise if clip is None else clipped(denoise, clip, eps_after_clip)


def _from_eps(x: jax.Array, eps: jax.Array, row: Row) -> Prediction:
    return Prediction((x - row.sigma * eps) / row.alpha, eps)


def _from_x_0(x: jax.Array, x_0: jax.Array, row: Row) -> Prediction:
    return Prediction(x_0, (x - row.alpha * x_0) / row.sigma)


def _from_v(x: jax.Array, v: jax.Array, row: Row) -> Prediction:
    return Prediction(row.alpha * x - row.sigma * v, row.sigma * x + row.alpha * v)


FROM_OUTPUT = {"eps": _from_eps, "x_0": _from_x_0, "v": _from_v}


def clipped(denoise: Denoise, clip: float, eps_after_clip: EpsAfterClip = "rederived") -> Denoise:
    """x_0 clipped to [-clip, clip].

    Args:
      denoise: what to wrap.
      clip: positive.
      eps_after_clip: "rederived" solves x = alpha x_0 + sigma eps again with the clipped x_0 (OpenAI, lucidrains;
        diffusers' use_clipped_model_output=True); "raw" keeps the network's eps (diffusers' default in DDIM).

    Raises:
      ValueError: clip not positive; unknown eps_after_clip.
    """
    if not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if eps_after_clip not in get_args(EpsAfterClip):
        raise unknown("eps_after_clip", eps_after_clip, get_args(EpsAfterClip))

    def wrapped(x: jax.Array, row: Row) -> Prediction:
        x_0, eps = denoise(x, row)
        x_0 = jnp.clip(x_0, -clip, clip)
        return Prediction(x_0, eps) if eps_after_clip == "raw" else _from_x_0(x, x_0, row)

    return wrapped
