"""Perpendicular negative prompts (Perp-Neg)."""

import jax

from ddpm_jax.guidance.geometry import along
from ddpm_jax.guidance.method import Method, Numbers


def _combine(answers: tuple[jax.Array, ...], numbers: Numbers) -> jax.Array:
    c, u, negative = answers
    towards, away = c - u, negative - u
    away = away - along(away, towards)
    scale, weight = (numbers[name].astype(c.dtype) for name in ("scale", "negative"))
    return u + scale * (towards - weight * away)


PERPENDICULAR = Method(_combine, {"negative": 1.0}, given_at=None)
"""u + scale (d - negative * n'), n' = n - <n, d> / <d, d> d, of d = c - u and n = what the negative prompt says - u.

For asked(network, given, nothing, negative), in this order: only what is perpendicular to the prompt is taken away, and
a negative prompt that is like the prompt takes nothing of it. `negative` is minus the paper's w.

A negative prompt without this takes the place of nothing: asked(network, given, negative) with CLASSIFIER_FREE.

Source: Armandpour et al. 2023 (arXiv:2304.04968), eq. 7 and 8.
"""
