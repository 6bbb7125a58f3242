"""In-painting: what is kept, Gaussian data against its conditional law, and diffusers' RePaintPipeline as recorded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import opening, samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.uses import inpainting
from tests.helpers import relative, trace, trained_of
from tests.uses.common import KEY, gaussian, smooth

S = schedules.linear(1000)
MEAN, COV = np.array([0.3, -0.2]), np.array([[0.3, 0.25], [0.25, 0.3]])
GIVEN = 1.0
LAW = MEAN[1] + COV[1, 0] / COV[0, 0] * (GIVEN - MEAN[0]), COV[1, 1] - COV[1, 0] ** 2 / COV[0, 0]


def painted(paint, table, n, key=KEY):
    """The second pixel of correlated normal data, the first being known."""
    original, known = jnp.tile(jnp.array([[GIVEN, 0.0]]), (n, 1)), jnp.tile(jnp.array([[1.0, 0.0]]), (n, 1))
    denoise = gaussian(MEAN, COV)
    x = np.asarray(jax.jit(lambda: paint(denoise, table, key, original, known))())
    np.testing.assert_array_equal(x[:, 0], GIVEN)
    return x[:, 1].astype(np.float64)


def errors_off(found):
    """How many standard errors mean and variance are from the conditional law."""
    mean, variance = LAW
    n = len(found)
    return abs(found.mean() - mean) / (variance / n) ** 0.5, abs(found.var() - variance) / (variance * (2 / n) ** 0.5)


@pytest.mark.slow  # 20,000 calls
def test_repaint_approaches_the_conditional_law_and_replacement_does_not():
    """The more often each stretch is sampled; at last nothing is left to be seen with 2000 samples.

    That takes short steps, whose fixed variance leaves out little of x_0's own, and jumps that are short beside the
    whole way: with 50 steps 40 visits end 5 to 20 standard errors off, with jumps of 50 of 250 steps 22.
    """
    grid, n = grids.leading(S, 500), 2000
    off = {}
    for visits in (1, 4, 40):
        table = samplers.repaint(grid, jump_length=20, num_visits=visits)
        off[visits] = max(errors_off(painted(inpainting.repaint, table, n)))
    assert off[40] < 3 < off[4] < off[1], off
    replaced = painted(inpainting.replacement, samplers.ddpm(grids.leading(S, 250), variance="fixed_small"), n)
    assert max(errors_off(replaced)) > 10


def test_replacement_of_independent_pixels_is_exact():
    """Where the known pixel says nothing about the other, the other follows its own law."""
    n = 4000
    original, known = jnp.tile(jnp.array([[GIVEN, 0.0]]), (n, 1)), jnp.tile(jnp.array([[1.0, 0.0]]), (n, 1))
    denoise, table = gaussian(MEAN, np.diag([0.3, 0.2])), make_table("ddpm_small", S, 100)
    x = jax.jit(lambda: inpainting.replacement(denoise, table, KEY, original, known))()[:, 1]
    assert abs(float(x.mean()) - MEAN[1]) < 5 * (0.2 / n) ** 0.5
    assert abs(float(x.var()) - 0.2) < 5 * 0.2 * (2 / n) ** 0.5 + 0.01  # 100 steps


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "unipc", "dpm_solver_pp_2m", "euler_ancestral"])
def test_replacement_shows_the_network_q_of_the_known_pixels(name):
    """Of any sampler: at each level they are alpha x_0 + sigma z, and what is to be painted is the sampler's."""
    table, shape = make_table(name, S, 6), (500, 2, 2, 1)
    original = jnp.full(shape, 0.7)
    known = jnp.broadcast_to(jnp.array([[1.0, 0.0], [0.0, 1.0]])[None, :, :, None], shape)
    told = lambda x, row: samplers.Denoised(x, (x - row.alpha * x) / row.sigma)
    seen = jax.jit(lambda x, row: inpainting.replaced(told, original, known, KEY)(x, row).x_0)
    x = jax.random.normal(jax.random.key(8), shape)
    noises = []
    for k in range(table.num_calls):
        row = jax.tree.map(lambda leaf, k=k: np.float32(leaf[k]), table.rows)
        found = np.asarray(seen(x, row))
        np.testing.assert_array_equal(found[:, 0, 1], x[:, 0, 1])
        z = (found[:, 0, 0, 0] - row.alpha * 0.7) / row.sigma
        assert abs(z.mean()) < 5 / 500**0.5 and abs(z.std() - 1) < 5 / 1000**0.5
        noises.append(z)
    if name != "heun":  # which calls twice at some levels
        assert np.abs(np.corrcoef(noises) - np.eye(len(noises))).max() < 5 / 500**0.5


def test_nothing_known_is_sampling_and_all_known_is_the_picture():
    table, shape, denoise = samplers.ddpm(grids.leading(S, 10)), (3, 4, 4, 1), samplers.denoiser(smooth)
    original = jax.random.uniform(jax.random.key(1), shape, minval=-1)
    none, every = jnp.zeros(shape), jnp.ones(shape)
    drawn = samplers.sample(denoise, table, KEY, shape, first_index=5)
    found = inpainting.replacement(denoise, table, KEY, original, none, first_index=5)
    np.testing.assert_allclose(found, drawn, atol=1e-5)
    for paint in inpainting.METHODS.values():
        jumping = samplers.repaint(grids.leading(S, 10), jump_length=3, num_visits=2)
        np.testing.assert_array_equal(paint(denoise, jumping, KEY, original, every), original)


def test_the_preset_of_a_run():
    trained = trained_of(model=None, params={}, image_shape=(4, 4, 1), schedule=S)
    table, _ = inpainting.repaint_preset(trained, 10, jump_length=3, jump_n_sample=3)
    assert table.num_calls == 10 + 3 * 2 * 3
    own = samplers.repaint(grids.sections(S, 10), jump_length=3, num_visits=3)
    np.testing.assert_array_equal(table.rows.update, own.rows.update)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 2"):
        inpainting.repaint_preset(trained, 10, eta=2)


# ------------------------------------------------------------------------------------------------------- diffusers


def theirs(shared_golden, key):
    """(arrays, options) of a recorded call of RePaintPipeline; images NHWC."""
    with np.load(shared_golden / "uses" / "repaint.npz") as file:
        arrays = {name: file[name] for name in file.files}
    (case,) = [case for case in json.loads(str(arrays["meta"]))["cases"] if case["key"] == key]
    nhwc = lambda x: np.moveaxis(x, 1, -1)
    given = {name: nhwc(arrays[name]) for name in ("image", "mask")}
    own = {name.removeprefix(f"{key}."): array for name, array in arrays.items() if name.startswith(f"{key}.")}
    return given | own | {"latents": np.moveaxis(own["latents"], 2, -1)}, case["call"]


def noise_of(arrays, options, table, betas):
    """(x_T, z of each row): what the pipeline draws, in its order, as the noise of the rows that do the same.

    A step draws once, each jump once for every timestep that it climbs. Where pixels are known, the step's noise has
    the weight that q(x_t | x_0) gives it; elsewhere that of the step.
    """
    random = np.random.RandomState(int(arrays["noise_seed"]))
    shape = np.moveaxis(arrays["noise_first"], 1, -1).shape
    draw = lambda: np.moveaxis(random.standard_normal((shape[0], 3, 16, 16)).astype(np.float32), 1, -1).astype(float)
    x_T = draw()
    np.testing.assert_array_equal(x_T, np.moveaxis(arrays["noise_first"], 1, -1).astype(float))
    stride, keep = 1000 // options["num_inference_steps"], np.cumprod(1 - betas)
    at = lambda t: keep[t] if t >= 0 else 1.0
    times, undone, k, result = arrays["timesteps"], arrays["is_undo"], 0, []
    while k < len(times):
        t, z = times[k], draw()
        small = options["eta"] ** 2 * (1 - at(t - stride)) / (1 - at(t)) * (1 - at(t) / at(t - stride))
        variances = [1 - at(t - stride), small]
        parts = [variance**0.5 * z for variance in variances]
        last, k = t, k + 1
        while k < len(times) and undone[k]:
            for beta in betas[last : last + stride]:
                more = beta**0.5 * draw()
                parts = [(1 - beta) ** 0.5 * part + more for part in parts]
                variances = [(1 - beta) * variance + beta for variance in variances]
            last, k = times[k], k + 1
        known, rest = (part / v**0.5 if v else 0 * part for part, v in zip(parts, variances, strict=True))
        result.append(arrays["mask"] * known + (1 - arrays["mask"]) * rest)
    return x_T, np.stack(result)


@pytest.mark.parametrize("key", ["c0", "c1"])
def test_repaint_pipeline(key, shared_golden, highest):
    arrays, options = theirs(shared_golden, key)
    trained = opening.open(shared_golden / "uses" / "repaint_tiny", print)
    num_steps = options["num_inference_steps"]
    given = {name: options[name] for name in ("jump_length", "jump_n_sample", "eta")}
    table, denoiser = inpainting.repaint_preset(trained, num_steps, **given)
    np.testing.assert_array_equal(table.rows.time, arrays["timesteps"][~arrays["is_undo"]])
    x_T, noise = noise_of(arrays, options, table, trained.schedule.betas_float64)

    original = jnp.asarray(arrays["image"])
    known = jnp.broadcast_to(jnp.asarray(arrays["mask"]), original.shape)
    denoise = samplers.known(denoiser(trained.model_fn()), original, known)
    found = trace(denoise, table, jnp.asarray(x_T, jnp.float32), jnp.asarray(noise, jnp.float32))
    # Rows end where the next call is; the pipeline's call numbered `kept` is one step, down or up.
    ends = np.append(np.flatnonzero(~arrays["is_undo"])[1:], len(arrays["timesteps"])) - 1
    compared = 0
    for row, call in enumerate(ends):
        for i in np.flatnonzero(arrays["kept"] == call):
            assert relative(found[row], arrays["latents"][i]) < 1e-4
            compared += 1
    assert compared >= 4
    pictures = np.asarray(jnp.clip(inpainting.kept(found[-1], original, known) / 2 + 0.5, 0, 1))
    assert np.abs(pictures - arrays["images"]).max() * 255 < 1


def test_a_repaint_scheduler_has_its_own_grid(shared_golden):
    trained = opening.open(shared_golden / "uses" / "repaint_tiny", print)
    with pytest.raises(ValueError, match="RePaintScheduler comes with its own steps, got --grid karras"):
        inpainting.repaint_preset(trained, 10, "karras")
