"""The Fréchet distance: closed forms, then pytorch-fid, torch-fidelity, clean-fid, torchmetrics and ADM's evaluator."""

import numpy as np
import pytest
from scipy import linalg

from ddpm_jax.evaluate.samples import frechet, moments
from ddpm_jax.evaluate.samples.moments import Gaussian

RNG = np.random.default_rng(0)


def rotation(dimension):
    return linalg.qr(np.random.default_rng(dimension).standard_normal((dimension, dimension)))[0]


def test_of_gaussians_that_commute():
    """|m_a - m_b|^2 + sum (sqrt(a_i) - sqrt(b_i))^2."""
    q, a, b = rotation(6), np.array([1.0, 4, 9, 0, 0, 2]), np.array([4.0, 1, 0, 3, 0, 2])
    first = Gaussian(np.arange(6.0), q * a @ q.T)
    second = Gaussian(np.arange(6.0) + 2, q * b @ q.T)
    expected = 6 * 4 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet.distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_of_gaussians_that_do_not():
    """In two dimensions tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))."""
    a, b = np.array([[2.0, 1], [1, 3]]), np.array([[1.0, -0.5], [-0.5, 4]])
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    assert frechet.distance(Gaussian(np.zeros(2), a), Gaussian(np.zeros(2), b)) == pytest.approx(expected, rel=1e-13)


def test_of_singular_covariances_that_share_a_direction():
    """Rank one each, u u^T and v v^T: tr (u u^T v v^T)^(1/2) = |u^T v|."""
    u, v = RNG.standard_normal((2, 50))
    found = frechet.distance(Gaussian(np.zeros(50), np.outer(u, u)), Gaussian(np.zeros(50), np.outer(v, v)))
    assert found == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


def test_few_points_give_what_their_own_factors_give():
    """With centred rows A, B of n < D points: tr (S_a S_b)^(1/2) = the nuclear norm of A B^T / sqrt((n-1)(m-1))."""
    x, y = RNG.standard_normal((20, 64)), RNG.standard_normal((33, 64)) * 1.5
    a, b = moments.of(x).gaussian, moments.of(y).gaussian
    mixed = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(19 * 32), compute_uv=False).sum()
    d = a.mean - b.mean
    expected = d @ d + np.trace(a.covariance) + np.trace(b.covariance) - 2 * mixed
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet.note(a, b) is not None and "20 images for 64 features" in str(frechet.note(a, b))


def test_a_singular_covariance_that_has_a_cholesky_factor():
    """Its last pivots are rounding, here 1e-8 of the largest deviation: they are no directions."""
    small = 2e-16 * np.eye(40)
    small[:4, :4] += np.eye(4)
    a, b = Gaussian(np.zeros(40), small), Gaussian(np.zeros(40), np.eye(40) * 100)
    np.linalg.cholesky(small)
    assert frechet.factor(small).shape == (40, 4)
    assert frechet.distance(a, b) == pytest.approx(4 * 9**2 + 36 * 100, rel=1e-12)


@pytest.mark.parametrize("n", [10, 500])
def test_equal_sets_are_at_0_and_nearly_equal_ones_never_below(n):
    x = RNG.standard_normal((n, 32))
    a = moments.of(x).gaussian
    for scale in range(1, 6):
        x = RNG.standard_normal((n, 32)) * scale
        a = moments.of(x).gaussian
        assert frechet.distance(a, moments.of(x.copy()).gaussian) == 0
    for _ in range(5):  # the same rows in another order: other rounding
        again = moments.of(RNG.permutation(x)).gaussian
        assert 0 <= frechet.distance(a, again) < 1e-11
    assert frechet.note(a, Gaussian(a.mean, a.covariance)) == (None if n > 32 else frechet.note(a, a))


def test_the_distance_is_symmetric_and_turns_with_the_axes():
    x, y, q = RNG.standard_normal((300, 8)), RNG.standard_normal((200, 8)) * 2 + 1, rotation(8)
    a, b = moments.of(x).gaussian, moments.of(y).gaussian
    assert frechet.distance(a, b) == pytest.approx(frechet.distance(b, a), rel=1e-12)
    turned = frechet.distance(moments.of(x @ q).gaussian, moments.of(y @ q).gaussian)
    assert turned == pytest.approx(frechet.distance(a, b), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_standard_error_is_the_spread_of_repetitions(shift):
    """Over 300 draws of both sets; their own spread is known to 4 %. At 0 the first order vanishes with 1 / n."""
    rng, values, errors = np.random.default_rng(5), [], []
    for _ in range(300):
        x, y = rng.standard_normal((200, 4)), rng.standard_normal((250, 4)) * [1, 1, 1 + shift, 1] + shift
        found = frechet.estimate(x, y)
        values.append(found.value)
        errors.append(found.standard_error)
    ratio = np.mean(errors) / np.std(values)
    assert 0.9 < ratio < 1.1 if shift else 0.7 < ratio < 1.6


@pytest.mark.parametrize("case", range(4))
def test_pytorch_fids_numbers(shared_golden, case):
    with np.load(shared_golden / "fid" / "frechet_distance.npz") as file:
        mean_a, covariance_a, mean_b, covariance_b = (file[f"d{case}.{k}"] for k in ("mu1", "sigma1", "mu2", "sigma2"))
        expected, acts = float(file[f"d{case}.fid"]), [file[f"d{case}.acts{i}"] for i in (1, 2)]
    found = frechet.distance(Gaussian(mean_a, covariance_a), Gaussian(mean_b, covariance_b))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)  # case 2 is singular; case 3 two equal sets
    assert frechet.estimate(acts[0], acts[1]).value == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("program", ["torch_fidelity", "torchmetrics", "pytorch_fid", "cleanfid"])
def test_four_programs_numbers_on_the_same_features(shared_golden, program):
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        found = frechet.estimate(file["f1"], file["f2"]).value
        assert found == pytest.approx(float(file[f"fid.{program}"]), rel=1e-8)


def test_adms_numbers(shared_golden):
    """Its means are float32, and so is |m_a - m_b|^2."""
    with np.load(shared_golden / "metrics" / "openai_evaluator.npz") as file:
        expected, means = float(file["fid"]), [file["sample.mu"], file["ref.mu"]]
        a, b = (Gaussian(file[f"{k}.mu"].astype(np.float64), file[f"{k}.sigma"]) for k in ("sample", "ref"))
        assert frechet.estimate(file["sample"], file["ref"]).value == pytest.approx(expected, rel=1e-7)
    square = lambda difference: float(difference @ difference)
    theirs = frechet.distance(a, b) - square(a.mean - b.mean) + square(means[0] - means[1])
    assert theirs == pytest.approx(expected, rel=1e-12)


def test_bad_input_in_one_line():
    x = RNG.standard_normal((5, 3))
    with pytest.raises(ValueError, match=r"^samples: at least 2 images are needed, got 1$"):
        frechet.estimate(x[:1], x)
    with pytest.raises(ValueError, match=r"^samples have 3 features, the reference 2: not of the same network$"):
        frechet.estimate(x, x[:, :2])
    with pytest.raises(ValueError, match=r"^reference: the features of image 4 are not finite$"):
        frechet.estimate(x, np.where(np.arange(5)[:, None] == 4, np.inf, x))
    a = moments.of(x).gaussian
    with pytest.raises(ValueError, match=r"^reference: a mean"):
        frechet.distance(a, Gaussian(a.mean, a.covariance[:2]))
    with pytest.raises(ValueError, match=r"^samples: the mean or covariance is not finite$"):
        frechet.distance(Gaussian(a.mean * np.nan, a.covariance), a)
