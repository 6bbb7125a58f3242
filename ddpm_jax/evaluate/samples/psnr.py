"""Peak signal-to-noise ratio of images and what they should be, in dB: 10 log10(peak^2 / mean squared difference)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.evaluate.samples.points import Estimate, Float
from ddpm_jax.names import unknown

Over = Literal["image", "set"]


def of(images: NDArray[np.uint8], targets: NDArray[np.uint8], *, over: Over = "image") -> Estimate:
    """The mean over images of their ratios, infinite where one is equal to its target; or the ratio of all pixels.

    Args:
      images: uint8 [N, H, W, C].
      targets: uint8 [N, H, W, C].
      over: "image" (the mean of skimage's) or "set" (torchmetrics: one mean of the squared differences, always lower).

    Raises:
      ValueError: not uint8 [N, H, W, C] of one shape, or fewer than 2 images; no such `over`.
    """
    check_images(images, targets)
    squares = np.array([np.square(x.astype(np.float64) - y).mean() for x, y in zip(images, targets, strict=True)])
    if over == "image":
        ratios = _decibels(squares)
        return Estimate(float(ratios.mean()), standard_error(ratios))
    if over == "set":
        mean = squares.mean()
        # d(10 log10 m) = 10 / ln 10 dm / m
        error = 10 / np.log(10) * standard_error(squares) / mean if mean else 0.0
        return Estimate(float(_decibels(squares.mean(keepdims=True))[0]), float(error))
    raise unknown("over", over, ("image", "set"))


def check_images(images: NDArray[np.uint8], targets: NDArray[np.uint8]) -> None:
    """Whether these are pictures and what they should be.

    Raises:
      ValueError: they are not, or fewer than 2.
    """
    for x, what in ((images, "images"), (targets, "targets")):
        if x.dtype != np.uint8 or x.ndim != 4:
            raise ValueError(f"{what} must be uint8 [N, H, W, C], got {x.dtype} {list(x.shape)}")
    if images.shape != targets.shape:
        raise ValueError(f"each image has one target of its size: got {list(images.shape)} and {list(targets.shape)}")
    if len(images) < 2:
        raise ValueError(f"images: at least 2 are needed, got {len(images)}")


def standard_error(values: Float) -> float:
    """Of the mean of [N] values; NaN where one is infinite."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if np.isfinite(values).all() else float("nan")


def _decibels(squares: Float) -> Float:
    with np.errstate(divide="ignore"):  # equal images: infinite
        return 10 * np.log10(255.0**2 / squares)
