"""Guidance that keeps the size of what the network says."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.method import Method, Numbers


def rescaled(method: Method) -> Method:
    """rescale * g std(c) / std(g) + (1 - rescale) * g, of the guided output g of another method; std of each image.

    Its number `rescale`, 0 by default, is the paper's phi and diffusers' guidance_rescale; 0.7 is the paper's.

    Source: Lin et al. 2023 (arXiv:2305.08891), eq. 14 to 16.

    An answer that is the same everywhere has no size, and stays as it is: such as that of CFG-Zero*'s zero rows.

    Raises:
      ValueError: a method that has a number of that name.
    """
    if "rescale" in method.defaults:
        raise ValueError("rescaled takes a method once")

    def combine(answers: tuple[jax.Array, ...], numbers: Numbers, *memory: Any) -> Any:
        others = {name: value for name, value in numbers.items() if name != "rescale"}
        found = method.combine(answers, others, *memory)
        if method.memory is None:
            return _rescaled(found, answers[0], numbers["rescale"])
        return _rescaled(found[0], answers[0], numbers["rescale"]), found[1]

    # At scale 0 it is the answer to nothing no more, but of the other's size.
    return replace(method, combine=combine, defaults={**method.defaults, "rescale": 0.0}, nothing_at=None)


def _rescaled(found: jax.Array, c: jax.Array, rescale: jax.Array) -> jax.Array:
    axes = tuple(range(1, found.ndim))
    # ddof: as torch.std, with which it was published.
    std = lambda images: jnp.std(images, axes, ddof=1, keepdims=True)
    size, rescale = std(found), rescale.astype(found.dtype)
    ratio = jnp.where(size > 0, std(c) / jnp.where(size > 0, size, 1), 1)
    return found * (rescale * ratio + (1 - rescale))
