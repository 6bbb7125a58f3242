"""Conditions: what a network is told beside x_t and t, one file each.

A condition is two pure functions of one example:

    given(record, key) -> conditioning     what is told, a mapping of arrays that the network takes by name
    nothing(conditioning) -> conditioning  what is told when nothing is said, a mapping of the same names and shapes

In training each example drops its condition with probability p; guidance asks the network with both. Neither the loss
nor a sampler nor the loop knows which conditions there are.
"""

from ddpm_jax.conditions.classes import ClassLabel
from ddpm_jax.conditions.condition import Both, Condition, Conditioning, Record, conditioning, parts
from ddpm_jax.conditions.embedding import Embedding
from ddpm_jax.conditions.low_res import LowRes
from ddpm_jax.conditions.mask import Mask, known
from ddpm_jax.conditions.text import Text

__all__ = [
    "Both",
    "ClassLabel",
    "Condition",
    "Conditioning",
    "Embedding",
    "LowRes",
    "Mask",
    "Record",
    "Text",
    "conditioning",
    "known",
    "parts",
]
