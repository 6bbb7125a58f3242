"""The whole bound against OpenAI's calc_bpd_loop and, for Gaussian data, against the true likelihood."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, process, samplers, schedules
from ddpm_jax.evaluate import vlb_terms
from ddpm_jax.evaluate.likelihood import table
from ddpm_jax.samplers import grids
from tests.helpers import GOLDEN, affine_model, gaussian_model, golden, mixture_model, relative, with_variance

FILES = sorted(path.stem for path in (GOLDEN / "openai").glob("bpd_*.npz"))
SCHEDULES = {
    "linear": schedules.linear_rescaled,
    "cosine": schedules.cosine,
    "squaredcos_cap_v2": schedules.cosine,
}
PREDICTIONS = {"EPSILON": "eps", "START_X": "x_0", "PREVIOUS_X": "x_prev"}


def network_of(arrays, meta):
    """The recorded network in NCHW; what it says of the variance follows along the last axis."""
    variance = meta["model_var_type"].lower()
    if "M" not in arrays:
        model = mixture_model(arrays, PREDICTIONS[meta["model_mean_type"]], meta["time_scale"])
        return with_variance(model, meta) if variance in process.LEARNED else model
    halves = [{name: arrays[name][rows] for name in "Mub"} for rows in (slice(0, 3), slice(3, 6))]
    models = [affine_model(half) for half in halves if len(half["b"])]
    return lambda x, t: jnp.concatenate([model(x, t) for model in models], axis=-1)


def run_of(name):
    """(arrays, schedule, terms of x_start and noise) of a recorded run, in the default float of the test."""
    arrays, meta = golden(f"openai/{name}")
    prediction, variance = PREDICTIONS[meta["model_mean_type"]], meta["model_var_type"].lower()
    model = network_of(arrays, meta)
    scale = 1000 / meta["T"] if meta["rescale_timesteps"] else 1.0
    steps = grids.section_timesteps(meta["T"], meta["section_counts"])
    np.testing.assert_array_equal(steps, arrays["timestep_map"])
    schedule = schedules.respace(SCHEDULES[meta["schedule"]](meta["T"]), steps)
    terms = jax.jit(
        lambda x_0, noise: vlb_terms(
            lambda x, t: model(x, t * scale),
            schedule,
            x_0,
            noise=noise,
            prediction=prediction,
            variance=variance,
            clip=1.0 if meta["clip_denoised"] else None,
        )
    )
    # The file's order is that of the reference's loop, from T - 1 down.
    return arrays, schedule, terms(jnp.asarray(arrays["x_start"], float), jnp.asarray(arrays["noise"][::-1], float))


def check(name, tolerance):
    """Every number of the file within tolerance of its largest, but for what float32 took from the reference."""
    arrays, schedule, terms = run_of(name)
    assert relative(terms.bits_per_dim[:, ::-1], arrays["vb"]) < tolerance
    assert relative(terms.eps_mse[:, ::-1], arrays["mse"]) < tolerance
    assert relative(terms.total_bits_per_dim, arrays["total_bpd"]) < tolerance
    # The reference rounds eps, of size 1, to 2^-24; in pred_x_0 that is sigma/alpha times as much: 1e-3 at the last
    # step of the cosine schedule, nothing elsewhere (the file's own sensitivity to 1e-6 there is 6e-3).
    keep, noise = schedule.alphas_cumprod_float64, schedule.one_minus_alphas_cumprod_float64
    allowed = tolerance + 2.0**-23 * np.sqrt(noise / keep)[::-1]
    wrong = np.abs(np.asarray(terms.x_0_mse, np.float64)[:, ::-1] - arrays["xstart_mse"]).max(axis=0)
    assert (wrong < allowed * arrays["xstart_mse"].max()).all()
    # The prior is a sum of terms near 1 nat, whose last digits float32 took. At 1e-6 bits that is all of
    # (-1 - log_variance + variance) / 2, here 4e-10 nats; mean^2 / 2, which is left, agrees.
    prior = np.asarray(terms.prior_bits_per_dim, np.float64)
    variance_part = (-1 - np.log(noise[-1]) + noise[-1]) / 2 / np.log(2)
    assert np.abs(prior - arrays["prior_bpd"]).max() < tolerance * arrays["prior_bpd"].max() + 2.0**-23
    if variance_part < 2.0**-26:
        assert relative(prior - variance_part, arrays["prior_bpd"]) < tolerance


def test_all_files_are_here():
    assert len(FILES) >= 4


@pytest.mark.parametrize("name", FILES)
def test_openai_in_float64(name, x64):
    check(name, 1e-5)


@pytest.mark.parametrize("name", FILES)
def test_openai_in_float32(name, highest):
    check(name, 1e-4)


# ------------------------------------------------------------------------------------------------ against its own terms

SHORT = schedules.linear_rescaled(30)
IMAGES = jnp.asarray(np.random.RandomState(0).randint(0, 256, (6, 4, 4, 3)) / 127.5 - 1, jnp.float32)
KEY = jax.random.key(7)


def network(prediction, variance, schedule):
    """Says the same of x_0 and eps whatever it is trained to predict, and something of the variance."""

    def model_fn(x, t):
        index = jnp.searchsorted(schedule.timesteps.astype(t.dtype), t).astype(jnp.int32)
        alpha = schedule.sqrt_alphas_cumprod[index].reshape(-1, 1, 1, 1).astype(x.dtype)
        sigma = schedule.sqrt_one_minus_alphas_cumprod[index].reshape(-1, 1, 1, 1).astype(x.dtype)
        x_0 = jnp.tanh(2 * x)
        output = process.target(schedule, x_0, index, (x - alpha * x_0) / sigma, prediction=prediction)
        learned = {"learned": jnp.log(sigma**2) + 0 * x, "learned_range": jnp.sin(5 * x)}
        return jnp.concatenate([output, learned[variance]], -1) if variance in learned else output

    return model_fn


@functools.partial(jax.jit, static_argnames=("prediction", "variance", "clip"))
def terms_of(x_0, first_index=0, *, prediction="eps", variance="fixed_large", clip=1.0):
    model_fn = network(prediction, variance, SHORT)
    return vlb_terms(
        model_fn, SHORT, x_0, KEY, prediction=prediction, variance=variance, clip=clip, first_index=first_index
    )


def test_every_prediction_of_the_same_x_0_has_the_same_bound(x64):
    x_0 = IMAGES.astype(float)
    reference = terms_of(x_0, prediction="x_0", variance="learned_range")
    assert float(reference.total_bits_per_dim.min()) > 1
    for prediction in get_args(process.PredictionType):
        found = terms_of(x_0, prediction=prediction, variance="learned_range")
        for name, a, b in zip(found._fields, found, reference, strict=True):
            # The tables are float32, and pred_x_0 from eps has them times sigma/alpha, at most 157 here.
            assert relative(a, b) < (5e-5 if name == "x_0_mse" else 3e-6), (prediction, name)


def test_the_scan_is_the_single_terms():
    terms = terms_of(IMAGES, variance="learned_range", clip=None)
    model_fn = network("eps", "learned_range", SHORT)

    @jax.jit
    def single(t):
        key_of = lambda i: jax.random.fold_in(jax.random.fold_in(KEY, i), t[0])
        draw = lambda i: jax.random.normal(key_of(i), IMAGES.shape[1:])
        eps = jax.vmap(draw)(jnp.arange(6, dtype=jnp.uint32))
        bits = objectives.vlb(model_fn, SHORT, IMAGES, t, eps, variance="learned_range")
        x_t = process.q_sample(SHORT, IMAGES, t, eps)
        pred = process.predict(SHORT, x_t, t, model_fn(x_t, t.astype(jnp.float32))[..., :3])
        return bits, *(objectives.mean_over_pixels(a**2) for a in (IMAGES - pred.x_0, eps - pred.eps, pred.eps))

    names = ("bits_per_dim", "x_0_mse", "eps_mse", "pred_eps_square")
    for t in (0, 1, 17, 29):
        for name, expected in zip(names, single(jnp.full(6, t, jnp.int32)), strict=True):
            np.testing.assert_allclose(getattr(terms, name)[:, t], expected, rtol=1e-3, err_msg=name)


def test_examples_do_not_depend_on_their_batch():
    whole = terms_of(IMAGES)
    part = terms_of(IMAGES[2:], 2)
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_allclose(a, b[2:], rtol=1e-5)
    assert not np.allclose(terms_of(IMAGES, 1).bits_per_dim, whole.bits_per_dim, rtol=1e-2)


def test_a_strided_process_sees_the_same_noise():
    model_fn, whole = network("x_0", "fixed_large", SHORT), terms_of(IMAGES, prediction="x_0")
    strided = schedules.respace(SHORT, [0, 9, 29])
    found = jax.jit(lambda x_0: vlb_terms(model_fn, strided, x_0, KEY, prediction="x_0"))(IMAGES)
    assert found.bits_per_dim.shape == (6, 3)
    np.testing.assert_allclose(found.x_0_mse[:, 1:], whole.x_0_mse[:, jnp.array([9, 29])], rtol=1e-4)


def test_v_at_zero_terminal_snr_has_a_bound(x64):
    """x_T is noise alone and the prior exactly 0; v says of x_0 what -v is, and L_{T-1} is an ordinary KL."""
    schedule = schedules.zero_terminal_snr(schedules.linear_rescaled(30))
    x_0 = IMAGES.astype(float)
    noise = jax.random.normal(KEY, (30, *x_0.shape), float)
    model_fn = network("v", "fixed_large", schedule)
    found = jax.jit(lambda x_0: vlb_terms(model_fn, schedule, x_0, noise=noise, prediction="v", clip=None))(x_0)
    assert all(np.isfinite(column).all() for column in found)
    np.testing.assert_allclose(found.prior_bits_per_dim, 0, atol=1e-12)
    np.testing.assert_array_equal(found.eps_mse[:, -1], 0)
    # q(x_{T-2} | x_{T-1}, x_0) = N(alpha x_0, sigma^2): x_{T-1} says nothing.
    keep = schedule.alphas_cumprod_float64[-2]
    ratio = 1 / (1 - keep)  # p's variance is beta = 1
    error = np.asarray((x_0 - jnp.tanh(2 * noise[-1])) ** 2).mean(axis=(1, 2, 3))
    nats = (np.log(ratio) + (1 + keep / (1 - keep) * error) / ratio - 1) / 2
    np.testing.assert_allclose(found.bits_per_dim[:, -1], nats / np.log(2), rtol=1e-5)


def test_the_score_of_gaussian_data():
    """E |score|^2 / d = 1 / (ac v + 1 - ac), and with it analytic_variances is the variance of q(x_{t-1} | x_t)."""
    mean, variance, schedule = 0.1, 0.04, schedules.linear_rescaled(50)
    x_0 = mean + variance**0.5 * jax.random.normal(jax.random.key(1), (1000, 8, 8, 1))
    model_fn = gaussian_model(schedule, mean, variance)
    found = jax.jit(lambda x_0: vlb_terms(model_fn, schedule, x_0, KEY))(jnp.clip(x_0, -1, 1))
    keep, noise = schedule.alphas_cumprod_float64, schedule.one_minus_alphas_cumprod_float64
    square = np.asarray(found.pred_eps_square, np.float64)
    error = square.std(axis=0) / 1000**0.5
    assert (np.abs(square.mean(axis=0) - noise / (keep * variance + noise)) < 5 * error).all()
    gammas = table.score_square(schedule, square.mean(axis=0))
    grid = grids.from_timesteps(schedule, np.arange(50)[::-1])
    analytic = np.array(samplers.analytic_variances(grid, gammas[::-1]))[-2::-1]  # of t = 1 .. T-1
    before, beta = keep[:-1] * variance + noise[:-1], schedule.betas_float64[1:]
    np.testing.assert_allclose(analytic, 1 / (1 / before + (1 - beta) / beta), rtol=0.01)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"key": None}, "key must not be None unless noise is given"),
        ({"noise": jnp.zeros((29, 6, 4, 4, 3))}, r"noise must be float32 \(30, 6, 4, 4, 3\), got float32 \(29, 6"),
        ({"x_0": IMAGES * 1.5}, r"x_0 must lie in \[-1, 1\], got values in \[-1.5, 1.4"),
        ({"variance": "learned_range"}, r"output must be twice as large as x_t along the last axis \(learned_range"),
        ({"variance": "larned"}, "unknown variance 'larned'; did you mean 'learned'"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon'; did you mean 'eps'"),
        ({"clip": 0.0}, "clip must be positive or None, got 0"),
        ({"schedule": schedules.zero_terminal_snr(SHORT)}, "'eps' says nothing about x_0 at zero terminal"),
    ],
)
def test_errors(arguments, message):
    arguments = {"schedule": SHORT, "x_0": IMAGES, "key": KEY, "model_fn": lambda x, t: x} | arguments
    with pytest.raises(ValueError, match=message):
        vlb_terms(**arguments)
