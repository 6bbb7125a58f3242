"""Tables that begin in the middle: nothing of earlier steps is known, and what is left is what it would have been."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, process, samplers, schedules
from ddpm_jax.samplers import grids, sigma_grids
from ddpm_jax.samplers.catalogue import CATALOGUE, make_table

SCHEDULE = schedules.linear(100)
STEPS, START, SHAPE, KEY = 7, 3, (2, 2, 2, 1), jax.random.key(5)
NAMES = [name for name, entry in CATALOGUE.items() if entry.variance is None]
# Of the others a step looks back at the ones before it.
ONE_STEP = [name for name in NAMES if name.startswith(("ddpm", "ddim", "fastdpm", "euler", "dpm2"))]
ONE_STEP += ["heun", "dpm_solver_pp_2s_ancestral", "dpm_solver_pp_sde"]
BLOCKS = ("dpm_solver_2", "dpm_solver_3", "dpm_solver_pp_2s")


def network(x, t):
    return 0.4 * x + 0.1 * jnp.sin(3 * x) + (t / 500).reshape(-1, 1, 1, 1)


def begun(name):
    return make_table(name, SCHEDULE, STEPS, start=START)


@pytest.mark.parametrize("name", ONE_STEP)
def test_the_rest_of_a_run_bit_for_bit(name, optimized):
    """Run to the step and begin there, with the same key: noise is that of the rows of the whole table."""
    table, denoise = begun(name), samplers.denoiser(network)
    x_0, xs = samplers.trajectory(denoise, make_table(name, SCHEDULE, STEPS), KEY, SHAPE)
    rest = jax.jit(lambda key, x_t: samplers.sample(denoise, table, key, SHAPE, x_t=x_t))
    np.testing.assert_array_equal(rest(KEY, xs[int(table.first)]), x_0)
    if CATALOGUE[name].stochastic:
        other = samplers.sample(denoise, table._replace(first=None), KEY, SHAPE, x_t=xs[int(table.first)])
        assert np.abs(other - x_0).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_the_remaining_levels(name):
    """Equal to the sampler's own on a grid that has only these, where nothing is read that no row has written."""
    entry, steps = CATALOGUE[name], STEPS + (name == "pndm")
    levels = entry.spread(SCHEDULE, steps).levels
    whole, table = make_table(name, SCHEDULE, steps), make_table(name, SCHEDULE, steps, start=START)
    fresh = entry.on(SCHEDULE, grids.Grid(levels[START:]))
    jax.tree.map(np.testing.assert_array_equal, table._replace(first=None), fresh)
    assert table.rows.alpha[0] == levels[START].alpha and table.rows.sigma[0] == levels[START].sigma
    size = table.rows.update.shape[1]
    unknown = np.arange(size) > 0
    for update in table.rows.update:
        unknown = (update[:, :size] != 0) @ unknown
        assert not unknown[0]
    # The last rows of the whole table look back; but not those of blocks, where a block begins here.
    cut = whole.rows.update[whole.num_calls - table.num_calls :]
    same = cut.shape == table.rows.update.shape and (cut == table.rows.update).all()
    assert same == (name in ONE_STEP) or name in BLOCKS


def test_step_0_is_the_whole():
    grid = sigma_grids.karras(SCHEDULE, STEPS)
    make = lambda grid: samplers.dpm_solver(grid, order=3)
    whole = make(grid)
    jax.tree.map(np.testing.assert_array_equal, samplers.start_at(make, grid, 0), whole)
    x_T = jax.random.normal(KEY, SHAPE)
    denoise = samplers.denoiser(network)
    from_x_t = samplers.sample(denoise, whole, KEY, SHAPE, x_t=np.float32(whole.init) * x_T)
    np.testing.assert_array_equal(from_x_t, samplers.sample(denoise, whole, KEY, SHAPE, x_T=x_T))


def test_x_t_is_a_sample_of_q():
    """A network that knows eps finds x_0 from q_sample of the timestep that the rest begins at, and from no other."""
    x_0, eps = jnp.full(SHAPE, 0.3), jax.random.normal(KEY, SHAPE)
    table = samplers.start_at(samplers.ddim, grids.from_timesteps(SCHEDULE, [90, 60, 20, 5]), 2)
    tells_eps = lambda x, t: eps  # the one that x_t was made with
    for t, near in ((20, True), (60, False)):
        x_t = process.q_sample(SCHEDULE, x_0, jnp.full(2, t), eps)
        found = samplers.sample(samplers.denoiser(tells_eps), table, None, SHAPE, x_t=x_t, noise=jnp.zeros((2, *SHAPE)))
        assert np.allclose(found, x_0, atol=1e-6) == near


def test_one_program_for_tables_that_begin_anywhere():
    """The number of the first row is data, and survives padding."""
    traces = []

    def make_denoise(scale):
        traces.append(1)
        return samplers.denoiser(lambda x, t: scale * network(x, t))

    run, x_t, scale = samplers.Runner(make_denoise, SHAPE, max_calls=20), jax.random.normal(KEY, SHAPE), jnp.float32(1)
    for name in ("ddpm", "dpm_solver_pp_sde", "unipc"):
        found = run(begun(name), KEY, scale, x_t=x_t)
        np.testing.assert_allclose(
            found, samplers.sample(make_denoise(scale), begun(name), KEY, SHAPE, x_t=x_t), rtol=2e-5, atol=2e-5
        )
    assert run._run._cache_size() == 1


@pytest.mark.parametrize("step", [-1, STEPS, 2.0])
def test_steps_that_the_grid_does_not_have(step):
    with pytest.raises(ValueError, match=r"start must be a whole number in \[0, 7\), the steps of the grid, got"):
        make_table("ddim", SCHEDULE, STEPS, start=step)


def test_refused():
    grid, x = grids.leading(SCHEDULE, 5), jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match="goes down to the grid's end"):
        samplers.start_at(samplers.ddim_inverse, grid, 2)
    with pytest.raises(ValueError, match=r"either x_T, which is scaled by table\.init, or x_t"):
        samplers.sample(samplers.denoiser(network), samplers.ddim(grid), KEY, SHAPE, x_T=x, x_t=x)
    with pytest.raises(ValueError, match=r"x_t must have shape \(2, 2, 2, 1\), got \(2, 2\)"):
        samplers.sample(samplers.denoiser(network), samplers.ddim(grid), KEY, SHAPE, x_t=x[..., 0, 0])


def test_only_ancestral_rows_have_a_mean():
    """A network that predicts a mean, and guidance of the mean, come to nothing on any other table."""
    grid = grids.leading(SCHEDULE, 5)
    guided = guidance.mean_shifted(samplers.denoiser(network), network, scale=1.0)
    learned = samplers.ddim(grid)
    learned = learned._replace(rows=learned.rows._replace(mean=None))
    for denoise in (samplers.mean_denoiser(network), guided):
        assert np.isfinite(samplers.sample(denoise, samplers.ddpm(grid), KEY, SHAPE)).all()
        assert not np.isfinite(samplers.sample(denoise, samplers.ddim(grid), KEY, SHAPE)).any()
        with pytest.raises(ValueError, match=r"only tables of samplers\.ddpm have a mean, got one without"):
            samplers.sample(denoise, learned, KEY, SHAPE)
