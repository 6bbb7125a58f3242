"""FID at infinitely many samples: a line, and a law whose distance is known."""

import numpy as np
import pytest

from ddpm_jax.evaluate.samples import frechet, infinity, moments
from ddpm_jax.evaluate.samples.moments import Gaussian


def test_a_line_in_1_over_n_is_found():
    sizes = np.array([10, 20, 50, 100])
    found = infinity.extrapolate(sizes, 3 + 70 / sizes)
    assert found == pytest.approx((3, 0), abs=1e-12)


def test_its_error_is_the_spread_of_repetitions():
    rng, sizes = np.random.default_rng(0), np.linspace(100, 500, 8)
    found = np.array([infinity.extrapolate(sizes, 3 + 70 / sizes + rng.normal(0, 0.1, 8)) for _ in range(400)])
    assert 0.9 < found[:, 1].mean() / found[:, 0].std() < 1.1
    assert abs(found[:, 0].mean() - 3) < 5 * found[:, 0].std() / 20


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_bias_of_few_samples_is_taken_away(shift):
    """Of N(shift, I) against N(0, I) the distance is D shift^2; of 400 samples in 20 dimensions it is 0.5 too large."""
    rng, truth, plain, values = np.random.default_rng(1), 20 * shift**2, [], []
    reference = Gaussian(np.zeros(20), np.eye(20))
    for seed in range(20):
        x = rng.standard_normal((400, 20)) + shift
        plain.append(frechet.distance(moments.of(x).gaussian, reference))
        values.append(infinity.frechet_distance(x, reference, smallest=100, points=8, seed=seed).value)
    assert np.mean(plain) - truth > 0.25
    assert abs(np.mean(values) - truth) < 0.15 * (np.mean(plain) - truth) + 3 * np.std(values) / np.sqrt(20)


def test_bad_input_in_one_line():
    x, reference = np.random.default_rng(0).standard_normal((50, 20)), Gaussian(np.zeros(20), np.eye(20))
    for smallest in (20, 50):
        with pytest.raises(ValueError, match=rf"^smallest must be above 20 .* below 50 images, got {smallest}$"):
            infinity.frechet_distance(x, reference, smallest=smallest)
    with pytest.raises(
        ValueError, match=r"^a line and its error need at least 3 points of 2 sizes, got sizes \[5, 5\]$"
    ):
        infinity.extrapolate(np.array([5, 5]), np.ones(2))
