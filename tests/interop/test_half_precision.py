"""Checkpoints in half precision: what a formula gives is the formula's, not its rounding."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax import schedules
from ddpm_jax.interop import dit, load, rounding
from ddpm_jax.interop.ldm import load as load_ldm
from tests.interop.golden_networks import load as golden
from tests.interop.test_load import fails, same_tree
from tests.interop.test_load_files import LATENTS, latent_diffusion  # noqa: F401

HALVES = (np.float16, jnp.bfloat16)
HEADS = {"num_heads": 4}


def halved(weights, dtype):
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in weights.items()}


def single(weights):
    return {name: array.astype(np.float32) if array.dtype != np.int64 else array for name, array in weights.items()}


@pytest.mark.parametrize("dtype", HALVES)
def test_positions_of_dit(dtype, tmp_path, shared_golden):
    """By whatever way: half precision on the disk, or in float32 again, or the one half after the other."""
    _, meta, weights = golden(shared_golden, "dit_learn_sigma")
    half = halved(weights, dtype)
    expected = dit.dit_to_params(single(half) | {"pos_embed": weights["pos_embed"]}, meta["config"])
    for name, stored in (("a", half), ("b", single(half)), ("c", halved(single(half), HALVES[dtype == np.float16]))):
        save_file(stored, tmp_path / name)
        params = load(tmp_path / name, HEADS).params
        if name != "c":
            same_tree(params, expected)
    same_tree(dit.dit_to_params(single(half), meta["config"]), expected)


@pytest.mark.parametrize(("dtype", "wrong"), [(np.float16, 1e-3), (jnp.bfloat16, 8e-3), (np.float32, 1e-4)])
def test_other_positions_are_refused_in_half_precision(dtype, wrong, tmp_path, shared_golden):
    """The tolerance is that of the precision: what is rounding in bfloat16 is none in float16."""
    _, _, weights = golden(shared_golden, "dit_learn_sigma")
    table = weights["pos_embed"].copy()
    table[0, 3, 5] += np.float32(wrong)
    save_file(halved(weights | {"pos_embed": table}, dtype), tmp_path / "a")
    fails(tmp_path / "a", "pos_embed is not the table of sines and cosines", config=HEADS)


@pytest.mark.parametrize("dtype", HALVES)
def test_betas_and_scale_of_latent_diffusion(dtype, latent_diffusion, tmp_path):  # noqa: F811
    weights, unet, _ = latent_diffusion
    config = LATENTS | {"unet_config": unet, "scale_factor": 0.18215}
    save_file(halved(weights | {"scale_factor": np.array(0.18215, np.float32)}, dtype), tmp_path / "a")
    loaded = load(tmp_path / "a", config)
    exact = schedules.make_beta_schedule("linear", 1000, 0.00085, 0.012)
    np.testing.assert_array_equal(loaded.schedule.betas_float64, schedules.from_betas(exact).betas_float64)
    assert loaded.first_stage is not None and loaded.first_stage.scale == 0.18215
    # Other betas than those of the settings are the file's.
    other = schedules.make_beta_schedule("linear", 1000, 0.0009, 0.012).astype(dtype)
    save_file(halved(weights | {"betas": other}, dtype), tmp_path / "a")
    loaded = load(tmp_path / "a", config)
    np.testing.assert_array_equal(loaded.schedule.betas_float64, other.astype(np.float64))
    assert "those of the file, which are not of linear_start and linear_end" in loaded.origin
    no_ends = {name: value for name, value in config.items() if not name.startswith("linear")}
    assert "in half precision; give linear_start and linear_end" in load(tmp_path / "a", no_ends).origin


def test_a_number_alone_does_not_say_its_precision(latent_diffusion, tmp_path):  # noqa: F811
    """0.5 is a bfloat16, and 0.501 rounds to it; beside betas in float32 it is another number."""
    weights, unet, _ = latent_diffusion
    config = LATENTS | {"unet_config": unet, "scale_factor": 0.501}
    for dtype, scale in ((np.float32, 0.5), (jnp.bfloat16, 0.501)):
        save_file(halved(weights | {"scale_factor": np.array(0.5, np.float32)}, dtype), tmp_path / "a")
        loaded = load(tmp_path / "a", config)
        assert loaded.first_stage is not None and loaded.first_stage.scale == scale


def test_precision_of_numbers():
    """Every number within half of its last bit of one that is not; and NaN and infinity are never rounding."""
    exact = np.random.RandomState(0).lognormal(0, 3, 1000)
    for dtype, relative in ((np.float16, 2**-11), (jnp.bfloat16, 2**-8)):
        stored = exact.astype(np.float32).astype(dtype).astype(np.float32)
        assert rounding.of_precision(stored) == pytest.approx(relative, rel=0.2)
        assert rounding.misfit(stored, exact, slack=1e-7 * exact) == 0
        assert rounding.misfit(stored, exact * (1 + 3 * relative), slack=1e-7 * exact) > 0
    assert rounding.of_precision(exact.astype(np.float32)) == 0
    assert np.isnan(rounding.misfit(np.array([np.nan, 1]), np.ones(2), slack=1.0))
    assert rounding.misfit(np.array([np.inf, 1]), np.ones(2), slack=1.0) == np.inf


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("kind", "length"), [("cosine", 4000), ("linear", 1000), ("sqrt_linear", 100), ("sqrt", 1000)])
def test_betas_too_small_for_all_bits(kind, length, dtype):
    """Down to 1e-5, where float16 is 3e-3 off."""
    exact = schedules.make_beta_schedule(kind, length, 1e-5, 0.01)
    settings = {"linear_start": 1e-5, "linear_end": 0.01, "beta_schedule": kind, "timesteps": length}
    for way in (dtype, HALVES[0], HALVES[1]):
        betas = exact.astype(np.float32).astype(way).astype(dtype).astype(np.float32)
        found, said = load_ldm._schedule({"betas": betas}, settings)
        np.testing.assert_array_equal(found.betas_float64, schedules.from_betas(exact).betas_float64)
        assert said == ""
    _, said = load_ldm._schedule({"betas": betas * np.float32(0.98)}, settings)
    assert "those of the file" in said
