"""Mean and covariance of features in batches: NumPy's, and the same bits for any batches."""

import numpy as np
import pytest

from ddpm_jax.evaluate.samples import moments

FEATURES = (np.random.default_rng(0).standard_normal((3 * moments.ROWS + 77, 5)) * [1, 2, 3, 4, 5] + 7).astype(
    np.float32
)


def streamed(sizes):
    stream = moments.Stream(5)
    first = 0
    while first < len(FEATURES):
        size = next(sizes)
        stream.add(FEATURES[first : first + size])
        first += size
    return stream.moments


def test_mean_and_covariance_are_numpys():
    found = moments.of(FEATURES).gaussian
    assert found.count == len(FEATURES)
    np.testing.assert_allclose(found.mean, FEATURES.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(
        found.covariance, np.cov(FEATURES.astype(np.float64), rowvar=False), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("size", [1, 7, 64, moments.ROWS, moments.ROWS + 1, 10_000])
def test_the_batches_do_not_change_a_bit(size):
    whole, parts = moments.of(FEATURES), streamed(iter(lambda: size, None))
    assert whole.count == parts.count
    np.testing.assert_array_equal(whole.mean, parts.mean)
    np.testing.assert_array_equal(whole.comoment, parts.comoment)


def test_batches_of_changing_sizes_neither():
    sizes = np.random.default_rng(1).integers(1, 200, 10_000)
    np.testing.assert_array_equal(moments.of(FEATURES).comoment, streamed(iter(sizes)).comoment)


def test_looking_at_the_moments_on_the_way_changes_nothing():
    stream = moments.Stream(5)
    for row in range(0, len(FEATURES), 100):
        stream.add(FEATURES[row : row + 100])
        assert stream.moments.count == min(row + 100, len(FEATURES))
    np.testing.assert_array_equal(stream.moments.comoment, moments.of(FEATURES).comoment)


def test_merged_sets_have_the_moments_of_their_union():
    a, b = moments.of(FEATURES[:300]), moments.of(FEATURES[300:])
    merged, whole = moments.merge(a, b), moments.of(FEATURES)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.comoment, whole.comoment, rtol=1e-11, atol=1e-9)
    empty = moments.of(FEATURES[:0])
    assert moments.merge(empty, a) is a
    assert moments.merge(a, empty) is a


def test_a_large_mean_costs_no_digits():
    x = np.random.default_rng(2).standard_normal((2000, 3))
    near = moments.of(x + 1e6).gaussian.covariance
    np.testing.assert_allclose(near, np.cov(x, rowvar=False), rtol=0, atol=1e-9)


def test_bad_input_in_one_line():
    with pytest.raises(ValueError, match=r"^features must be \[N, 5\], got \[2, 4\]$"):
        moments.Stream(5).add(FEATURES[:2, :4])
    with pytest.raises(ValueError, match=r"^a covariance needs at least 2 images, got 1$"):
        _ = moments.of(FEATURES[:1]).gaussian
    bad = FEATURES.copy()
    bad[1003, 2] = np.nan
    stream = moments.Stream(5)
    stream.add(bad[:1000])
    with pytest.raises(ValueError, match=r"^the features of image 1003 are not finite$"):
        stream.add(bad[1000:])
