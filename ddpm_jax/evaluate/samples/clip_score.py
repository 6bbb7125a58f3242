"""CLIP score: how well images fit their texts, 100 times the mean cosine of their embeddings.

Source: Hessel et al. 2021 (arXiv:2104.08718), eq. 1, whose score is 2.5 max(cosine, 0) of each pair; the programs'
is 100 max(mean cosine, 0).
"""

from typing import Literal

import numpy as np

from ddpm_jax.evaluate.samples.points import Estimate, Float, Points, blocks, check
from ddpm_jax.names import unknown

Convention = Literal["torchmetrics", "paper"]


def of(images: Points, texts: Points, *, convention: Convention = "torchmetrics") -> Estimate:
    """100 max(mean_i cos(image_i, text_i), 0), or 2.5 mean_i max(cos(image_i, text_i), 0), and the mean's error.

    Args:
      images: embeddings [N, D], of any length but 0.
      texts: embeddings [N, D], of the text of each image.
      convention: "torchmetrics" (0 to 100) or "paper" (0 to 2.5).

    Raises:
      ValueError: different shapes, fewer than 2 pairs, embeddings that are 0 or not finite, no such convention.
    """
    check(images, "images")
    check(texts, "texts")
    if images.shape != texts.shape:
        raise ValueError(f"each image has one text: got {list(images.shape)} and {list(texts.shape)} numbers")
    cosines = _cosines(images, texts)
    if convention == "paper":
        cosines = 2.5 * np.maximum(cosines, 0)
        value = float(cosines.mean())
    elif convention == "torchmetrics":
        cosines = 100 * cosines
        value = max(float(cosines.mean()), 0.0)
    else:
        raise unknown("convention", convention, ("torchmetrics", "paper"))
    return Estimate(value, float(cosines.std(ddof=1) / np.sqrt(len(cosines))))


def _cosines(images: Points, texts: Points) -> Float:
    found = np.empty(len(images))
    for first, rows in blocks(images):
        others = np.asarray(texts[first : first + len(rows)], np.float64)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
        if not lengths.all():
            raise ValueError(f"the embedding of pair {first + int(np.argmin(lengths))} is 0: it has no direction")
        found[first : first + len(rows)] = np.einsum("nd,nd->n", rows, others) / lengths
    return found
