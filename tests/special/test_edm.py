import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import objectives, schedules
from ddpm_jax.special import edm
from tests.helpers import golden, mixture_model, relative

SCALINGS = {"edm": edm.edm, "vp": edm.vp, "ve": edm.ve, "iddpm": edm.iddpm}


@pytest.fixture(params=["float32", "float64"])
def tolerance(request):
    with jax.enable_x64(request.param == "float64"):
        yield {"float32": 1e-4, "float64": 1e-5}[request.param]


@pytest.mark.parametrize("case", SCALINGS)
def test_preconditioning_of_the_edm_code(case, tolerance):
    arrays, _ = golden("other/edm_preconditioning")
    x, sigma = jnp.asarray(arrays[f"{case}.x"], float), jnp.asarray(arrays[f"{case}.sigma"], float)
    told = []

    def model_fn(x, time):
        told.extend((x, time))
        return x if case == "iddpm" else 0.5 * x + 0.1

    if case == "iddpm":
        # Their recursion takes square roots of float32 differences near 0: an absolute error, of the root of 1e-11.
        np.testing.assert_allclose(edm.iddpm_table(), arrays["iddpm.u"], rtol=2e-6, atol=5e-6)
    found = edm.preconditioned(model_fn, SCALINGS[case])(x, sigma)
    # x - sigma F(c_in x) nearly cancels with this F, the identity: the reference's rounding is of the size of x.
    size = np.abs(x).max() / np.abs(arrays["iddpm.denoised"]).max() if case == "iddpm" else 1
    assert relative(found, arrays[f"{case}.denoised"]) < size * tolerance / 10
    assert relative(told[0], arrays[f"{case}.inner_x"]) < tolerance / 10
    assert relative(told[1], arrays[f"{case}.c_noise"]) < tolerance / 10


@pytest.mark.parametrize("case", ["edm", "vp", "ve"])
def test_losses_of_the_edm_code(case, tolerance):
    arrays, _ = golden("other/edm_losses")
    mixture = {name: arrays[f"{case}.gmm_{name}"] for name in ("mu", "s", "w")}
    x_0, eps = jnp.asarray(arrays["images"], float), jnp.asarray(arrays[f"{case}.noise"], float)
    sigma = jnp.asarray(arrays[f"{case}.sigma"].ravel(), float)
    if case == "edm":
        normal = jnp.asarray(arrays["edm.rnd_normal"].ravel(), float)
        np.testing.assert_allclose(edm.lognormal_sigma(normal), sigma, rtol=1e-6)
    weight = edm.edm_weight(sigma) if case == "edm" else 1 / sigma**2
    denoise = exact_denoiser(mixture)
    found = edm.loss(denoise, x_0, sigma, eps, weight)
    # (D - x_0) cancels where sigma is small: the weight 1 / sigma^2 is up to 900 times the rounding of x_0 squared.
    assert relative(found, arrays[f"{case}.loss"].astype(np.float64).mean((1, 2, 3))) < tolerance


def exact_denoiser(mixture):
    """Den(x; sigma) of the golden file: the mixture's x_0 at x / sqrt(1 + sigma^2), where ac = 1 / (1 + sigma^2)."""

    def denoise(x, sigma):
        arrays = {f"gmm_{name}": value for name, value in mixture.items()}
        model_fn = mixture_model(arrays, "x_0", alphas_cumprod=lambda s: 1 / (1 + s**2))
        return model_fn(x / jnp.sqrt(1 + sigma**2).reshape(-1, 1, 1, 1), sigma)

    return denoise


def test_c_out_undoes_the_weight():
    sigma = jnp.logspace(-3, 2, 20)
    for sigma_data in (0.5, 1.0):
        c = edm.edm(sigma, sigma_data=sigma_data)
        np.testing.assert_allclose(edm.edm_weight(sigma, sigma_data=sigma_data) * c.c_out**2, np.ones(20), rtol=1e-5)
        np.testing.assert_allclose(c.c_in**2 * (sigma**2 + sigma_data**2), np.ones(20), rtol=1e-5)


def test_on_a_schedule_it_is_the_same_loss_told_another_time(x64):
    """objectives.edm at level t = edm.loss at sigma_t = sqrt((1 - ac) / ac), but for what the network is told."""
    s, t = schedules.linear(100), jnp.array([0, 1, 50, 99])
    rng = np.random.RandomState(0)
    x_0, eps, matrix = jnp.asarray(rng.rand(4, 3)), jnp.asarray(rng.randn(4, 3)), jnp.asarray(rng.randn(3, 3))
    model_fn = lambda x, t: x @ matrix
    sigma = jnp.asarray(np.sqrt(s.one_minus_alphas_cumprod_float64 / s.alphas_cumprod_float64))[t]
    denoise = edm.preconditioned(model_fn, functools.partial(edm.edm, sigma_data=0.7))
    expected = edm.loss(denoise, x_0, sigma, eps, edm.edm_weight(sigma, sigma_data=0.7))
    np.testing.assert_allclose(objectives.edm(model_fn, s, x_0, t, eps, sigma_data=0.7), expected, rtol=1e-5)


def test_a_network_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"output must be like x, \(2, 3\), got \(2, 6\)"):
        edm.preconditioned(lambda x, t: jnp.concatenate([x, x], -1))(jnp.ones((2, 3)), jnp.ones(2))


@pytest.mark.parametrize("case, draw", [("vp", edm.vp_sigma), ("ve", edm.ve_sigma)])
def test_draws_of_sigma_of_the_edm_code(case, draw, tolerance):
    """The recorded sigmas are those of some numbers in [0, 1), evenly spread; ends and middle by hand."""
    sigma = golden("other/edm_losses")[0][f"{case}.sigma"].ravel().astype(np.float64)
    if case == "vp":
        t = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(sigma**2)) - 0.1) / 19.9
        uniform = (1 - t) / (1 - 1e-5)
        ends = np.sqrt(np.expm1(19.9 / 2 * np.array([1, 0.500005]) ** 2 + 0.1 * np.array([1, 0.500005])))
        last = np.sqrt(1e-6)  # beta_min t where t is small
    else:
        uniform = np.log(sigma / 0.02) / np.log(100 / 0.02)
        ends, last = [0.02, np.sqrt(2)], 100.0
    assert ((uniform >= 0) & (uniform < 1)).all() and np.ptp(uniform) > 0.3
    np.testing.assert_allclose(draw(jnp.asarray(uniform, float)), sigma, rtol=tolerance)
    np.testing.assert_allclose(draw(jnp.array([0.0, 0.5])), ends, rtol=tolerance)
    np.testing.assert_allclose(draw(jnp.array([1.0])), last, rtol=2e-3)


def test_other_constants_of_the_draws():
    uniform = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(edm.ve_sigma(uniform, sigma_min=0.1, sigma_max=7), [0.1, 7], rtol=1e-6)
    found = edm.vp_sigma(uniform, beta_d=2, beta_min=1, time_min=0.5)
    np.testing.assert_allclose(found, np.sqrt(np.expm1([2, 0.75])), rtol=1e-6)


def test_noise_at_any_level_and_what_it_is_told():
    x_0, eps = jnp.ones((2, 3, 1)), jnp.arange(6.0).reshape(2, 3, 1)
    sigma = jnp.array([0.0, 80.0])
    np.testing.assert_allclose(edm.q_sample(x_0, sigma, eps)[:, :, 0], [[1, 1, 1], [241, 321, 401]])
    np.testing.assert_allclose(edm.sigma_of(edm.edm(sigma[1:]).c_noise), [80], rtol=1e-6)
    for wrong in (eps[:1], eps[:, :2]):
        with pytest.raises(ValueError, match=r"eps must be like x_0, \(2, 3, 1\)"):
            edm.q_sample(x_0, sigma, wrong)
    with pytest.raises(ValueError, match=r"sigma \[B\] of it, got \(2, 3, 1\) and \(1,\)"):
        edm.q_sample(x_0, sigma[:1], eps)
