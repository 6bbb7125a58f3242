"""The family of tables that are learned: every hand-made one is in it, and its numbers come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.distil import family, start
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.samplers.grids import sigma_grids

SCHEDULE = schedules.linear()
TIMES = family.times_of(SCHEDULE)


@pytest.mark.parametrize(
    "name, grid",
    [
        ("ddim", "sections"), ("unipc", "time_quadratic"), ("unipc_3", "karras"), ("dpm_solver_pp_3m", "trailing"),
        ("deis", "quad"), ("ipndm", "linspace"), ("lms", "exponential"), ("dpm_solver_2", "log_snr_uniform"),
        ("dpm_solver_3", "time_uniform"), ("dpm2", "karras"),
    ],
)  # fmt: skip
def test_every_table_without_noise_is_one_of_the_family(name, grid, x64):
    """Numbers from a table, and a table from them: X after each call is the same sum of x_T and x_0's."""
    tables = [make_table(name, SCHEDULE, n, grid) for n in (1, 3, 6)]
    for table in tables:
        numbers = family.numbers_of(table, SCHEDULE)
        again = family.table_of(jax.tree.map(jnp.asarray, numbers), TIMES)
        expected = family._unrolled(table)
        found = family._unrolled(jax.tree.map(np.asarray, again))
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
        # A time at an end of the schedule is moved by less than a gap's least size.
        np.testing.assert_allclose(again.rows.time, table.rows.time, atol=2 * 999 * family.BEGIN_GAP)


def test_ddim_has_the_plainest_numbers(x64):
    numbers = family.numbers_of(make_table("ddim", SCHEDULE, 4, "trailing"), SCHEDULE)
    weights = np.zeros((4, 4))
    weights[np.tril_indices(4)] = numbers.weights
    # The trailing grid's levels are those of timesteps, so nothing is interpolated but the least gap at the start.
    np.testing.assert_allclose(weights, np.eye(4), atol=2e-3)
    np.testing.assert_allclose(numbers.keep, 0, atol=2e-3)


def test_numbers_from_steps_are_those_steps(x64):
    """X <- steps[k] @ [X, x_0 of the calls so far]."""
    rng = np.random.default_rng(0)
    steps, gaps = [rng.standard_normal(k + 2) for k in range(4)], rng.standard_normal(5)
    table = family.table_of(jax.tree.map(jnp.asarray, family.numbers_from(gaps, steps, TIMES)), TIMES)
    states = family._unrolled(jax.tree.map(np.asarray, table))
    for k, step in enumerate(steps):
        expected = step[0] * states[k]
        expected[1 : k + 2] += step[1:]
        np.testing.assert_allclose(states[k + 1], expected, atol=1e-11)
    np.testing.assert_allclose(np.stack(table.rows[:3]), family.levels_of(gaps, TIMES), rtol=1e-12)


def test_levels_between_timesteps(x64):
    alpha, sigma = TIMES.at(jnp.arange(1000.0))
    np.testing.assert_allclose(alpha, np.sqrt(SCHEDULE.alphas_cumprod_float64), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.sqrt(SCHEDULE.one_minus_alphas_cumprod_float64), rtol=1e-12)
    level = sigma_grids.discrete(SCHEDULE)(3.21)
    alpha, sigma = TIMES.at(jnp.asarray(level.time))
    np.testing.assert_allclose([alpha, sigma], [level.alpha, level.sigma], rtol=1e-12)


@pytest.mark.parametrize(
    "name, grid, message",
    [
        ("ddpm", "sections", "a table that draws noise cannot be learned from"),
        ("pndm", "sections", "the times of a table that is learned from must decrease"),
        ("heun", "karras", "the times of a table that is learned from must decrease"),
    ],
)
def test_tables_that_cannot_be_learned_from(name, grid, message):
    with pytest.raises(ValueError, match=message):
        family.numbers_of(make_table(name, SCHEDULE, 6, grid), SCHEDULE)


def test_hand_made_tables_have_so_many_calls():
    found = list(start.hand_made(SCHEDULE, 5))
    names = {item.name for item in found}
    assert {item.table.num_calls for item in found} == {5}
    assert {"ddim on quad", "unipc on karras", "heun on karras", "dpm_solver_3 on trailing"} <= names
    assert not any(name.startswith(("ddpm", "euler_ancestral")) for name in names) and len(found) > 150


def test_times_stay_apart_in_float32():
    """Whatever is learned: all gaps but one vanish."""
    start = family.numbers_of(make_table("ddim", SCHEDULE, 6), SCHEDULE)
    for k in range(7):
        numbers = start._replace(gaps=np.where(np.arange(7) == k, 200.0, -200.0))
        table = family.table_of(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers), TIMES)
        times = np.asarray(table.rows.time)
        assert (np.diff(times) < 0).all() and times[0] < 999 and times[-1] > 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(table))
