"""A sampler run backwards and forwards gives the image, to the rounding of float32, at few steps and with guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.samplers import grids, sigma_grids
from ddpm_jax.samplers.catalogue import CATALOGUE, make_table
from ddpm_jax.uses import inversion
from tests.helpers import mixture_model, relative
from tests.uses.common import KEY, gaussian, smooth

S = schedules.linear(1000)
RANGE = 2.0  # of images in [-1, 1]
MEANS = np.array([[-0.6, 0.4, 0.1, 0.8], [0.5, -0.7, 0.9, -0.2], [0.9, 0.6, -0.5, -0.6]])


def mixture(scale):
    """eps of classes 0 and 1 of three Gaussians against that of all, guided by this scale; images [B, 2, 2, 1]."""
    widths = np.array([0.6, 0.5, 0.7])
    table = {"model_alphas_cumprod": S.alphas_cumprod_float64}
    of = lambda which, weights: mixture_model(
        {"gmm_mu": MEANS[which], "gmm_s": widths[which], "gmm_w": np.array(weights), **table}
    )
    guided = guidance.classifier_free(of([0, 1], [0.4, 0.6]), of([0, 1, 2], [0.3, 0.3, 0.4]), scale=scale)
    return samplers.denoiser(guided)


def there_and_back(denoise, table, x_0):
    found = jax.jit(lambda x_0: inversion.invert(denoise, table, x_0))(x_0)
    inversion.check(found)
    back = jax.jit(lambda x_t: inversion.reconstruct(denoise, table, x_t))(found.x_t)
    return found, np.abs(np.asarray(back) - x_0).max() / RANGE


def some(shape=(3, 2, 2, 1)):
    return jax.random.uniform(KEY, shape, minval=-1)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_round_trip(num_steps, scale):
    denoise, table = mixture(scale), samplers.ddim(grids.leading(S, num_steps))
    pictures = jax.jit(lambda: inversion.reconstruct(denoise, table, jax.random.normal(KEY, (3, 2, 2, 1))))()
    found, error = there_and_back(denoise, table, pictures)
    assert error <= 1e-5
    assert found.error.shape == (3, num_steps) and found.calls.max() < 100


@pytest.mark.parametrize("name", ["ddim", "euler", "fastdpm_step", "fastdpm_var"])
def test_every_deterministic_sampler_of_one_call(name):
    table = make_table(name, S, 10, "karras" if name == "euler" else None)
    _, error = there_and_back(mixture(1.0), table, some())
    assert error <= 1e-5


def test_without_a_closed_form():
    _, error = there_and_back(samplers.denoiser(smooth), samplers.ddim(grids.leading(S, 20)), some())
    assert error <= 1e-5


def test_clipped_pictures():
    """Black and white pixels, where the last row does not depend on X."""
    denoise = samplers.clipped(mixture(1.0), 1.0)
    x_0 = jnp.sign(some()) * jnp.array([1.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    _, error = there_and_back(denoise, samplers.ddim(grids.leading(S, 20)), x_0)
    assert error <= 1e-5


def test_the_noise_of_gaussian_data_is_known():
    """Steps are affine there: X of the first row solves a linear system."""
    mean, covariance = np.array([0.2, -0.1]), np.array([[0.4, 0.2], [0.2, 0.3]])
    grid = grids.leading(S, 20)
    slope, rest = np.eye(2), np.zeros(2)
    for s, t in grid.steps():
        gain = s.alpha * covariance @ np.linalg.inv(s.alpha**2 * covariance + s.sigma**2 * np.eye(2))
        of_x = t.alpha * gain + t.sigma / s.sigma * (np.eye(2) - s.alpha * gain)
        offset = (t.alpha - t.sigma * s.alpha / s.sigma) * (mean - s.alpha * gain @ mean)
        slope, rest = of_x @ slope, of_x @ rest + offset
    x_0 = np.array([[0.5, -0.8], [1.0, 1.0]])
    expected = np.linalg.solve(slope, (x_0 - rest).T).T
    found, error = there_and_back(gaussian(mean, covariance), samplers.ddim(grid), jnp.asarray(x_0, jnp.float32))
    assert relative(found.x_t, expected) < 1e-5 and error < 1e-5


def test_nearer_than_the_usual_inversion():
    """By orders of magnitude; the usual one is of first order in the steps."""
    grid, x_0 = grids.leading(S, 50), some()
    denoise = mixture(1.0)
    _, error = there_and_back(denoise, samplers.ddim(grid), x_0)
    up, down = samplers.ddim_inverse(grid), samplers.ddim(grid)
    run = lambda table, x: inversion.reconstruct(denoise, table, x)
    usual = np.abs(run(down, run(up, x_0)) - x_0).max() / RANGE
    assert usual > 100 * error


def test_what_is_found_does_not_depend_on_the_batch():
    """Up to rounding, which decides how many calls the last digit takes: with jaxlib 0.10.0 others in another batch."""
    table, x_0 = samplers.ddim(grids.leading(S, 10)), some()
    run = jax.jit(lambda x_0: inversion.invert(mixture(3.0), table, x_0))
    whole = run(x_0)
    for i in range(3):
        alone = run(x_0[i : i + 1])
        assert (alone.error[0] <= inversion.TOLERANCE).all() and (whole.error[i] <= inversion.TOLERANCE).all()
        np.testing.assert_allclose(alone.x_t[0], whole.x_t[i], atol=1e-5)


def test_a_row_that_is_implicit_in_nothing():
    """One that keeps X whatever the network says is solved by its first guess."""
    table = samplers.ddim(grids.leading(S, 2))
    update = table.rows.update.copy()
    update[0, 0, -3:-1] = table.rows.alpha[0], table.rows.sigma[0]
    table = table._replace(rows=table.rows._replace(update=update))
    found, _ = there_and_back(samplers.denoiser(smooth), table, some())
    assert (found.calls[:, 0] == 1).all() and (found.calls[:, 1] > 1).all()


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.variance is None])
def test_tables_that_are_refused(name):
    table = make_table(name, S, 5)
    one_register, stochastic = table.rows.update.shape[1] == 1, CATALOGUE[name].stochastic
    if one_register and not stochastic:
        return inversion.check_table(table)
    with pytest.raises(ValueError, match="draws noise" if stochastic else "remembers . more images than X"):
        inversion.check_table(table)


def test_a_table_of_eps_alone_is_refused():
    with pytest.raises(ValueError, match="row 9 of the table makes its image of eps alone"):
        inversion.check_table(samplers.ddim_inverse(grids.leading(S, 10), told="now"))


def test_what_does_not_converge_is_said():
    """An image that the last row cannot make: of a denoiser that only knows one."""
    denoise = lambda x, row: samplers.Denoised(jnp.zeros_like(x), x / row.sigma)
    x_0 = jnp.stack([jnp.zeros((2, 2, 1)), jnp.full((2, 2, 1), 0.5)])
    found = inversion.invert(denoise, samplers.ddim(grids.trailing(S, 3)), x_0, most=20)
    with pytest.raises(
        FloatingPointError, match=r"not converged for 1 of 2 images, first image 1: row 2 of image 1 is off by 0\.5"
    ):
        inversion.check(found, most=20)
    assert found.calls[1, 2] == 20 and found.calls[0, 2] == 1


def test_numbers_that_are_none_do_not_pass():
    found = inversion.Inverted(jnp.zeros((1, 2)), jnp.array([[0.0, jnp.nan]]), jnp.ones((1, 2), jnp.int32))
    with pytest.raises(FloatingPointError, match="row 1 of image 0 is off by nan"):
        inversion.check(found)


def test_it_runs_on_a_karras_grid_without_the_clean_level():
    """A grid that ends at the lowest level of the training, not at the clean image."""
    grid = samplers.Grid(sigma_grids.karras(S, 10).levels[:-1])
    _, error = there_and_back(mixture(1.0), samplers.euler(grid), some())
    assert error <= 1e-5
