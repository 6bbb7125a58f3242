"""Texts, as tokens: the encoder belongs to the network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.conditions.condition import Conditioning, Record


class Text(NamedTuple):
    """Token ids [L], and which of them belong to the text; nothing is padding alone.

    Source: Nichol et al. 2021 (arXiv:2112.10741), section 2.3: the empty caption is tokens of padding.

    Attributes:
      padding: the id of what fills up a text.
    """

    padding: int
    reads: tuple[str, ...] = ("tokens", "token_mask")

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        """The tokens, int32 [L], and mask, bool [L]."""
        return {"tokens": record["tokens"], "mask": record["token_mask"]}

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        """Padding, of which nothing is a text."""
        tokens, mask = conditioning["tokens"], conditioning["mask"]
        return {**conditioning, "tokens": jnp.full_like(tokens, self.padding), "mask": jnp.zeros_like(mask)}
