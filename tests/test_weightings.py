import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, process, schedules, weightings

S = schedules.linear(300)
ZERO = schedules.zero_terminal_snr(S)
T = jnp.arange(300)
SNR = S.alphas_cumprod_float64 / S.one_minus_alphas_cumprod_float64
PREDICTIONS = ("eps", "x_0", "v", "x_prev", "score")
ARGUMENTS = {
    "min_snr": {"gamma": 3.0},
    "p2": {"k": 0.5, "gamma": 1.5},
    "sigmoid": {"bias": -1.0},
    "edm": {"sigma_data": 0.7},
}
SHARED = [name for name in weightings.NAMES if name != "uniform"]


@pytest.mark.parametrize("name", SHARED)
def test_the_weighted_loss_does_not_depend_on_what_is_predicted(name, x64):
    """weight x loss of eps, v, x_prev, score = weight x squared error of x_0, for one and the same wrong x_0."""
    rng = np.random.RandomState(0)
    x_0, eps, wrong = (jnp.asarray(rng.randn(300, 8)) for _ in range(3))
    x_t = process.q_sample(S, x_0, T, eps)
    weight = weightings.make(name, **ARGUMENTS.get(name, {}))
    eps_of = process.predict(S, x_t, T, wrong, prediction="x_0").eps  # of the wrong x_0, at the same x_t
    found = {}
    for prediction in PREDICTIONS:
        output = process.target(S, wrong, T, eps_of, prediction=prediction)
        losses = objectives.simple(lambda x, t, output=output: output, S, x_0, T, eps, prediction=prediction)
        found[prediction] = np.asarray(weight(S, T, prediction)) * np.asarray(losses)
    for prediction in PREDICTIONS:
        # float32 tables; x_prev takes the difference of two means.
        np.testing.assert_allclose(found[prediction], found["x_0"], rtol=1e-4 if prediction == "x_prev" else 1e-5)


@pytest.mark.parametrize(
    "name, arguments, prediction, expected",
    [
        ("uniform", {}, "eps", 1 + 0 * SNR),
        ("uniform", {}, "v", 1 + 0 * SNR),
        ("snr", {}, "x_0", SNR),
        ("snr", {}, "eps", 1 + 0 * SNR),
        ("truncated_snr", {}, "x_0", np.maximum(SNR, 1)),
        ("truncated_snr", {}, "eps", np.maximum(1, 1 / SNR)),
        ("min_snr", {"gamma": 5.0}, "eps", np.minimum(SNR, 5) / SNR),
        ("min_snr", {"gamma": 5.0}, "x_0", np.minimum(SNR, 5)),
        ("min_snr", {"gamma": 5.0}, "v", np.minimum(SNR, 5) / (SNR + 1)),
        ("p2", {"k": 1.0, "gamma": 0.5}, "eps", 1 / (1 + SNR) ** 0.5),
        ("sigmoid", {"bias": 2.0}, "eps", 1 / (1 + np.exp(np.log(SNR) - 2.0))),
        ("edm", {"sigma_data": 0.5}, "x_0", (1 / SNR + 0.25) / (0.25 / SNR)),
        ("edm", {"sigma_data": 1.0}, "v", 1 + 0 * SNR),
    ],
)
def test_formulas_of_the_papers(name, arguments, prediction, expected):
    found = weightings.make(name, **arguments)(S, T, prediction)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", weightings.NAMES)
@pytest.mark.parametrize("schedule", [S, ZERO, schedules.jsd(300), schedules.cosine(300)])
def test_both_ends_are_finite_or_refused(name, schedule):
    zero = schedule.betas_float64[-1] == 1
    for prediction in PREDICTIONS:
        weight = weightings.make(name)
        if zero and prediction in ("eps", "score") and name in ("truncated_snr", "edm"):
            with pytest.raises(
                ValueError, match=rf"'{prediction}' is infinite at t = 299, where .* zero signal-to-noise"
            ):
                weight(schedule, T, prediction)
        else:
            found = weight(schedule, T, prediction)
            assert np.isfinite(found).all() and (np.asarray(found) >= 0).all()


def test_limits_at_zero_snr():
    end = jnp.array([299])
    at = lambda name, prediction: float(weightings.make(name)(ZERO, end, prediction)[0])
    assert at("min_snr", "eps") == at("snr", "eps") == at("p2", "eps") == at("sigmoid", "eps") == 1
    assert at("min_snr", "v") == at("snr", "x_0") == at("p2", "v") == 0
    assert at("truncated_snr", "x_0") == at("truncated_snr", "v") == 1
    assert at("edm", "v") == at("edm", "x_0") == 4  # 1 / sigma_data^2


def test_a_weight_can_be_traced():
    weight = weightings.make("min_snr")
    found = jax.jit(lambda s, t: weight(s, t, "v"))(S, T)
    np.testing.assert_array_equal(found, weight(S, T, "v"))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: weightings.make("minsnr"),
            r"unknown weighting 'minsnr'; did you mean 'min_snr'\? \(known: uniform, snr",
        ),
        (lambda: weightings.make("min_snr", gama=5.0), r"weighting 'min_snr' takes gamma, got 'gama'"),
        (lambda: weightings.make("snr", gamma=5.0), r"weighting 'snr' takes no arguments, got 'gamma'"),
        (lambda: weightings.make("min_snr", gamma=0.0), r"gamma must be positive, got 0\.0"),
        (lambda: weightings.make("p2", k=0.0), r"k must be positive, got 0\.0"),
        (lambda: weightings.make("edm", sigma_data=-1.0), r"sigma_data must be positive, got -1\.0"),
        (lambda: weightings.make("snr")(S, T, "noise"), r"unknown prediction 'noise'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
