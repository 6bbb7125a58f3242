"""Autoguidance: away from a worse network."""

from ddpm_jax.guidance.classifier_free import combine
from ddpm_jax.guidance.method import Method

AUTOGUIDANCE = Method(combine)
"""bad + scale (good - bad), of answers.of_each(good, bad): a network, and one that was trained less or is smaller.

Both are told the same condition; a network without conditions is guided as well. Scale 1 asks the good one alone.

Source: Karras et al. 2024 (arXiv:2406.02507), eq. 3 and section 4.
"""
