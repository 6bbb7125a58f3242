"""A reading's target is the inverse of its (x_0, eps), at both ends of the schedule; every setting has its effect."""

import doctest
from types import SimpleNamespace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, process, samplers, schedules
from ddpm_jax import reading as reading_module
from ddpm_jax.reading import Reading, ReadingPrediction, ReadingVariance
from tests.helpers import relative

S = schedules.linear(100)
NO_SIGNAL = schedules.zero_terminal_snr(S)
KEYS = jax.random.split(jax.random.key(0), 3)
T = jnp.array([0, 1, 50, 99])
PREDICTIONS = get_args(ReadingPrediction)
ALPHA, SIGMA = (float(table[50]) for table in (S.sqrt_alphas_cumprod, S.sqrt_one_minus_alphas_cumprod))
ROW = SimpleNamespace(alpha=ALPHA, sigma=SIGMA, time=50.0, spread=1.5)


def reading(prediction="eps", **settings):
    return Reading(prediction, sigma_data=0.6 if prediction == "edm" else None, **settings)


def drawn():
    x_0, eps = (jax.random.normal(key, (4, 2, 2, 3), float) for key in KEYS[:2])
    return x_0 / 2, eps


@pytest.mark.parametrize("schedule", [S, NO_SIGNAL], ids=["linear", "zero terminal SNR"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x_0_and_eps_of_the_target_are_those_it_was_made_of(prediction, schedule, x64):
    x_0, eps = drawn()
    x_t, read = process.q_sample(schedule, x_0, T, eps), reading(prediction)
    output = read.target(schedule, x_0, T, eps)
    if schedule is NO_SIGNAL and prediction in ("eps", "score"):
        with pytest.raises(ValueError, match="says nothing about x_0 at zero terminal"):
            read.predict(schedule, x_t, T, output)
        return
    found = read.predict(schedule, x_t, T, output)
    # The tables are float32: 6e-8, divided by sigma = 0.01 at t = 0 or by alpha there.
    assert relative(found.x_0, x_0) < 2e-5 and relative(found.eps, eps) < 2e-5
    if prediction != "edm":  # an output for a variance beside it changes nothing
        output = jnp.concatenate([output, 1 + output], axis=-1)
        both = reading(prediction, variance="learned").predict(schedule, x_t, T, output)
        np.testing.assert_array_equal(both.x_0, found.x_0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_denoiser_says_at_a_row_what_predict_says_at_its_timestep(prediction, x64):
    x_0, eps = drawn()
    t = jnp.full(4, 50)
    x_t, read = process.q_sample(S, x_0, t, eps), reading(prediction)
    told = []

    def model_fn(x, time):
        told.append(x)
        return read.target(S, x_0, t, eps)

    found = read.denoiser(S)(model_fn)(x_t, ROW)
    assert relative(found.x_0, x_0) < 1e-6 and relative(found.eps, eps) < 1e-6
    std = np.hypot(SIGMA, 0.6 * ALPHA) if prediction == "edm" else 1
    assert relative(told[0], x_t / std) < 1e-6
    # And in the terms of the process.
    terms = read.in_process_terms(model_fn, S)
    again = process.predict(S, x_t, t, terms.model_fn(x_t, t.astype(float)), prediction=terms.prediction)
    assert relative(again.x_0, x_0) < 1e-6


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_returns_the_target_has_no_loss(prediction):
    x_0, eps = (image.astype(jnp.float32) for image in drawn())
    read = reading(prediction)
    model_fn = lambda x, t: read.target(S, x_0, T, eps)
    loss = (
        objectives.edm(model_fn, S, x_0, T, eps, sigma_data=0.6)
        if prediction == "edm"
        else objectives.simple(model_fn, S, x_0, T, eps, prediction=prediction)
    )
    np.testing.assert_array_equal(loss, 0)


def denoised(read):
    """What samplers see of a network of this kind."""
    x = drawn()[0].astype(jnp.float32)
    network = lambda x, t: jnp.tile(6 * jnp.sin(x + t[:, None, None, None] / 100), read.channels(1))
    return read.denoiser(S)(read.model_fn(network))(x, ROW)


def differs(a, b):
    return any(x is not None and np.abs(x - y).max() > 1e-3 for x, y in zip(a[:2], b[:2], strict=True))


def test_every_setting_changes_what_samplers_see():
    plain = denoised(Reading())
    for read in (
        *(reading(prediction) for prediction in PREDICTIONS if prediction != "eps"),
        Reading(clip=0.5),
        Reading(threshold=(0.9, 2.0)),
        Reading(time_scale=2.0),
    ):
        assert differs(denoised(read), plain), read
    assert differs(denoised(Reading("edm", sigma_data=0.5)), denoised(Reading("edm", sigma_data=0.6)))
    assert differs(denoised(Reading(threshold=(0.9, 2.0))), denoised(Reading(threshold=(0.5, 2.0))))
    assert differs(denoised(Reading(threshold=(0.9, 2.0))), denoised(Reading(threshold=(0.9, 1.2))))


def test_clip_and_threshold_are_those_of_the_wrappers():
    plain = lambda x, row: denoised(Reading())
    for read, wrapped in (
        (Reading(clip=0.5), samplers.clipped(plain, 0.5)),
        (Reading(threshold=(0.9, 1.5)), samplers.thresholded(plain, 0.9, 1.5)),
    ):
        np.testing.assert_array_equal(denoised(read).x_0, wrapped(drawn()[0].astype(jnp.float32), ROW).x_0)


# --------------------------------------------------------------------------------------------------------- variance


@pytest.mark.parametrize(
    ("variance", "log_of_half"),
    [
        ("learned", lambda v: v),
        ("learned_variance", jnp.log),
        # log beta_tilde + f (log beta - log beta_tilde), whose bracket is the row's spread, over the row's variance.
        ("learned_range", lambda v: (v + 1) / 2),
    ],
)
def test_a_learned_variance_is_read_from_the_second_half(variance, log_of_half):
    x, read = drawn()[0].astype(jnp.float32), Reading(variance=variance)
    half = 0.5 + jax.random.uniform(KEYS[2], x.shape)
    found = read.denoiser(S)(lambda x, t: jnp.concatenate([jnp.sin(x), half], axis=-1))(x, ROW)
    np.testing.assert_allclose(2 * jnp.log(found.noise_scale), 1.5 * log_of_half(half), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.x_0, Reading().denoiser(S)(lambda x, t: jnp.sin(x))(x, ROW).x_0)


def test_what_process_makes_of_a_variance_that_is_no_logarithm():
    x_t = drawn()[0].astype(jnp.float32)
    half = 0.5 + jax.random.uniform(KEYS[2], x_t.shape)
    terms = Reading(variance="learned_variance").in_process_terms(lambda x, t: jnp.concatenate([x, half], axis=-1), S)
    assert terms.variance == "learned"
    p = process.p_mean_variance(S, x_t, T, terms.model_fn(x_t, T), variance=terms.variance)
    np.testing.assert_allclose(p.variance, half, rtol=1e-6)


def test_only_a_learned_variance_doubles_the_channels():
    assert {name: Reading(variance=name).channels(3) for name in get_args(ReadingVariance)} == {
        "fixed_small": 3,
        "fixed_large": 3,
        "learned": 6,
        "learned_range": 6,
        "learned_variance": 6,
    }
    with pytest.raises(ValueError, match=r"with learned variance the network must return \(4, 2, 2, 6\), got"):
        Reading(variance="learned").denoiser(S)(lambda x, t: x)(drawn()[0].astype(jnp.float32), ROW)


# -------------------------------------------------------------------------------------------------- time, and errors


def test_the_network_is_told_its_own_times():
    told = []

    def network(x, t):
        told.append(t)
        return x

    read = Reading(time_scale=2.5)
    read.denoiser(S)(read.model_fn(network))(drawn()[0].astype(jnp.float32), ROW)
    objectives.simple(read.model_fn(network), S, *(jnp.ones((2, 1, 1, 1)), jnp.array([3, 70]), jnp.ones((2, 1, 1, 1))))
    np.testing.assert_array_equal(told[0], [125.0] * 4)
    np.testing.assert_array_equal(told[1], [7.5, 175.0])
    assert all(t.dtype == jnp.float32 for t in told)
    assert Reading().model_fn(network) is network


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "noise"}, "unknown prediction 'noise'.*known: eps, x_0, v, x_prev, score, edm"),
        ({"variance": "fixed"}, "unknown variance 'fixed'; did you mean 'fixed_small'"),
        ({"clip": 0.0}, r"clip must be positive or None, got 0\.0"),
        ({"clip": 1.0, "threshold": (0.9, 1.0)}, r"either clip or threshold, got 1\.0 and \(0\.9, 1\.0\)"),
        ({"threshold": (1.2, 1.0)}, r"ratio must lie in \[0, 1\], got 1\.2"),
        ({"threshold": (0.9, 0.0)}, r"max_value must be positive, got 0\.0"),
        (
            {"prediction": "edm", "sigma_data": 0.5, "variance": "learned"},
            "'edm' has no half .* got variance 'learned'",
        ),
        ({"prediction": "edm"}, "sigma_data is for prediction 'edm', got None with 'edm'"),
        ({"sigma_data": 0.5}, r"sigma_data is for prediction 'edm', got 0\.5 with 'eps'"),
        ({"prediction": "edm", "sigma_data": -1.0}, r"sigma_data must be positive, got -1\.0"),
        ({"time_scale": 0.0}, r"time_scale must be positive, got 0\.0"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Reading(**settings)


def test_a_sampler_that_goes_where_the_prediction_says_nothing_is_refused():
    table = samplers.ddim(samplers.grids.trailing(NO_SIGNAL, 5))
    for prediction in ("v", "x_0", "x_prev", "edm"):
        reading(prediction).check_table(NO_SIGNAL, table)
    reading("v", variance="learned_range", clip=1.0).check_table(NO_SIGNAL, table)
    for prediction in ("eps", "score"):
        reading(prediction).check_table(S, samplers.ddim(samplers.grids.trailing(S, 5)))
        with pytest.raises(ValueError, match="eps says nothing about x_0 at time 99, where alpha is 0"):
            reading(prediction).check_table(NO_SIGNAL, table)


def test_its_example():
    assert doctest.testmod(reading_module).failed == 0


def test_a_threshold_has_no_likelihood():
    with pytest.raises(ValueError, match=r"a likelihood clips x_0 or leaves it, got threshold \(0\.9, 1\.0\)"):
        Reading(threshold=(0.9, 1.0)).in_process_terms(lambda x, t: x, S)
