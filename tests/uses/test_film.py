"""Progressive predictions: those of the samples that are drawn, in order, and the files that show them."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.uses import film
from tests.uses.common import KEY, smooth

S = schedules.linear(1000)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "unipc"])
def test_predictions_are_those_of_the_samples(name):
    table, shape, seen = make_table(name, S, 6), (2, 3, 3, 1), []
    denoise = samplers.denoiser(smooth)
    rows = film.chosen(table.num_calls, table.num_calls)
    found = film.predictions(denoise, table, KEY, shape, rows, first_index=3)
    drawn, xs = samplers.trajectory(denoise, table, KEY, shape, first_index=3)
    for k in rows:
        alpha, sigma = np.float32(table.rows.alpha[k]), np.float32(table.rows.sigma[k])
        eps = smooth(xs[k], jnp.full(2, table.rows.time[k], jnp.float32))
        np.testing.assert_allclose(found[:, k], (xs[k] - sigma * eps) / alpha, rtol=1e-4, atol=1e-5)
    some = film.predictions(denoise, table, KEY, shape, rows[[0, 3]], first_index=3)
    np.testing.assert_allclose(some, found[:, [0, 3]], atol=1e-6)
    if name in ("ddim", "ddpm"):  # whose last step is to the image that it predicts
        np.testing.assert_allclose(found[:, -1], drawn, atol=1e-5)
    assert not seen


def test_chosen_rows():
    np.testing.assert_array_equal(film.chosen(50, 5), [0, 12, 24, 37, 49])
    np.testing.assert_array_equal(film.chosen(3, 3), [0, 1, 2])
    np.testing.assert_array_equal(film.chosen(7, 1), [6])
    for columns in (0, 8):
        with pytest.raises(ValueError, match=rf"--columns must lie in \[1, 7\].*, got {columns}"):
            film.chosen(7, columns)


def test_files():
    """Lines of the strip are images, columns and frames are steps."""
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 40
    pictures = np.broadcast_to(levels, (2, 3, 4, 4, 1))
    strip = film.strip(pictures)
    assert strip.shape == (2 * 5 + 1, 3 * 5 + 1, 1)
    np.testing.assert_array_equal(strip[2::5, 2::5, 0], levels[..., 0, 0, 0])
    with Image.open(io.BytesIO(film.moving(pictures))) as moving:
        assert moving.n_frames == 3
        for k in range(3):
            moving.seek(k)
            frame = np.asarray(moving.convert("L"))
            np.testing.assert_array_equal(frame[2, 2::5], levels[:, k, 0, 0, 0])
            assert moving.info["duration"] == (1500 if k == 2 else 100)


def test_ddim_of_a_constant_network_predicts_one_image():
    """A network that always says the same x_0."""
    denoise = lambda x, row: samplers.Denoised(jnp.full_like(x, 0.25), (x - 0.25 * row.alpha) / row.sigma)
    found = film.predictions(denoise, samplers.ddim(grids.leading(S, 5)), KEY, (2, 2, 2, 1), np.array([0, 4]))
    np.testing.assert_array_equal(found, np.full((2, 2, 2, 2, 1), 0.25, np.float32))
