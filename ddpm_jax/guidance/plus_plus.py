"""CFG++."""

from ddpm_jax.guidance.classifier_free import combine
from ddpm_jax.guidance.method import Method

CFG_PLUS_PLUS = Method(combine, limits={"scale": (0.0, 1.0)}, given_at=None, renoise=1)
"""x_0 of u + scale (c - u), and the eps of u: what the sampler adds again is the noise of the network told nothing.

The scale is the paper's lambda in [0, 1], and no scale of classifier-free guidance. At 0 it is the sampler of u; at 1
it has c's x_0 and u's eps, which is not the sampler of c, so both are asked.

Source: Chung et al. 2024 (arXiv:2406.08070), algorithm 2.
"""
