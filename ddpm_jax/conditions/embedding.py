"""Embeddings, such as CLIP's of an image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.conditions.condition import Conditioning, Record


class Embedding(NamedTuple):
    """A vector of the record; nothing is zeros.

    Source: Ramesh et al. 2022 (arXiv:2204.06125), section 2.1: the embedding set to zero.

    Attributes:
      feature: of the record.
      told_as: the network's argument.
    """

    feature: str = "embedding"
    told_as: str = "y"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.feature,)

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        """The vector."""
        return {self.told_as: record[self.feature]}

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        """Zeros."""
        return {**conditioning, self.told_as: jnp.zeros_like(conditioning[self.told_as])}
