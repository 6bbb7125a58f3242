"""Guidance of some channels."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.method import Method, Numbers


def of_channels(method: Method, count: int) -> Method:
    """[method of the first `count` channels, c of the others].

    The code of Peebles & Xie 2022 (arXiv:2212.09748), DiT, guides 3 of the 4 channels of its latents.

    Args:
      method: of which the answers have the first channels only.
      count: at least 1.

    Raises:
      ValueError: count not positive; while tracing, an image with fewer channels.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")

    def first(images: jax.Array) -> jax.Array:
        if count > images.shape[-1]:
            raise ValueError(f"the first {count} channels are guided, got images of {images.shape[-1]}")
        return images[..., :count]

    def combine(answers: tuple[jax.Array, ...], numbers: Numbers, *memory: Any) -> Any:
        found = method.combine(tuple(first(answer) for answer in answers), numbers, *memory)
        whole = lambda images: jnp.concatenate([images, answers[0][..., count:]], axis=-1)
        return whole(found) if method.memory is None else (whole(found[0]), found[1])

    remembered = method.memory
    memory = None
    if remembered is not None:
        memory = lambda like: remembered(jax.ShapeDtypeStruct((*like.shape[:-1], count), like.dtype))
    # What is said of nothing stays in the channels that are not guided.
    return replace(method, combine=combine, nothing_at=None, memory=memory)
