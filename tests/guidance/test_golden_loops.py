"""Guided loops of DiT and GLIDE, recorded with small networks: every step of what was drawn.

Tolerance: 1e-4 of the loop's largest number, or what the loop itself moves by when weights change by 1e-7, as it says.

What each origin does, beside u + scale (c - u):

- DiT has [given, nothing] in one batch and runs its first half twice; it guides three of four latent channels, or in a
  comment all; the fourth channel and the learned variance are those of the condition. Nothing is clipped.
- GLIDE has the same order, and guides its three channels; each half has its own variance and noise, and only the first
  half is kept. x_0 is clipped after guidance; in-painting puts the known pixels into x_0 before it is clipped. Its
  up-sampling network has no guidance; it starts from noise times 0.997 and reads a picture rounded to 255 levels.
"""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.guidance import CLASSIFIER_FREE
from ddpm_jax.interop import dit, glide
from ddpm_jax.models import bind
from ddpm_jax.samplers import grids
from tests.helpers import few, relative, trace

pytestmark = pytest.mark.usefixtures("highest")


class Recorded(NamedTuple):
    """A file's arrays, its meta, and the network with its weights: (x, t, told) -> its output."""

    arrays: dict
    meta: dict
    network: object


def recorded(folder, name, from_config, to_params, **config):
    path = folder / "guidance" / name
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        meta = json.loads(str(file["meta"]))
    config = {**meta["config"], **config}
    model, params = from_config(config), to_params(load_file(path.with_suffix(".safetensors")), config)
    return Recorded(arrays, meta, lambda x, t, told: bind(model, params, **told)(x, t))


def last(array):
    """Channels of images last."""
    return jnp.asarray(np.moveaxis(array, -3, -1))


def check_loop(denoise, table, x_T, noise, samples, times, moves, steps=None):
    """Step by step; `steps` are those that were recorded."""
    np.testing.assert_array_equal(table.rows.time, times)
    noise = jnp.zeros((table.num_calls, *x_T.shape)) if noise is None else noise
    found = trace(denoise, table, x_T, noise)
    found = found if steps is None else found[steps]
    difference = np.abs(found - samples).max()
    assert difference <= max(1e-4 * np.abs(samples).max(), moves), difference
    return found


# ------------------------------------------------------------------------------------------------------------ DiT


@pytest.fixture(scope="module")
def small_dit(shared_golden):
    return recorded(shared_golden, "dit_cfg", dit.dit_from_config, dit.dit_to_params)


METHODS = {"three": guidance.of_channels(CLASSIFIER_FREE, 3), "all": CLASSIFIER_FREE}
DIT = {"three": ("three", "ddpm"), "all": ("all", "ddpm"), "ddim": ("three", "ddim")}


def dit_answers(small):
    y = jnp.asarray(small.arrays["y"], jnp.int32)
    assert (y[2:] == small.meta["config"]["num_classes"]).all()
    return guidance.asked(small.network, {"y": y[:2]}, {"y": y[2:]})


@pytest.mark.parametrize("channels", METHODS)
def test_one_answer_of_dit(channels, small_dit):
    """forward_with_cfg: the output, with the condition's variance behind it."""
    arrays, method = small_dit.arrays, METHODS[channels]
    table = guidance.on(
        samplers.ddim(grids.leading(schedules.linear(1000), 1)), method, scale=small_dit.meta["cfg_scale"]
    )
    row, t = jax.tree.map(lambda leaf: jnp.float32(leaf[0]), table.rows), jnp.asarray(arrays["one.t"], jnp.float32)
    answers = dit_answers(small_dit)
    at_t = guidance.Answers(
        tuple(lambda x, _, ask=ask: ask(x, t[:2]) for ask in answers.each), lambda x, _: answers.together(x, t[:2])
    )
    whole = lambda model_fn: lambda x, row: samplers.Denoised(model_fn(x, t[:2]), x)
    found = guidance.guided(at_t, whole, method)(last(arrays["one.x"])[:2], row).x_0
    expected = arrays["one.with_cfg" if channels == "three" else "one.with_cfg_all_channels"]
    assert relative(found, last(expected)[:2]) < 1e-5
    assert relative(found[..., 4:], last(arrays["one.model_out"])[:2, ..., 4:]) < 1e-5


@pytest.mark.parametrize("loop", few(DIT, "three", "ddim"))
def test_dit(loop, small_dit):
    arrays, (channels, sampler) = small_dit.arrays, DIT[loop]
    grid = grids.sections(schedules.linear(1000), small_dit.meta["respacing"])
    table = samplers.ddim(grid) if sampler == "ddim" else samplers.ddpm(grid, variance="learned_range")
    table = guidance.on(table, METHODS[channels], scale=small_dit.meta["cfg_scale"])
    make_denoise = lambda model_fn: samplers.denoiser(model_fn, "eps", variance="learned_range")
    denoise = guidance.guided(dit_answers(small_dit), make_denoise, METHODS[channels])
    of = lambda name: arrays[f"{loop}.{name}"]
    noise = last(of("noise"))[:, :2] if f"{loop}.noise" in arrays else None
    moves = small_dit.meta["perturbation_1e7_max_abs"][f"{loop}.samples"]
    check_loop(
        denoise, table, last(of("x_init"))[:2], noise, last(of("samples"))[:, :2], of("model_times")[:, 0], moves
    )


# ---------------------------------------------------------------------------------------------------------- GLIDE

SCHEDULES = {"squaredcos_cap_v2, T=1000": schedules.cosine(1000), "linear, T=1000": schedules.linear(1000)}


def glide_network(folder, name, in_channels):
    return recorded(folder, name, glide.glide_from_config, glide.glide_to_params, in_channels=in_channels)


def text(arrays):
    return {"tokens": jnp.asarray(arrays["tokens"], jnp.int32), "mask": jnp.asarray(arrays["mask"])}


def halves(told):
    """What each half of the batch is told: the condition, and nothing."""
    return [jax.tree.map(lambda leaf, part=part: leaf[part], told) for part in (slice(2), slice(2, 4))]


def glide_table(meta, sampler=samplers.ddpm, **options):
    return sampler(grids.sections(SCHEDULES[meta["schedule"]], meta["respacing"]), **options)


def make_denoise(model_fn):
    return samplers.denoiser(model_fn, "eps", variance="learned_range", clip=1.0)


def assert_within_one_level(found, expected_u8):
    levels = np.clip(np.round((np.asarray(found) + 1) * 127.5), 0, 255)
    assert np.abs(levels - np.moveaxis(expected_u8.astype(float), 1, -1)).max() <= 1


def test_glide(shared_golden):
    small = glide_network(shared_golden, "glide_cfg", 3)
    arrays, meta = small.arrays, small.meta
    answers = guidance.asked(small.network, *halves(text(arrays)))
    table = glide_table(meta, variance="learned_range")
    table = guidance.on(table, CLASSIFIER_FREE, scale=meta["guidance_scale"])
    denoise = guidance.guided(answers, make_denoise, CLASSIFIER_FREE)
    x_T, noise, samples = (last(arrays[name]) for name in ("x_init", "noise", "samples"))
    moves = meta["perturbation_1e7_max_abs"]["samples"]
    found = check_loop(denoise, table, x_T[:2], noise[:, :2], samples[:, :2], arrays["model_times"][:, 0], moves)
    assert relative(found[-1], last(arrays["final"])) < 1e-4
    assert_within_one_level(found[-1], arrays["final_u8"])


def painted(known, mask):
    """make_denoise with known pixels put into x_0 before it is clipped."""

    def make(model_fn):
        free = samplers.denoiser(model_fn, "eps", variance="learned_range")
        return samplers.clipped(samplers.projected(free, lambda x_0: x_0 * (1 - mask) + known * mask), 1.0)

    return make


def known_pixels(arrays, n):
    """(pixels, mask, both as the network takes them) for n images."""
    known, mask = (last(arrays[name]) for name in ("source", "source_mask"))
    mask = jnp.broadcast_to(mask, (n, *mask.shape[1:]))
    return known, mask, jnp.concatenate([known * mask, mask], axis=-1)


def test_glide_in_painting(shared_golden):
    small = glide_network(shared_golden, "glide_inpaint", 7)
    arrays, meta = small.arrays, small.meta
    known, mask, concat = known_pixels(arrays, 4)
    answers = guidance.asked(small.network, *halves({**text(arrays), "concat": concat}))
    table = glide_table(meta, variance="learned_range")
    table = guidance.on(table, CLASSIFIER_FREE, scale=meta["guidance_scale"])
    denoise = guidance.guided(answers, painted(known, mask[:2]), CLASSIFIER_FREE)
    x_T, noise, samples = (last(arrays[name]) for name in ("x_init", "noise", "samples"))
    moves = meta["perturbation_1e7_max_abs"]["samples"]
    check_loop(denoise, table, x_T[:2], noise[:, :2], samples[:, :2], arrays["model_times"][:, 0], moves)


@pytest.mark.slow
def test_glide_up_sampling_and_in_painting(shared_golden):
    small = glide_network(shared_golden, "glide_inpaint_upsample", 10)
    arrays, meta = small.arrays, small.meta
    known, mask, concat = known_pixels(arrays, 2)
    told = {**text(arrays), "low_res": last(arrays["low_res"]), "concat": concat}
    denoise = painted(known, mask)(lambda x, t: small.network(x, t, told))
    x_T = last(arrays["noise0"]) * meta["upsample_temp"]
    assert relative(x_T, last(arrays["x_init"])) < 1e-6
    table, moves = glide_table(meta, variance="learned_range"), meta["perturbation_1e7_max_abs"]["samples"]
    times, samples = arrays["model_times"][:, 0], last(arrays["samples"])
    check_loop(denoise, table, x_T, last(arrays["noise"]), samples, times, moves)


def test_glide_up_sampling(shared_golden):
    small = glide_network(shared_golden, "glide_upsample", 6)
    arrays, meta = small.arrays, small.meta
    low_res = jnp.round((last(arrays["base_samples"]) + 1) * 127.5) / 127.5 - 1
    assert relative(low_res, last(arrays["low_res"])) < 1e-6
    told = {**text(arrays), "low_res": low_res}
    denoise = make_denoise(lambda x, t: small.network(x, t, told))
    table, moves = glide_table(meta, samplers.ddim), meta["perturbation_1e7_max_abs"]["samples"]
    x_T, times = last(arrays["noise0"]) * meta["upsample_temp"], arrays["model_times"][:, 0]
    found = check_loop(denoise, table, x_T, None, last(arrays["samples"]), times, moves, steps=arrays["kept_steps"])
    assert arrays["kept_steps"][-1] == table.num_calls - 1
    assert_within_one_level(found[-1], arrays["final_u8"])
