"""Steps regressed onto the teacher's path: least squares, what their table makes, and times searched by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.distil import family, fit, regression
from ddpm_jax.samplers.catalogue import make_table
from tests.distil.common import MEAN, STD, Silent, exact_gaussian, network

SCHEDULE = schedules.linear()
TIMES = family.times_of(SCHEDULE)
KEY = fit.pair_key(0)


def regression_of(scale, num_images=16):
    net = network(scale)
    teacher = make_table("unipc", SCHEDULE, 60, "karras")
    return regression.Regression(net, TIMES, regression.path_of(net, teacher, KEY, 3, num_images, 8), 8)


def rms(images, path):
    return float(np.sqrt(np.mean((images - path.states[-1]) ** 2)))


def test_the_path_is_the_flow_of_a_gaussian():
    """X_t = alpha MEAN + s_t / s_T (X_T - alpha_T MEAN), s^2 = alpha^2 STD^2 + sigma^2: at every level and between."""
    path = regression_of(0.0).path
    assert (np.diff(path.ratios) < 0).all() and path.ratios[-1] == 0
    spread = lambda ratio: np.sqrt(STD**2 + ratio**2)  # s / alpha
    states = MEAN + spread(path.ratios)[:, None] / spread(path.ratios[0]) * (path.states[0] - MEAN).reshape(1, -1)
    np.testing.assert_allclose(path.states.reshape(61, -1), states, atol=1e-3 * path.ratios[0])
    np.testing.assert_allclose(path.states[-1].ravel(), states[-1], atol=2e-3)
    between = 0.5 * (path.ratios[40] + path.ratios[41])
    np.testing.assert_allclose(path.at(between), 0.5 * (path.states[40] + path.states[41]), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(path.at(path.ratios[7]), path.states[7])
    np.testing.assert_array_equal(path.at(0.0), path.states[-1])
    np.testing.assert_array_equal(path.at(2 * path.ratios[0]), path.states[0])


def test_the_path_ends_where_the_teacher_does():
    """Its images, in as many batches; one that is not finite is refused."""
    net, teacher, told = network(0.5), make_table("unipc", SCHEDULE, 60, "karras"), []
    path = regression.path_of(net, teacher, KEY, 3, 16, 8, told.append)
    np.testing.assert_array_equal(path.states[-1], fit.draw(net, teacher, KEY, 3, 16, 8))
    assert told == [8, 8]
    with pytest.raises(FloatingPointError, match="images that are not finite"):
        regression.path_of(network(np.nan), teacher, KEY, 3, 16, 8)


@pytest.mark.parametrize("num_calls", [1, 4])
def test_a_gaussian_is_exact_at_any_times(num_calls):
    """Its flow is affine, and so is X and x_0 with two numbers free: every state is the teacher's."""
    found = regression_of(0.0)
    gaps = np.random.default_rng(num_calls).standard_normal(num_calls + 1)
    numbers, images = found(gaps)
    assert rms(images, found.path) < 1e-3
    table = family.table_of(jax.tree.map(np.float32, numbers), TIMES)
    states = samplers.trajectory(exact_gaussian(jnp.float32(0)), table, KEY, images.shape, first_index=3)[1]
    for state, alpha, sigma in zip(states[1:], table.rows.alpha[1:], table.rows.sigma[1:], strict=True):
        np.testing.assert_allclose(state, alpha * found.path.at(sigma / alpha), atol=2e-3)


@pytest.mark.parametrize("num_calls", [1, 5])
def test_images_are_those_of_its_table(num_calls):
    found = regression_of(0.5)
    gaps = np.random.default_rng(num_calls).standard_normal(num_calls + 1)
    numbers, images = found(gaps)
    np.testing.assert_array_equal(numbers.gaps, gaps)
    table = family.table_of(jax.tree.map(np.float32, numbers), TIMES)
    expected = samplers.sample(exact_gaussian(jnp.float32(0.5)), table, KEY, images.shape, first_index=3)
    np.testing.assert_allclose(images, expected, atol=2e-4)
    assert rms(images, found.path) > 1e-3  # a curved flow, which so few calls do not follow


def test_what_is_left_is_orthogonal_to_what_it_is_regressed_on():
    rng = np.random.default_rng(0)
    basis = [rng.standard_normal((8, 3, 3)) for _ in range(4)]
    coefficients = np.array([1.5, -0.2, 0.0, 3.0])
    inside = np.tensordot(coefficients, np.stack(basis), 1)
    np.testing.assert_allclose(regression._regressed(basis, inside), coefficients, atol=1e-5)
    target = inside + rng.standard_normal(inside.shape)
    left = target - np.tensordot(regression._regressed(basis, target), np.stack(basis), 1)
    assert max(abs(np.vdot(image, left)) for image in basis) < 1e-4 * np.vdot(target, target)
    again = [*basis[:3], basis[0].copy()]  # of two that are equal each has a half, instead of no solution
    np.testing.assert_allclose(regression._regressed(again, basis[0]), [0.5, 0, 0, 0.5], atol=1e-5)


def test_one_searched_time_is_the_best_of_all():
    """With one call there is one time: the search against every time."""
    found, report = regression_of(0.5, 64), Silent()
    loss = lambda images: np.log(np.mean((images - found.path.states[-1]) ** 2, axis=(1, 2, 3)) + fit.FLOOR**2).mean()
    numbers = regression.searched(found, [np.array([999.0])], report)
    times = np.linspace(1, 998, 300)
    every = [loss(found(family.gaps_of(np.array([time]), TIMES))[1]) for time in times]
    reached = loss(found(np.asarray(numbers.gaps))[1])
    assert reached < min(every) + 1e-2
    assert max(every) > min(every) + 0.5  # the time matters
    (begun, total, unit), *rest = [said for said in report.said if isinstance(said, tuple)]
    assert begun == "searching times" and unit == "evaluation" and len(rest) <= total


def test_a_search_ends_nearer_than_the_times_it_begins_with():
    found = regression_of(0.5)
    grids = [make_table("ddim", SCHEDULE, 3, grid).rows.time for grid in ("trailing", "quad")]
    begun = [rms(found(family.gaps_of(times, TIMES))[1], found.path) for times in grids]
    numbers = regression.searched(found, grids, Silent())
    assert rms(found(np.asarray(numbers.gaps))[1], found.path) < min(begun) / 2
    again = regression.searched(regression_of(0.5), grids, Silent())
    jax.tree.map(np.testing.assert_array_equal, numbers, again)


def test_shares_are_of_the_schedules_whole_time():
    """Whose first timestep need not be 0."""
    whole = regression_of(0.5)
    times = family.Times(TIMES.times[5:], TIMES.log_ratios[5:])
    found = regression.Regression(network(0.5), times, whole.path, 8)
    numbers = regression.searched(found, [np.array([999.0, 300.0, 5.0])], Silent())
    assert 5 < np.asarray(family.table_of(numbers, times).rows.time).min()
