"""KID: identities of the three estimators, its mean over repetitions, then torch-fidelity's and clean-fid's numbers."""

import numpy as np
import pytest

from ddpm_jax.evaluate.samples import kernels, kid
from ddpm_jax.evaluate.samples.kernels import Polynomial, Radial

RNG = np.random.default_rng(0)


def plain(x, y, estimator):
    """The definition, whole matrices."""
    k = lambda a, b: (a @ b.T / x.shape[1] + 1) ** 3
    n, m, xx, yy, xy = len(x), len(y), k(x, x), k(y, y), k(x, y)
    if estimator == "biased":
        return xx.mean() + yy.mean() - 2 * xy.mean()
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - (2 * xy.mean() if estimator == "unbiased" else 2 * (xy.sum() - np.trace(xy)) / (n * (n - 1)))


@pytest.mark.parametrize("estimator", ["unbiased", "u-statistic", "biased"])
@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_of_the_kernel_matrix_give_the_definition(estimator, block, monkeypatch):
    monkeypatch.setattr(kernels, "blocks", lambda x: kernels_blocks(x, block))
    x, y = RNG.standard_normal((40, 6)), RNG.standard_normal((40 if estimator == "u-statistic" else 53, 6)) + 0.5
    assert kernels.mmd2(x, y, Polynomial(), estimator).value == pytest.approx(plain(x, y, estimator), rel=1e-12)


def kernels_blocks(x, size):
    return ((first, np.asarray(x[first : first + size], np.float64)) for first in range(0, len(x), size))


def test_the_unbiased_estimate_has_mean_0_and_the_biased_has_not():
    """Of 400 pairs of samples of one law, to 5 standard errors."""
    rng, unbiased, blocks, biased = np.random.default_rng(1), [], [], []
    for _ in range(400):
        x, y = rng.standard_normal((2, 40, 8))
        unbiased.append(kid.distance(x, y).value)
        blocks.append(kid.by_blocks(x, y, 10).value)
        biased.append(kernels.mmd2(x, y, Polynomial(), "biased").value)
    error = lambda values: np.std(values, ddof=1) / np.sqrt(len(values))
    for values in (unbiased, blocks):
        assert abs(np.mean(values)) < 5 * error(values)
    assert np.mean(biased) > 20 * error(biased)


@pytest.mark.parametrize("wide", ["samples", "reference"])
def test_the_standard_errors_are_the_spread_of_repetitions(wide):
    rng, whole, blocks = np.random.default_rng(2), [], []
    for _ in range(200):
        x, y = rng.standard_normal((150, 4)), rng.standard_normal((150, 4)) * 1.5 + 0.5
        x, y = (y, x) if wide == "samples" else (x, y)
        whole.append(kid.distance(x, y))
        blocks.append(kid.by_blocks(x, y, 10))
    for found in (whole, blocks):
        values, errors = np.array(found).T
        assert 0.85 < errors.mean() / values.std() < 1.15


def test_a_set_and_itself():
    """u-statistic: 0 exactly; unbiased: below 0, since its pairs between the sets hold each image with itself."""
    x = RNG.standard_normal((100, 64))
    assert kernels.mmd2(x, x.copy(), Polynomial(), "u-statistic").value == pytest.approx(0, abs=1e-13)
    assert kernels.mmd2(x, x.copy(), Polynomial(), "biased").value == pytest.approx(0, abs=1e-13)
    assert kid.distance(x, x.copy()).value < -0.01
    assert np.isnan(kid.by_blocks(x, x, 100).standard_error)


CASES = [
    dict(size=50),
    dict(size=100, subsets=20, kernel=Polynomial(2, 0.1, 0.5)),
    dict(size=200, subsets=10, kernel=Radial(5.0)),
    dict(size=60, subsets=7, seed=11),
]


@pytest.mark.parametrize("case", range(4))
def test_torch_fidelitys_numbers(shared_golden, case):
    """Its kernels are float32."""
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        found = kid.by_subsets(file["f1"], file["f2"], **CASES[case])
        assert found.value == pytest.approx(float(file[f"kid{case}.mean"]), rel=1e-6)
        assert found.spread == pytest.approx(float(file[f"kid{case}.std"]), rel=1e-6)


def test_torch_fidelitys_defaults(shared_golden):
    """100 subsets of 1000, whose kernels torch-fidelity adds up in float32.

    That leaves 1e-6 of a mean of 0.03: the same sums in float32 are 9e-7 and 3e-6 from ours, too.
    """
    draws = np.random.RandomState(9001)
    x = (draws.standard_normal((1100, 32)) + 0.1).astype(np.float32)
    y = draws.standard_normal((1300, 32)).astype(np.float32)
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        value, spread = file["big.kid_default"]
    found = kid.by_subsets(x, y)
    assert found.value == pytest.approx(value, rel=2e-6)
    assert found.spread == pytest.approx(spread, rel=1e-5)


def test_torch_fidelitys_estimators(shared_golden):
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        for name in ("biased", "unbiased", "u-statistic"):
            found = kernels.mmd2(file["f1"][:200], file["f2"][:200], Polynomial(), name).value
            assert found == pytest.approx(float(file[f"mmd2.{name}"]), rel=1e-12)
        torchmetrics = float(file["kid.torchmetrics_poly_mmd_200"])
        assert kid.distance(file["f1"][:200], file["f2"][:200]).value == pytest.approx(
            torchmetrics, rel=2e-6
        )  # float32


def test_clean_fids_order_of_draws(shared_golden):
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        options = dict(subsets=30, size=100, seed=int(file["kid.cleanfid_seed"]))
        found = kid.by_subsets(file["f1"], file["f2"], order="clean-fid", **options).value
        assert found == pytest.approx(float(file["kid.cleanfid"]), rel=1e-6)
        assert kid.by_subsets(file["f1"], file["f2"], **options).value != pytest.approx(found, rel=1e-3)


def test_bad_input_in_one_line():
    x = RNG.standard_normal((30, 3))
    with pytest.raises(ValueError, match=r"^kid subset size must be from 2 to 30, the images there are, got 1000$"):
        kid.by_subsets(x, x)
    with pytest.raises(ValueError, match=r"^kid subsets must be at least 1, got 0$"):
        kid.by_subsets(x, x, size=10, subsets=0)
    with pytest.raises(ValueError, match=r"^size must be from 2 to 30"):
        kid.by_blocks(x, x, 1)
    with pytest.raises(ValueError, match=r"not of the same network$"):
        kid.distance(x, x[:, :2])
    with pytest.raises(
        ValueError, match=r"^the estimator u-statistic needs as many samples as references, got 30 and 20$"
    ):
        kernels.mmd2(x, x[:20], Polynomial(), "u-statistic")
    with pytest.raises(ValueError, match=r"^samples: at least 2 images are needed, got 1$"):
        kid.distance(x[:1], x)
