import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.evaluate.likelihood import table
from ddpm_jax.evaluate.likelihood.vlb import VlbTerms

S = schedules.linear(4)


def batch(seed, n=5):
    rng = np.random.RandomState(seed)
    bits, prior, error, square = rng.rand(n, 4), rng.rand(n), rng.rand(n, 4), rng.rand(n, 4)
    return VlbTerms(bits, prior, error, np.zeros((n, 4)), square)


def test_the_rate_is_what_is_left_to_pay_and_the_distortion_that_of_the_guess():
    bits, mse = np.array([1.5, 0.25, 0.125, 0.0625]), np.array([0.0001, 0.01, 0.04, 0.16])
    curve = table.rate_distortion(bits, 0.5, mse)
    # Who has x_3 has paid the prior only; who has x_0 (the paper's x_1) everything but the decoder.
    np.testing.assert_array_equal(curve.rate, [0.9375, 0.6875, 0.5625, 0.5])
    np.testing.assert_allclose(curve.distortion, [1.275, 12.75, 25.5, 51])


def test_sums_are_means_and_standard_errors():
    batches = batch(0), batch(1), batch(2, 3)
    sums = table.empty(4)
    for terms, count in zip(batches, (5, 5, 2), strict=True):  # the last batch repeats an image
        sums = table.add(sums, terms, count)
    whole = [np.concatenate(columns)[:12] for columns in zip(*batches, strict=True)]
    bits, prior, error, _, square = whole
    found, by_t = table.parts(sums), table.table(S, sums)
    assert sums.num_images == 12
    for name, values in (
        ("total", bits.sum(1) + prior), ("prior", prior), ("transitions", bits[:, 1:].sum(1)), ("decoder", bits[:, 0]),
    ):  # fmt: skip
        assert found[name].mean == pytest.approx(values.mean(), rel=1e-12)
        assert found[name].standard_error == pytest.approx(values.std(ddof=1) / 12**0.5, rel=1e-9)
    np.testing.assert_allclose(by_t.standard_error, bits.std(axis=0, ddof=1) / 12**0.5, rtol=1e-9)
    np.testing.assert_allclose(by_t.x_0_mse, error.mean(0))
    keep, noise = S.alphas_cumprod_float64, S.one_minus_alphas_cumprod_float64
    np.testing.assert_allclose(by_t.eps_mse, keep / noise * error.mean(0))
    np.testing.assert_allclose(by_t.score_square, square.mean(0) / noise)
    # The whole rate is the bound: what x_0 costs, and the decoder.
    assert by_t.rate[0] + by_t.bits_per_dim[0] == pytest.approx(found["total"].mean, rel=1e-12)
    assert by_t.rate[-1] == pytest.approx(prior.mean())


def test_one_image_has_no_standard_error():
    sums = table.add(table.empty(4), batch(0), 1)
    assert table.parts(sums)["total"].standard_error is None
    assert np.isnan(table.table(S, sums).standard_error).all()


def test_the_score_is_at_most_that_of_pure_noise():
    gammas = table.score_square(S, np.array([0.1, 0.5, 1.0, 1.3]))
    noise = S.one_minus_alphas_cumprod_float64
    np.testing.assert_allclose(gammas * noise, [0.1, 0.5, 1, 1], rtol=1e-11)
    assert (gammas * np.sqrt(noise) ** 2 <= 1).all()


def test_a_term_that_is_not_finite_is_named():
    terms = batch(0)
    terms.bits_per_dim[3, 2] = np.inf
    sums = table.add(table.empty(4), batch(1), 5)
    with pytest.raises(FloatingPointError, match="the bound of image 8 is not finite at t = 2: inf bits"):
        table.add(sums, terms, 5)
    assert table.add(sums, terms, 3).num_images == 8
