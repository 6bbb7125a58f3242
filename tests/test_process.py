import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import process, schedules
from ddpm_jax.samplers.grids import sigma_grids
from ddpm_jax.special import edm
from tests.helpers import golden, relative

PREDICTIONS = ("eps", "x_0", "v", "x_prev", "score")
SCHEDULES = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine}
RNG = np.random.RandomState(0)
S = schedules.linear(300)
X_0, EPS, Z = (jnp.asarray(RNG.randn(6, 4, 4, 3), jnp.float32) for _ in range(3))
T = jnp.array([0, 1, 17, 150, 298, 299])
X_T = process.q_sample(S, X_0, T, EPS)


# ------------------------------------------------------------------------------------------------------- identities


def test_one_step_kernels_compose_to_q_sample(x64):
    # x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z_t: with z_t all 0 the mean, with x_0 = 0 the variance, for every t.
    x, variance = 1.0, 0.0
    ones, zeros, t = jnp.ones((300, 1)), jnp.zeros((300, 1)), jnp.arange(300)
    mean = process.q_sample(S, ones, t, zeros)[:, 0]
    std = process.q_sample(S, zeros, t, ones)[:, 0]
    for k, beta in enumerate(S.betas_float64):
        x, variance = np.sqrt(1 - beta) * x, (1 - beta) * variance + beta
        assert mean[k] == pytest.approx(x, rel=1e-6) and std[k] ** 2 == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predict_inverts_target(prediction, x64):
    x_0, eps = X_0.astype(float), EPS.astype(float)
    x_t = process.q_sample(S, x_0, T, eps)
    output = process.target(S, x_0, T, eps, prediction=prediction)
    found = process.predict(S, x_t, T, output, prediction=prediction)
    # The tables are float32. x_prev divides by coef1, x_0 from eps by alpha: their condition numbers are below 1e3.
    assert relative(found.x_0, x_0) < 1e-4
    assert relative(found.eps, eps) < 1e-4


def test_target_is_what_the_prediction_is_called(x64):
    x_0, eps = X_0.astype(float), EPS.astype(float)
    x_t = process.q_sample(S, x_0, T, eps)
    target = lambda prediction: process.target(S, x_0, T, eps, prediction=prediction)
    np.testing.assert_array_equal(target("eps"), eps)
    np.testing.assert_array_equal(target("x_0"), x_0)
    np.testing.assert_allclose(target("v"), process.velocity(S, x_0, eps, T), rtol=1e-12)
    np.testing.assert_allclose(target("x_prev"), process.q_posterior(S, x_0, x_t, T).mean, rtol=1e-12)
    ac = jnp.asarray(S.alphas_cumprod_float64)[T].reshape(-1, 1, 1, 1)
    log_q = lambda x_t: -((x_t - jnp.sqrt(ac) * x_0) ** 2 / (1 - ac)).sum() / 2
    assert relative(target("score"), jax.grad(log_q)(x_t)) < 1e-5  # the tables are float32


@pytest.mark.parametrize("prediction", ["v", "x_0", "x_prev"])
@pytest.mark.parametrize("schedule", [schedules.jsd(10), schedules.zero_terminal_snr(S)])
def test_predict_inverts_target_where_nothing_is_left_of_x_0(prediction, schedule):
    t = jnp.full(6, schedule.num_timesteps - 1)
    x_t = process.q_sample(schedule, X_0, t, EPS)
    np.testing.assert_array_equal(x_t, EPS)
    output = process.target(schedule, X_0, t, EPS, prediction=prediction)
    found = process.predict(schedule, x_t, t, output, prediction=prediction)
    np.testing.assert_allclose(found.x_0, X_0, rtol=1e-6)
    np.testing.assert_allclose(found.eps, EPS, rtol=1e-6)


def test_learned_range_reaches_from_the_small_to_the_large_variance():
    bound = {}
    for variance in ("fixed_small", "fixed_large"):
        bound[variance] = process.p_mean_variance(S, X_T, T, EPS, variance=variance).log_variance
    learned = lambda v: process.p_mean_variance(
        S, X_T, T, jnp.concatenate([EPS, jnp.full_like(EPS, v)], -1), variance="learned_range"
    )
    every = lambda log_variance: np.broadcast_to(log_variance, X_T.shape)
    np.testing.assert_allclose(learned(-1).log_variance, every(bound["fixed_small"]), rtol=1e-6)
    np.testing.assert_allclose(learned(1).log_variance[1:], every(bound["fixed_large"])[1:], rtol=1e-6)
    np.testing.assert_allclose(learned(1).log_variance[0], np.log(S.betas_float64[0]), rtol=1e-6)
    middle = (every(bound["fixed_small"]) + every(bound["fixed_large"]))[1:] / 2
    np.testing.assert_allclose(learned(0).log_variance[1:], middle, rtol=1e-6)
    np.testing.assert_array_equal(learned(0.3).mean, process.p_mean_variance(S, X_T, T, EPS).mean)


def test_p_step_adds_noise_of_the_learned_size():
    v = jnp.asarray(RNG.randn(*X_T.shape), jnp.float32)
    output = jnp.concatenate([EPS, v], axis=-1)
    step = process.p_step(S, X_T, T, output, Z, variance="learned")
    mean = process.p_mean_variance(S, X_T, T, EPS).mean
    np.testing.assert_allclose(step[1:], (mean + jnp.exp(v / 2) * Z)[1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(step[0], mean[0], rtol=2.4e-7, atol=6e-8)  # two programs: one rounding apart


def test_p_step_is_the_posterior_at_the_predicted_x_0():
    output = jnp.asarray(RNG.randn(*X_T.shape), jnp.float32)
    x_0 = jnp.clip(process.predict(S, X_T, T, output).x_0, -1, 1)
    mean, variance, log_variance = process.q_posterior(S, x_0, X_T, T)
    p = process.p_mean_variance(S, X_T, T, output, variance="fixed_small")
    np.testing.assert_array_equal(p.pred_x_0, x_0)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(p.variance, variance)
    step = process.p_step(S, X_T, T, output, Z, variance="fixed_small")
    np.testing.assert_allclose(step, mean + np.sqrt(variance) * Z, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(step[0], p.mean[0])  # no noise at t = 0, although log_variance is finite there
    assert np.isfinite(log_variance).all()


def test_unclipped_mean_is_the_papers_algorithm_2():
    # (x_t - beta_t / sqrt(1 - ac_t) eps) / sqrt(alpha_t)
    beta, ac = S.betas_float64[T], S.alphas_cumprod_float64[T]
    column = lambda a: np.asarray(a).reshape(-1, 1, 1, 1)
    expected = (np.asarray(X_T) - column(beta / np.sqrt(1 - ac)) * np.asarray(EPS)) / column(np.sqrt(1 - beta))
    p = process.p_mean_variance(S, X_T, T, EPS, clip=None)
    assert relative(p.mean, expected) < 1e-6
    np.testing.assert_allclose(p.variance[1:, 0, 0, 0], beta[1:], rtol=1e-6)  # fixed_large
    np.testing.assert_allclose(p.variance[0], S.posterior_variance[1], rtol=1e-6)
    np.testing.assert_allclose(p.log_variance, np.log(p.variance), rtol=1e-6)


def test_clip_is_a_range():
    for clip in (0.5, 2.0):
        p = process.p_mean_variance(S, X_T, T, 3 * EPS, clip=clip)
        assert np.abs(p.pred_x_0).max() == clip


def test_jit_vmap_grad_and_keywords():
    loss = lambda x: process.q_sample(S, x_0=x, t=T, eps=EPS).sum()
    np.testing.assert_allclose(jax.grad(loss)(X_0)[:, 0, 0, 0], S.sqrt_alphas_cumprod[T], rtol=1e-6)
    stacked = jax.vmap(lambda x: process.q_sample(S, x, T, EPS))(jnp.stack([X_0, 2 * X_0]))
    np.testing.assert_array_equal(stacked[0], X_T)


# ---------------------------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("name", ["linear1000", "cosine200_rescaled"])
def test_openai_forward(name):
    arrays, meta = golden(f"openai/forward_{name}")
    s = SCHEDULES[meta["schedule"]](meta["T"])
    a = {key: jnp.asarray(value) for key, value in arrays.items()}
    t = a["t"].astype(jnp.int32)
    assert relative(process.q_sample(s, a["x_start"], t, a["noise"]), a["x_t"]) < 1e-6
    broadcast = lambda x: np.broadcast_to(x, a["x_t"].shape)
    for name, part in process.q_mean_variance(s, a["x_start"], t)._asdict().items():
        assert relative(broadcast(part), a[f"q_{name}"]) < 1e-6
    posterior = process.q_posterior(s, a["x_start"], a["x_t"], t)
    assert relative(posterior.mean, a["posterior_mean"]) < 1e-6
    assert relative(broadcast(posterior.variance), a["posterior_variance"]) < 1e-6
    assert relative(broadcast(posterior.log_variance), a["posterior_log_variance_clipped"]) < 1e-6
    found = process.predict(s, a["x_t"], t, a["noise"]).x_0
    assert_same_x_0(found, arrays["xstart_from_eps"], s, t, "eps", arrays["x_t"], arrays["noise"])
    assert relative(process.predict(s, a["x_t"], t, a["x_start"], prediction="x_0").eps, a["eps_from_xstart"]) < 1e-5
    found = process.predict(s, a["x_t"], t, a["posterior_mean"], prediction="x_prev").x_0
    assert_same_x_0(found, arrays["xstart_from_xprev"], s, t, "x_prev", arrays["x_t"], arrays["posterior_mean"])


def assert_same_x_0(found, expected, s, t, prediction, *terms):
    """Equal up to rounding at the size of the terms that are subtracted: here the compiler fuses them, there not.

    x_0 from eps divides by sqrt(ac_t), x_0 from x_prev by coef1_t.
    """
    divisor = {"eps": s.sqrt_alphas_cumprod[t], "x_prev": s.posterior_mean_coef1[t], "x_0": np.ones(len(t))}[prediction]
    size = np.max([np.abs(term).max((1, 2, 3)) for term in terms], 0) / np.asarray(divisor)
    error = np.abs(np.asarray(found, np.float64) - expected).max((1, 2, 3))
    assert (error <= 3e-7 * size).all(), error / size


MEANS = {"EPSILON": "eps", "START_X": "x_0", "PREVIOUS_X": "x_prev"}


@pytest.mark.parametrize("name", ["linear1000", "cosine200_rescaled"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("precision", [jnp.float32, jnp.float64])
def test_openai_p_mean_variance(name, mean, variance, clip, precision):
    with jax.enable_x64(precision == jnp.float64):
        compare_p_mean_variance(name, mean, variance, clip, precision)


def compare_p_mean_variance(name, mean, variance, clip, precision):
    arrays, meta = golden(f"openai/p_mean_variance_{name}")
    s = SCHEDULES[meta["schedule"]](meta["T"])
    key = f"{mean}.{variance.upper()}"
    nhwc = lambda array: jnp.asarray(np.moveaxis(array, 1, -1), precision)
    x, output = nhwc(arrays["x"]), nhwc(arrays[f"{key}.model_output"])
    t = jnp.asarray(arrays["t"], jnp.int32)
    p = process.p_mean_variance(s, x, t, output, prediction=MEANS[mean], variance=variance, clip=clip)
    key = f"{key}.clip{int(clip is not None)}"
    found = dict(zip(("mean", "variance", "log_variance", "pred_xstart"), p, strict=True))
    assert_same_x_0(found.pop("pred_xstart"), nhwc(arrays[f"{key}.pred_xstart"]), s, t, MEANS[mean], x, output)
    for name, value in found.items():
        expected = nhwc(arrays[f"{key}.{name}"])
        assert relative(np.broadcast_to(value, expected.shape), expected) < 2e-6, name


CURVES = {"linear": schedules.linear, "scaled_linear": schedules.quad, "squaredcos_cap_v2": schedules.cosine,
          "sigmoid": schedules.sigmoid}  # fmt: skip


def schedule_of(cls, config):
    """Of a diffusers class with these settings beside its defaults."""
    latent = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config = {**(latent if cls == "LCMScheduler" else {}), **config}
    zero_snr = config.pop("rescale_betas_zero_snr", False)
    found = CURVES[config.pop("beta_schedule")](**config)
    return schedules.zero_terminal_snr(found) if zero_snr else found


def test_diffusers_add_noise_and_velocity():
    """Of every recorded class; some keep x / alpha = x_0 + sigma eps."""
    arrays, meta = golden("diffusers/add_noise")
    x, eps = jnp.asarray(arrays["x0"]), jnp.asarray(arrays["noise"])
    checked = 0
    for case in meta["cases"]:
        key, cls = case["key"], case["cls"]
        given = arrays.get(f"{key}.t", arrays["t"])
        t = jnp.asarray(given, jnp.int32)
        if cls == "EDMEulerScheduler":  # its timesteps are what the network is told
            found = edm.q_sample(x, edm.sigma_of(jnp.asarray(given, jnp.float32)), eps)
        elif cls in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):  # levels between timesteps, of x / alpha
            sigmas = sigma_grids.of_schedule(schedule_of(cls, case["config"]))
            found = edm.q_sample(x, jnp.asarray(np.interp(given, np.arange(1000), sigmas), jnp.float32), eps)
        else:
            found = process.q_sample(schedule_of(cls, case["config"]), x, t, eps)
        # Their tables are float32 throughout: 1 - alphas_cumprod is off by 1.7e-4 at t = 0 (parity checklist, S5).
        assert relative(found, arrays[f"{key}.x_t"]) < 5e-6, cls
        if f"{key}.velocity" in arrays:
            velocity = process.velocity(schedule_of(cls, case["config"]), x, eps, t)
            assert relative(velocity, arrays[f"{key}.velocity"]) < 5e-6, cls
        checked += 1
    assert checked == len(meta["cases"]) == 12


def test_q_mean_variance_by_hand(x64):
    """A sample of q is its mean and so many standard deviations."""
    s = schedules.linear(10)
    x_0, t = jnp.array([[2.0, -1.0], [0.5, 3.0]]), jnp.array([0, 9])
    mean, variance, log_variance = process.q_mean_variance(s, x_0, t)
    keep = np.cumprod(1 - s.betas_float64)[[0, 9]]
    np.testing.assert_allclose(mean, np.sqrt(keep)[:, None] * x_0, rtol=1e-6)
    np.testing.assert_allclose(variance, 1 - keep[:, None], rtol=1e-6)
    np.testing.assert_allclose(log_variance, np.log(1 - keep)[:, None], rtol=1e-6)
    eps = jnp.ones_like(x_0)
    np.testing.assert_allclose(process.q_sample(s, x_0, t, eps), mean + np.sqrt(variance) * eps, rtol=1e-6)
    assert variance.shape == (2, 1) and process.q_mean_variance(s, x_0[..., None], t).variance.shape == (2, 1, 1)
    with pytest.raises(ValueError, match=r"t must be \[B\] integers, here \[2\]"):
        process.q_mean_variance(s, x_0, t[:1])


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: process.q_sample(S, X_0, T[:3], EPS), r"t must be \[B\] integers, here \[6\], got int32 \(3,\)"),
        (lambda: process.q_sample(S, X_0, T.astype(jnp.float32), EPS), r"t must be \[B\] integers.*got float32"),
        (
            lambda: process.q_sample(S, X_0, T, EPS[:, :2]),
            r"eps must be like x_0, float32 \(6, 4, 4, 3\), got .*2, 4, 3",
        ),
        (lambda: process.q_sample(S, X_0, T, EPS.astype(jnp.bfloat16)), r"eps must be like x_0.*got bfloat16"),
        (
            lambda: process.q_sample(S, X_0.astype(jnp.uint8), T, EPS),
            r"x_0 must be \[B, ...\] floating point, got uint8",
        ),
        (lambda: process.p_step(S, X_T, T, EPS, Z[:1]), r"z must be like x_t"),
        (
            lambda: process.predict(S, X_T, T, EPS, prediction="epsilon"),
            r"unknown prediction 'epsilon'.*known: eps, x_0",
        ),
        (lambda: process.p_step(S, X_T, T, EPS, Z, variance="fixed_smal"), r"did you mean 'fixed_small'\?"),
        (lambda: process.p_step(S, X_T, T, EPS, Z, clip=0.0), r"clip must be positive or None, got 0\.0"),
        (lambda: process.predict(schedules.jsd(300), X_T, T, EPS), r"zero terminal .*use 'v', 'x_0' or 'x_prev'"),
        (lambda: process.predict(schedules.jsd(300), X_T, T, EPS, prediction="score"), r"'score' says nothing"),
        (lambda: process.target(S, X_0, T, EPS, prediction="velocity"), r"unknown prediction 'velocity'"),
        (
            lambda: process.p_step(S, X_T, T, EPS, Z, variance="learned"),
            r"twice as large as x_t along the last axis \(learned variance\), float32 \(6, 4, 4, 6\), got .*4, 4, 3",
        ),
    ],
)
def test_errors_come_while_tracing(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)


def test_schedule_must_be_a_schedule():
    with pytest.raises(TypeError, match="schedule must be a Schedule, got float32\\[6,4,4,3\\]"):
        process.q_sample(X_0, X_0, T, EPS)


def test_docstrings_run():
    assert doctest.testmod(process).failed == 0
