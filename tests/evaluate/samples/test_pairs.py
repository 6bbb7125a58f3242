"""PSNR and SSIM of images and their targets."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from ddpm_jax.evaluate.samples import psnr, ssim

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 24, 20, 3), dtype=np.uint8)


def shifted(by):
    """Each image of 100s and what is `by` greys brighter, other in each image."""
    flat = np.full((len(by), 16, 16, 1), 100, np.uint8)
    return flat, (flat + np.array(by).reshape(-1, 1, 1, 1)).astype(np.uint8)


def test_psnr_of_shifts():
    """20 log10(255 / shift); of the set, of the mean squared shift."""
    x, y = shifted([1, 20])
    found = psnr.of(x, y)
    each = 20 * np.log10(255 / np.array([1, 20]))
    assert found.value == pytest.approx(each.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(np.std(each, ddof=1) / np.sqrt(2))
    assert psnr.of(x, y, over="set").value == pytest.approx(10 * np.log10(255**2 / 200.5), rel=1e-12)
    assert psnr.of(y, x) == found  # no wrap of 8 bits
    assert psnr.of(IMAGES, IMAGES).value == psnr.of(IMAGES, IMAGES, over="set").value == np.inf


def test_the_standard_error_of_one_mean_is_the_spread_of_repetitions():
    values, errors, rng = [], [], np.random.default_rng(1)
    for _ in range(300):
        found = psnr.of(*shifted(rng.integers(5, 15, 50)), over="set")
        values.append(found.value)
        errors.append(found.standard_error)
    assert 0.85 < np.mean(errors) / np.std(values) < 1.15


def test_ssim_of_flat_images_is_that_of_their_means():
    x, y = shifted([0, 50])
    expected = (2 * 100 * 150 + ssim.C_1) / (100**2 + 150**2 + ssim.C_1)
    assert ssim.of(x, y).value == pytest.approx((1 + expected) / 2, rel=1e-9)
    assert ssim.of(IMAGES, IMAGES) == (1, 0)


def test_ssim_by_scipys_filters():
    """The formula with scipy's correlations; the window lies in the image."""
    other = np.clip(IMAGES + RNG.normal(0, 40, IMAGES.shape), 0, 255).astype(np.uint8)
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()
    mean = lambda x: correlate1d(correlate1d(x, weights, 1), weights, 2)[:, 5:-5, 5:-5]
    x, y = IMAGES.astype(np.float64), other.astype(np.float64)
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    top = (2 * mean(x) * mean(y) + 6.5025) * (2 * covariance + 58.5225)
    values = (top / ((mean(x) ** 2 + mean(y) ** 2 + 6.5025) * (variances + 58.5225))).mean((1, 2, 3))
    found = ssim.of(IMAGES, other)
    assert found.value == pytest.approx(values.mean(), rel=1e-10)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 2, rel=1e-9)


def test_bad_input_in_one_line():
    with pytest.raises(ValueError, match=r"^images must be uint8 \[N, H, W, C\], got float64 \[4, 24, 20, 3\]$"):
        psnr.of(IMAGES / 255, IMAGES)
    with pytest.raises(
        ValueError, match=r"^each image has one target of its size: got \[4, .*\] and \[3, 24, 20, 3\]$"
    ):
        ssim.of(IMAGES, IMAGES[:3])
    with pytest.raises(ValueError, match=r"^images: at least 2 are needed, got 1$"):
        psnr.of(IMAGES[:1], IMAGES[:1])
    with pytest.raises(ValueError, match=r"^SSIM's window is 11 x 11: images of 10 x 20 have none$"):
        ssim.of(IMAGES[:, :10], IMAGES[:, :10])
    with pytest.raises(ValueError, match=r"^unknown over 'batch' \(known: image, set\)$"):
        psnr.of(IMAGES, IMAGES, over="batch")
