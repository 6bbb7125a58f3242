"""Class labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.conditions.condition import Conditioning, Record


class ClassLabel(NamedTuple):
    """y in 0 .. num_classes - 1; nothing is y = num_classes, one more row of the network's table of embeddings.

    Source: Peebles & Xie 2022 (arXiv:2212.09748), section 4; the null label of Ho & Salimans 2022 (arXiv:2207.12598).

    Attributes:
      num_classes: how many there are.
      null_label: whether the network has a label for nothing, as one that was trained with dropout.
    """

    num_classes: int
    null_label: bool = True
    reads: tuple[str, ...] = ("label",)

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        """The label."""
        return {"y": record["label"]}

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        """The null label.

        Raises:
          ValueError: the network has none.
        """
        if not self.null_label:
            raise ValueError("the network has no label that stands for no class: it was trained with condition.drop 0")
        return {**conditioning, "y": jnp.full_like(conditioning["y"], self.num_classes)}
