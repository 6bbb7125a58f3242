"""Objectives in closed form, as identities, and what they refuse. Golden numbers: test_objectives_golden.py."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, process, schedules
from ddpm_jax.samplers import denoise
from tests.helpers import gaussian_model, relative

S = schedules.linear(100)
RNG = np.random.RandomState(0)
PREDICTIONS = ("eps", "x_0", "v", "x_prev", "score")
X_0 = jnp.asarray(RNG.randint(0, 256, (4, 3, 3, 2)) / 127.5 - 1, jnp.float32)
EPS = jnp.asarray(RNG.randn(4, 3, 3, 2), jnp.float32)
T = jnp.array([0, 1, 50, 99])
PARAMS = jnp.asarray(RNG.randn(2, 4), jnp.float32) / 2


def linear_network(params):
    """C channels to as many as params has columns, different at every t."""
    return lambda x, t: (x @ params) * (1 + t.astype(x.dtype).reshape(-1, 1, 1, 1) / 100)


# ----------------------------------------------------------------------------------------------------------- simple


def test_exact_denoiser_of_gaussian_data_has_the_known_loss():
    """E (eps - E[eps | x_t])^2 = var(eps | x_t) = ac v / (ac v + 1 - ac) for data ~ N(m, v)."""
    mean, variance, n = 0.5, 0.3, 200_000
    x_0 = mean + variance**0.5 * jax.random.normal(jax.random.key(0), (n, 1))
    eps = jax.random.normal(jax.random.key(1), (n, 1))
    for t in (0, 30, 99):
        losses = objectives.simple(gaussian_model(S, mean, variance), S, x_0, jnp.full(n, t), eps)
        ac = S.alphas_cumprod_float64[t]
        expected = ac * variance / (ac * variance + 1 - ac)
        assert abs(losses.mean() - expected) < 5 * losses.std() / n**0.5


def test_it_is_a_mean_over_pixels_and_the_network_is_told_original_times():
    told = []

    def model_fn(x, t):
        told.append(t)
        return jnp.zeros_like(x)

    x_0, eps = np.ones((2, 3, 3, 1), np.float32), np.full((2, 3, 3, 1), 2, np.float32)
    respaced = schedules.respace(S, [3, 70])
    losses = objectives.simple(model_fn, respaced, jnp.asarray(x_0), jnp.array([0, 1]), jnp.asarray(eps))
    np.testing.assert_array_equal(losses, [4, 4])
    np.testing.assert_array_equal(told[0], [3, 70])
    assert told[0].dtype == jnp.float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_squared_distance_to_what_the_prediction_means(prediction):
    ac = S.alphas_cumprod_float64[T].reshape(-1, 1, 1, 1)
    x_0, eps = np.asarray(X_0, np.float64), np.asarray(EPS, np.float64)
    prev = np.append(1.0, S.alphas_cumprod_float64)[T].reshape(-1, 1, 1, 1)
    beta = S.betas_float64[T].reshape(-1, 1, 1, 1)
    x_t = np.sqrt(ac) * x_0 + np.sqrt(1 - ac) * eps
    expected = {
        "eps": eps,
        "x_0": x_0,
        "v": np.sqrt(ac) * eps - np.sqrt(1 - ac) * x_0,
        "score": -eps / np.sqrt(1 - ac),
        "x_prev": (np.sqrt(prev) * beta * x_0 + np.sqrt(1 - beta) * (1 - prev) * x_t) / (1 - ac),
    }[prediction]
    found = objectives.simple(lambda x, t: jnp.zeros_like(x), S, X_0, T, EPS, prediction=prediction)
    np.testing.assert_allclose(found, (expected**2).mean((1, 2, 3)), rtol=3e-6)


def test_the_half_of_the_variance_does_not_count_in_simple():
    for variance in process.LEARNED:
        found = objectives.simple(linear_network(PARAMS), S, X_0, T, EPS, variance=variance)
        expected = objectives.simple(linear_network(PARAMS[:, :2]), S, X_0, T, EPS)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- vlb


def perfect(prediction, t, eps=EPS):
    return process.target(S, X_0, t, eps, prediction=prediction)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_leaves_only_what_the_variances_differ_by(prediction):
    """KL = (log(v2 / v1) + v1 / v2 - 1) / 2 with v1 = beta_tilde; in bits; 0 with fixed_small."""
    t = jnp.array([1, 2, 50, 98])
    x_t = process.q_sample(S, X_0, t, EPS)
    beta = S.betas_float64[t]
    small = (
        np.append(0, S.betas_float64[1:] * S.one_minus_alphas_cumprod_float64[:-1]) / S.one_minus_alphas_cumprod_float64
    )
    ratio = small[t] / beta
    for variance, expected in [
        ("fixed_small", 0 * ratio),
        ("fixed_large", (ratio - 1 - np.log(ratio)) / 2),
        ("learned", (small[t] - 1 - np.log(small[t])) / 2),  # v = 0: log variance 0
        ("learned_range", (np.sqrt(ratio) - 1 - np.log(ratio) / 2) / 2),  # v = 0: the geometric mean
    ]:
        output = perfect(prediction, t)
        if variance in process.LEARNED:
            output = jnp.concatenate([output, jnp.zeros_like(output)], axis=-1)
        term = objectives.vlb_term(S, X_0, x_t, t, output, prediction=prediction, variance=variance)
        # 1e-6 absolute: the rounding of x_0 and of the mean over a standard deviation of 0.01 is 1e-5, squared half.
        np.testing.assert_allclose(term.bits_per_dim, expected / np.log(2), rtol=3e-5, atol=1e-6)
        assert relative(term.pred_x_0, X_0) < 2e-5


def test_expected_terms_for_gaussian_data_in_closed_form():
    """E KL = (log(v2 / v1) + v1 / v2 - 1 + coef1^2 var(x_0 | x_t) / v2) / 2 for data ~ N(m, s^2), exact denoiser."""
    mean, data_variance, n = 0.1, 0.04, 100_000
    x_0 = jnp.clip(mean + data_variance**0.5 * jax.random.normal(jax.random.key(2), (n, 1)), -1, 1)  # clips 1e-5 of it
    eps = jax.random.normal(jax.random.key(3), (n, 1))
    model_fn = gaussian_model(S, mean, data_variance, "x_0")
    for t in (1, 10, 50, 99):
        ac, prev, beta = *S.alphas_cumprod_float64[[t, t - 1]], S.betas_float64[t]
        posterior = data_variance * (1 - ac) / (ac * data_variance + 1 - ac)  # var(x_0 | x_t)
        coef1 = beta * np.sqrt(prev) / (1 - ac)
        v_1 = beta * (1 - prev) / (1 - ac)
        for variance, v_2 in [("fixed_small", v_1), ("fixed_large", beta)]:
            expected = (np.log(v_2 / v_1) + v_1 / v_2 - 1 + coef1**2 * posterior / v_2) / 2 / np.log(2)
            found = objectives.vlb(model_fn, S, x_0, jnp.full(n, t), eps, prediction="x_0", variance=variance)
            assert abs(found.mean() - expected) < 5 * found.std() / n**0.5 + 1e-6


def test_prior_is_the_kl_of_the_last_step():
    for s in (S, schedules.linear(1000), schedules.zero_terminal_snr(S)):
        ac = s.alphas_cumprod_float64[-1]
        squares = np.asarray(X_0, np.float64) ** 2
        expected = (-np.log(1 - ac) - ac + ac * squares).mean((1, 2, 3)) / 2 / np.log(2)
        np.testing.assert_allclose(objectives.prior_bits_per_dim(s, X_0), expected, rtol=1e-5)


def test_vlb_is_its_term_at_a_sample_of_q():
    model_fn = linear_network(PARAMS)
    x_t = process.q_sample(S, X_0, T, EPS)
    output = model_fn(x_t, T)
    options = {"prediction": "v", "variance": "learned_range"}
    expected = objectives.vlb_term(S, X_0, x_t, T, output, clip=None, **options).bits_per_dim
    np.testing.assert_allclose(objectives.vlb(model_fn, S, X_0, T, EPS, **options), expected, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- hybrid


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", process.LEARNED)
def test_hybrid_teaches_the_mean_by_simple_alone_and_the_variance_by_vlb_alone(prediction, variance):
    options = {"prediction": prediction, "variance": variance}
    gradient = lambda loss: jax.grad(lambda p: loss(linear_network(p), S, X_0, T, EPS, **options).mean())(PARAMS)
    found = gradient(lambda *args, **kw: objectives.hybrid(*args, vlb_weight=7.0, **kw))
    np.testing.assert_array_equal(found[:, :2], gradient(objectives.simple)[:, :2])
    np.testing.assert_allclose(found[:, 2:], 7 * gradient(objectives.vlb)[:, 2:], rtol=1e-5, atol=1e-6)
    assert np.abs(gradient(objectives.vlb)[:, :2]).max() > 0


def test_hybrid_and_what_it_is_the_sum_of_come_from_one_call_of_the_network():
    calls, options = [], {"prediction": "v", "variance": "learned_range"}

    def model_fn(x, t):
        calls.append(t)
        return linear_network(PARAMS)(x, t)

    found = objectives.hybrid_terms(model_fn, S, X_0, T, EPS, vlb_weight=7.0, **options)
    assert len(calls) == 1
    arguments = linear_network(PARAMS), S, X_0, T, EPS
    np.testing.assert_array_equal(found.total, objectives.hybrid(*arguments, vlb_weight=7.0, **options))
    np.testing.assert_array_equal(found.simple, objectives.simple(*arguments, **options))
    np.testing.assert_array_equal(found.vlb, objectives.vlb(*arguments, **options))
    np.testing.assert_allclose(found.total, found.simple + 7 * found.vlb, rtol=1e-6)


def test_default_weight_is_the_papers_lambda_on_the_whole_bound():
    s = schedules.cosine(400)
    model_fn, t = linear_network(PARAMS), jnp.array([0, 1, 200, 399])
    vlb = objectives.vlb(model_fn, s, X_0, t, EPS, variance="learned_range")
    simple = objectives.simple(model_fn, s, X_0, t, EPS, variance="learned_range")
    found = objectives.hybrid(model_fn, s, X_0, t, EPS)
    np.testing.assert_allclose(found, simple + 0.001 * (400 * vlb), rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- edm


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_the_weighted_error_of_what_the_sampler_makes_of_the_network(sigma_data, x64):
    """lambda(s) (D - x_0)^2, lambda = (s^2 + sd^2) / (s sd)^2, with D from samplers.preconditioned."""
    x_0, eps, params = X_0.astype(float), EPS.astype(float), PARAMS[:, :2].astype(float)
    model_fn = linear_network(params)
    found = objectives.edm(model_fn, S, x_0, T, eps, sigma_data=sigma_data)
    for i, t in enumerate(np.asarray(T)):
        alpha, sigma = float(S.sqrt_alphas_cumprod[t]), float(S.sqrt_one_minus_alphas_cumprod[t])
        row = SimpleNamespace(alpha=alpha, sigma=sigma, time=float(t))
        x_t = alpha * x_0[i : i + 1] + sigma * eps[i : i + 1]
        error = denoise.preconditioned(model_fn, sigma_data)(x_t, row).x_0 - x_0[i : i + 1]
        s = sigma / alpha
        weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
        assert found[i] == pytest.approx(weight * float(jnp.mean(error**2)), rel=1e-6)


def test_edm_with_unit_data_is_v_prediction():
    model_fn = linear_network(PARAMS[:, :2])
    found = objectives.edm(lambda x, t: -model_fn(x, t), S, X_0, T, EPS, sigma_data=1.0)
    np.testing.assert_allclose(found, objectives.simple(model_fn, S, X_0, T, EPS, prediction="v"), rtol=1e-5)


def test_edm_asks_for_unit_variance_in_and_out_and_is_finite_at_zero_snr():
    """Karras et al., appendix B.6: what F takes in and its target have variance 1, at every t."""
    n, s, seen = 200_000, schedules.zero_terminal_snr(S), []
    x_0 = 0.3 * jax.random.normal(jax.random.key(4), (n, 1))
    eps = jax.random.normal(jax.random.key(5), (n, 1))

    def model_fn(x, t):
        seen.append(x)
        return jnp.zeros_like(x)

    for t in (0, 50, 99):
        losses = objectives.edm(model_fn, s, x_0, jnp.full(n, t), eps, sigma_data=0.3)
        for values in (seen[-1][:, 0] ** 2, losses):
            assert abs(values.mean() - 1) < 5 * values.std() / n**0.5


# ------------------------------------------------------------------------------------------- zero terminal SNR, errors


@pytest.mark.parametrize("schedule", [schedules.zero_terminal_snr(S), schedules.jsd(100), schedules.jsd(2)])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_terms_stay_finite_at_zero_snr(schedule, variance):
    """Where ac_t = 0 p is N(sqrt(ac_{t-1}) pred_x_0, ..): v, x_0 and x_prev lose nothing, with every variance."""
    t = jnp.array([0, 0, schedule.num_timesteps - 1, schedule.num_timesteps - 1])
    x_t = process.q_sample(schedule, X_0, t, EPS)
    for prediction in ("v", "x_0", "x_prev"):
        output = process.target(schedule, X_0, t, EPS, prediction=prediction)
        if variance in process.LEARNED:
            output = jnp.concatenate([output, output], axis=-1)

        def bits(output, prediction=prediction):
            term = objectives.vlb_term(schedule, X_0, x_t, t, output, prediction=prediction, variance=variance)
            return term.bits_per_dim.sum(), term

        (_, term), gradient = jax.value_and_grad(bits, has_aux=True)(output)
        assert relative(term.pred_x_0, X_0) < 1e-6
        assert np.isfinite(term.bits_per_dim).all() and np.isfinite(gradient).all()
        if variance == "fixed_small":
            np.testing.assert_allclose(term.bits_per_dim[2:], 0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_eps_at_zero_snr_is_refused(prediction):
    s = schedules.zero_terminal_snr(S)
    with pytest.raises(
        ValueError, match=rf"'{prediction}' says nothing about x_0 at zero .*use 'v', 'x_0' or 'x_prev'"
    ):
        objectives.vlb(lambda x, t: x, s, X_0, T, EPS, prediction=prediction)


def call(objective, params=PARAMS[:, :2], x_0=X_0, **options):
    return lambda: objective(linear_network(params), S, x_0, T, EPS, **options)


@pytest.mark.parametrize(
    "run, message",
    [
        (
            call(objectives.simple, PARAMS),
            r"output must be like x_t, float32 \(4, 3, 3, 2\), got float32 \(4, 3, 3, 4\)",
        ),
        (
            call(objectives.simple, variance="learned"),
            r"twice as large as x_t along the last axis \(learned variance\), float32 \(4, 3, 3, 4\), got .*3, 3, 2\)",
        ),
        (call(objectives.hybrid), r"\(learned_range variance\), float32 \(4, 3, 3, 4\), got float32 \(4, 3, 3, 2\)"),
        (call(objectives.vlb, variance="learned_range"), r"\(learned_range variance\)"),
        (call(objectives.hybrid, variance="fixed_small"), r"must be one of learned, learned_range, got 'fixed_small'"),
        (call(objectives.simple, variance="learn"), r"unknown variance 'learn'; did you mean 'learned'\?"),
        (call(objectives.simple, prediction="noise"), r"unknown prediction 'noise'.*known: eps, x_0, v, x_prev, score"),
        (call(objectives.vlb, prediction="noise"), r"unknown prediction 'noise'"),
        (call(objectives.edm, sigma_data=0.0), r"sigma_data must be positive, got 0\.0"),
        (call(objectives.edm, PARAMS), r"output must be like x_t"),
    ],
)
def test_errors_come_while_tracing(run, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run)


@pytest.mark.parametrize("objective", [objectives.vlb, objectives.hybrid])
def test_images_outside_the_range_are_refused_where_that_is_known(objective):
    params, variance = (PARAMS, "learned") if objective is objectives.hybrid else (PARAMS[:, :2], "fixed_small")
    run = call(objective, params, 127.5 * (X_0 + 1), variance=variance)
    with pytest.raises(ValueError, match=r"x_0 must lie in \[-1, 1\], got values in \[\d+, 25\d\]"):
        run()
