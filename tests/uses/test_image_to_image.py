"""From a picture with the noise of step k on: how many steps, from which level, and what comes out of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import process, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.uses import image_to_image
from tests.helpers import trained_of
from tests.uses.common import KEY, gaussian, smooth, within

S = schedules.linear(1000)
DDIM = {"_class_name": "DDIMScheduler"}


def network(**settings):
    return trained_of(**{"model": None, "params": {}, "image_shape": (4, 4, 1), "schedule": S, "sampler": "ddim"}
                      | settings)  # fmt: skip


@pytest.mark.parametrize(
    "num_steps, strength, count",
    [(50, 1.0, 50), (50, 0.5, 25), (50, 0.02, 1), (10, 0.99, 9), (7, 0.5, 3), (1, 1.0, 1), (50, 0.58, 28)],
)
def test_steps_that_are_run(num_steps, strength, count):
    """As diffusers counts them; 50 times 0.58 is 28.999999999999996."""
    assert image_to_image.steps_run(num_steps, strength) == count


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan")])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match=r"--strength must lie in \(0, 1\], got "):
        image_to_image.steps_run(50, strength)


def test_strength_of_no_step():
    with pytest.raises(ValueError, match=r"--strength 0\.05 of 10 steps is less than one: at least 0\.1"):
        image_to_image.steps_run(10, 0.05)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "unipc", "heun", None])
def test_strength_1_is_the_whole_table(sampler):
    trained = network()
    whole = image_to_image.preset(trained, 1.0, sampler, 10).table
    assert whole.first is None
    rest = image_to_image.preset(trained, 0.4, sampler, 10).table
    calls = 2 if sampler == "heun" else 1
    assert int(rest.first) == 6 * calls and rest.num_calls == whole.num_calls - 6 * calls
    assert rest.rows.sigma[0] == whole.rows.sigma[6 * calls]


@pytest.mark.parametrize("grid, num_steps, steps", [("uniform", 7, 8), ("quad", 50, 49)])
def test_a_grid_with_another_number_of_steps(grid, num_steps, steps):
    """The fraction is of the steps that there are."""
    rest = image_to_image.preset(network(), 0.5, "ddim", num_steps, grid).table
    assert rest.num_calls == steps // 2
    assert image_to_image.preset(network(), 1.0, "ddim", num_steps, grid).table.num_calls == steps


def test_the_scheduler_of_a_folder_begins_where_diffusers_does():
    """get_timesteps of the pipelines: timesteps[N - int(N strength):]."""
    trained = network(scheduler_config=DDIM)
    times = image_to_image.preset(trained, 0.3, None, 20).table.rows.time
    np.testing.assert_array_equal(times, trained.default_sampler(20).table.rows.time[14:])


@pytest.mark.parametrize("name, learns", [("DDPMScheduler", True), ("DDIMScheduler", False)])
def test_a_learned_variance_and_the_scheduler(name, learns):
    config = {"_class_name": name, "variance_type": "learned_range"}
    trained = network(scheduler_config=config, variance="learned_range")
    rows = image_to_image.preset(trained, 0.5, None, 10).table.rows
    np.testing.assert_array_equal(rows.update, trained.default_sampler(10).table.rows.update[5:])
    assert rows.spread.any() == learns


@pytest.mark.parametrize(
    "settings, words, message",
    [
        ({"scheduler_config": {"_class_name": "PNDMScheduler"}}, {}, "PNDMScheduler, cannot begin in the middle .*0.5"),
        ({"scheduler_config": DDIM}, {"grid": "karras"}, "give --sampler together with --grid karras"),
        ({}, {"sampler": "ddmi"}, "unknown sampler 'ddmi'; did you mean 'ddpm'"),
        ({}, {"grid": "karas"}, "unknown grid 'karas'"),
    ],
)
def test_what_is_refused(settings, words, message):
    with pytest.raises(ValueError, match=message):
        image_to_image.preset(network(**settings), 0.5, **words)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm_solver_pp_2m"])
def test_it_begins_at_the_level_that_it_denoises_from(sampler):
    """A network that knows eps sends x_k = q_sample(x_0) back to x_0, and no other x does."""
    table, _ = image_to_image.preset(network(), 0.5, sampler, 10)
    shape = (3, 4, 4, 1)
    x_0 = jax.random.uniform(jax.random.key(9), shape, minval=-1)
    eps = image_to_image.start_noise(KEY, shape)
    denoise = lambda x, row: samplers.Denoised((x - row.sigma * eps) / row.alpha, eps)
    table = table._replace(rows=table.rows._replace(update=table.rows.update * [*np.ones(table_width(table)), 0.0]))
    found = image_to_image.image_to_image(denoise, table, KEY, x_0)
    np.testing.assert_allclose(found, x_0, atol=2e-5)
    if sampler == "ddim":  # whose times are those of the schedule
        at = process.q_sample(S, x_0, jnp.full(3, int(table.rows.time[0])), eps)
        np.testing.assert_allclose(image_to_image.noised(table, x_0, eps), at, atol=1e-6)


def table_width(table):
    """Columns of an update but the last, which is that of the noise."""
    return table.rows.update.shape[-1] - 1


def test_strength_1_begins_as_sample_does():
    """But for what is left of x_0 at the first level: the same noise, of the same key, for every index."""
    table, shape = samplers.ddim(grids.leading(S, 5)), (4, 4, 4, 1)
    denoise = samplers.denoiser(smooth)
    nothing = jnp.zeros(shape)
    found = image_to_image.image_to_image(denoise, table, KEY, nothing, first_index=7)
    sigma = np.float32(table.rows.sigma[0])
    x_T = image_to_image.start_noise(KEY, shape, 7)
    np.testing.assert_array_equal(found, samplers.sample(denoise, table, KEY, shape, x_t=sigma * x_T))
    level = samplers.grids.Grid((samplers.Level(0.0, 0.0, 1.0), samplers.Level(0.0, 1.0, 0.0)))
    drawn = samplers.sample(lambda x, row: samplers.Denoised(x, x), samplers.ddim(level), KEY, shape, first_index=7)
    np.testing.assert_array_equal(drawn, x_T)


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_closed_form_on_gaussian_data(strength):
    """Each ddim step is affine with the exact denoiser, so x_0' given x_0 is Gaussian: N(slope x_0 + rest, ...)."""
    mean, covariance = np.array([0.3, -0.2]), np.array([[0.5, 0.3], [0.3, 0.4]])
    x_0 = np.array([1.0, 0.5])
    grid = grids.leading(S, 20)
    start = 20 - image_to_image.steps_run(20, strength)
    table = samplers.start_at(samplers.ddim, grid, start)
    first = grid.levels[start]
    m, root = first.alpha * x_0, first.sigma * np.eye(2)
    for s, t in grid.steps()[start:]:
        gain = s.alpha * covariance @ np.linalg.inv(s.alpha**2 * covariance + s.sigma**2 * np.eye(2))
        slope = t.alpha * gain + t.sigma / s.sigma * (np.eye(2) - s.alpha * gain)
        rest = (t.alpha - t.sigma * s.alpha / s.sigma) * (mean - s.alpha * gain @ mean)
        m, root = slope @ m + rest, slope @ root
    given = jnp.broadcast_to(jnp.asarray(x_0, jnp.float32), (50_000, 2))
    run = jax.jit(lambda: image_to_image.image_to_image(gaussian(mean, covariance), table, KEY, given))
    assert within(run(), m, root @ root.T)


def test_the_less_strength_the_nearer():
    x_0 = jax.random.uniform(jax.random.key(9), (8, 4, 4, 1), minval=-1)
    far = []
    for strength in (0.1, 0.4, 1.0):
        table, denoiser = image_to_image.preset(network(prediction="eps"), strength, "ddim", 20)
        far.append(float(jnp.abs(image_to_image.image_to_image(denoiser(smooth), table, KEY, x_0) - x_0).mean()))
    assert far[0] < far[1] / 1.5 < far[2]
