"""Guidance: towards a condition, by a second answer of a network or by a classifier; one file a method.

A method combines what a network says when it is told the condition with what it says when it is told nothing, or
something else, or what another network says:

    table = guidance.on(table, guidance.CLASSIFIER_FREE, scale=2.0)          the numbers, a column of the table
    denoise = guidance.guided(guidance.asked(network, given, nothing), make_denoise, guidance.CLASSIFIER_FREE)
    samplers.sample(denoise, table, key, shape)

The numbers of a method are data, for every row and, where they should be, for every example: a scale that changes with
t, an interval outside of which there is no guidance, are other numbers in the same compiled program. A row whose scale
is 1 asks only what the condition says, in one call of the batch; other rows ask for all in one call of twice the batch.

Classifiers move what a denoiser says, whatever method made it: `mean_shifted`, `score_shifted`, with a scale of their
own in the table (`on_classifier`).

Left out are guiders that change layers inside of a network: skip-layer, perturbed-attention and smoothed-energy
guidance. docs/guidance.md has a table of all methods with their sources.
"""

from ddpm_jax.guidance import schedules
from ddpm_jax.guidance.answers import Answers, asked, of_each
from ddpm_jax.guidance.auto import AUTOGUIDANCE
from ddpm_jax.guidance.channels import of_channels
from ddpm_jax.guidance.classifier import mean_shifted, score_shifted
from ddpm_jax.guidance.classifier_free import CLASSIFIER_FREE, classifier_free
from ddpm_jax.guidance.frequencies import FREQUENCY_DECOUPLED
from ddpm_jax.guidance.guiders import from_diffusers_guider
from ddpm_jax.guidance.magnitude import MAGNITUDE_AWARE
from ddpm_jax.guidance.method import Method, guided
from ddpm_jax.guidance.numbers import on, on_classifier, within
from ddpm_jax.guidance.on_x_0 import guided_on_x_0
from ddpm_jax.guidance.perpendicular import PERPENDICULAR
from ddpm_jax.guidance.plus_plus import CFG_PLUS_PLUS
from ddpm_jax.guidance.projected import ADAPTIVE_PROJECTED, adaptive_projected
from ddpm_jax.guidance.rescale import rescaled
from ddpm_jax.guidance.tangential import TANGENTIAL
from ddpm_jax.guidance.zero_star import CFG_ZERO_STAR

__all__ = [
    "ADAPTIVE_PROJECTED",
    "AUTOGUIDANCE",
    "CFG_PLUS_PLUS",
    "CFG_ZERO_STAR",
    "CLASSIFIER_FREE",
    "FREQUENCY_DECOUPLED",
    "MAGNITUDE_AWARE",
    "PERPENDICULAR",
    "TANGENTIAL",
    "Answers",
    "Method",
    "adaptive_projected",
    "asked",
    "classifier_free",
    "from_diffusers_guider",
    "guided",
    "guided_on_x_0",
    "mean_shifted",
    "of_channels",
    "of_each",
    "on",
    "on_classifier",
    "rescaled",
    "schedules",
    "score_shifted",
    "within",
]
