"""Classifiers of guided-diffusion, opened from their files: logits, gradients, and both guided loops."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, interop, opening, samplers, schedules
from ddpm_jax.interop import layers, openai, shown
from ddpm_jax.interop.openai import load as load_openai
from ddpm_jax.interop.openai.published import CLASSIFIER_DIFFUSIONS, CONFIGS
from ddpm_jax.samplers import grids
from tests.helpers import relative, trace
from tests.interop.golden_networks import load

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


@pytest.fixture(scope="module")
def recorded(shared_golden):
    """(folder, arrays, meta) of the guided loops."""
    folder = shared_golden / "guidance"
    with np.load(folder / "classifier_sample.npz") as file:
        arrays, meta = {name: file[name] for name in file.files if name != "meta"}, json.loads(str(file["meta"]))
    return folder, arrays, meta


def opened(recorded, schedule):
    """(the diffusion model, the classifier) that learned from the noise of this schedule."""
    folder, _, meta = recorded
    noise = {"diffusion_steps": 1000, "noise_schedule": schedule}
    model = interop.load(folder / "classifier_sample_model.safetensors", meta["model_config"] | noise)
    known = opening.classifier(folder / "classifier_sample_classifier.safetensors", meta["classifier_config"] | noise)
    known.check_guides(model)
    return model, known


def channels_last(array):
    return jnp.asarray(np.moveaxis(array, -3, -1))


def test_one_call(recorded, highest):
    _, arrays, _ = recorded
    _, known = opened(recorded, "linear")
    x, t = channels_last(arrays["one.x"]), jnp.asarray(arrays["one.t"], jnp.float32)
    assert relative(jax.jit(known.model_fn())(x, t), arrays["one.logits"]) < 1e-4
    gradient = jax.jit(known.log_prob_gradient(arrays["y"]))(x, t)
    assert relative(gradient, channels_last(arrays["one.cond_fn_scale1"])) < 1e-4


@pytest.mark.parametrize("key", ["c0", "c1"])
def test_guided_loops(key, recorded, highest):
    """Every x of both loops; the last ones as 8-bit levels, which they truncate."""
    _, arrays, meta = recorded
    (case,) = [case for case in meta["cases"] if case["key"] == key]
    model, known = opened(recorded, case["schedule"])
    gradient = known.log_prob_gradient(arrays["y"])
    denoise = model.denoiser(model.model_fn(y=jnp.asarray(arrays["y"], jnp.int32)))
    grid = grids.sections(model.schedule, case["resp"])
    if case["ddim"]:
        table, denoise = samplers.ddim(grid), guidance.score_shifted(denoise, gradient, scale=case["scale"])
    else:
        table = samplers.ddpm(grid, variance="learned_range")
        denoise = guidance.mean_shifted(denoise, gradient, scale=case["scale"])
    np.testing.assert_array_equal(table.rows.time, arrays[f"{key}.model_times"][:, 0])
    noise = arrays.get(f"{key}.noise", np.zeros_like(arrays[f"{key}.samples"]))
    found = trace(denoise, table, channels_last(arrays[f"{key}.x_init"]), channels_last(noise))
    for ours, theirs in zip(found, np.moveaxis(arrays[f"{key}.samples"], -3, -1), strict=True):
        assert relative(ours, theirs) < 1e-4
    levels = np.clip((found[-1] + 1) * 127.5, 0, 255).astype(np.uint8).astype(int)
    assert np.abs(levels - np.moveaxis(arrays[f"{key}.final_u8"], -3, -1)).max() <= 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_file_of_every_pool(pool, tmp_path, shared_golden):
    """What shows in the weights need not be said, and may not be said otherwise."""
    _, meta, weights = load(shared_golden, f"guided_encoder_{pool}")
    np.savez(tmp_path / "weights.npz", **weights)
    said = {"diffusion_steps": 100, "noise_schedule": "cosine"}
    shows = {"in_channels", "model_channels", "out_channels", "use_scale_shift_norm", "pool"}
    config = {name: value for name, value in meta["config"].items() if name not in shows}
    config = {"image_size": meta["image_size"]} | config if "image_size" in meta else config
    config = config if {"num_heads", "num_head_channels"} & set(config) else config | {"num_heads": 1}
    found = opening.classifier(tmp_path / "weights.npz", config | said)
    assert found.model == openai.classifier_from_config(meta["config"])
    np.testing.assert_array_equal(found.schedule.betas, schedules.cosine(100).betas)
    np.testing.assert_array_equal(
        jax.tree.leaves(found.params)[0], jax.tree.leaves(openai.classifier_to_params(weights, meta["config"]))[0]
    )
    scaled = opening.classifier(tmp_path / "weights.npz", config | said | {"rescale_timesteps": True})
    assert (found.time_scale, scaled.time_scale) == (1, 10)
    for change, message in (
        ({"out_channels": 3}, r"the weights contradict the settings: out_channels is \d+, not 3"),
        ({"num_head": 3}, "unknown setting 'num_head'; did you mean 'num_heads'"),
        ({"predict_xstart": True}, "unknown setting 'predict_xstart'"),
    ):
        with pytest.raises(ValueError, match=message):
            opening.classifier(tmp_path / "weights.npz", config | said | change)
    with pytest.raises(
        ValueError, match=r"give config=\{\.\.\.\} with diffusion_steps, noise_schedule, num_res_blocks"
    ):
        opening.classifier(tmp_path / "weights.npz")


def test_what_is_no_classifier(tmp_path, recorded):
    folder, *_ = recorded
    with pytest.raises(ValueError, match="weights of no classifier of OpenAI's"):
        opening.classifier(folder / "classifier_sample_model.safetensors")
    with pytest.raises(ValueError, match=r"guides one: use opening\.classifier"):
        interop.load(folder / "classifier_sample_classifier.safetensors")
    with pytest.raises(FileNotFoundError, match="no file"):
        opening.classifier(tmp_path / "nothing.pt")


@pytest.mark.parametrize("name", CLASSIFIER_DIFFUSIONS)
def test_published_classifiers_are_recognized(name):
    """By shapes alone: the names of arrays, and how many blocks there are."""
    config = CONFIGS[name]
    model = openai.classifier_from_config(config)
    names, wanted, conv1x1, conv1d = openai._classifier_layout(model, config)
    shapes = {path: layers.their_shape(path, shape, conv1x1, conv1d) for path, shape in wanted.items()}
    arrays = {layers.their_name(path, names): np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    seen = shown.classifier(arrays)
    published = {name: CONFIGS[name] for name in CLASSIFIER_DIFFUSIONS}
    alike = shown.matches(seen, published, openai.DEFAULTS | {"pool": "adaptive"})
    assert set(alike) == set(published)  # what tells them apart is the number of blocks
    blocks = {name: load_openai._input_blocks(config) for name, config in published.items()}
    assert shown.input_blocks(arrays) == blocks[name] and len(set(blocks.values())) == len(blocks)
    assert math.prod(wanted["logits/kernel"]) == 1000 * model.width(-1)
