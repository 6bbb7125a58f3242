"""GLIDE's CLIP of noisy images with OpenAI's weights: directions, gradient, the way of the weights, a guided loop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.interop import glide, glide_clip
from ddpm_jax.models import bind
from ddpm_jax.samplers.grids import sections
from tests.helpers import relative, trace
from tests.interop.golden_networks import check_every_misfit_is_listed, check_there_and_back, network_of, nhwc

FAMILY = (glide_clip.glide_clip_from_config, glide_clip.glide_clip_to_params, glide_clip.params_to_glide_clip)


@pytest.fixture(scope="module")
def network(shared_golden):
    path = shared_golden / "guidance" / "glide_clip_guided"
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays, meta = {key: file[key] for key in file.files if key != "meta"}, json.loads(str(file["meta"]))
    return network_of(FAMILY, meta["clip_config"], load_file(path.with_suffix(".safetensors")), arrays, meta)


def text(network):
    return {name: jnp.asarray(network.arrays[f"clip.{theirs}"], jnp.int32) for name, theirs in TEXT.items()}


TEXT = {"tokens": "tokens", "lengths": "lens"}


def gradient_of(network):
    fits = bind(network.model, network.params, **text(network))
    return lambda x, t: jax.grad(lambda x: fits(x, t).sum())(x)


def test_directions_and_gradient(network, highest):
    arrays, params, told = network.arrays, network.params, text(network)
    words = network.model.text.apply({"params": params["text"]}, *told.values())
    assert relative(words, arrays["clip.text_embeddings"]) < 1e-5
    x, t = nhwc(arrays["clip.x"]), jnp.asarray(arrays["clip.t"], jnp.float32)
    picture = network.model.image.apply({"params": params["image"]}, x, t)
    assert relative(picture, arrays["clip.image_embeddings"]) < 1e-5
    fits = bind(network.model, params, **told)(x, t)
    np.testing.assert_allclose(fits, 100 * np.sum(np.asarray(words) * np.asarray(picture), axis=1), rtol=1e-5)
    guided = network.meta["guidance_scale"] * gradient_of(network)(x, t)
    assert relative(guided, nhwc(arrays["clip.cond_fn"])) < 1e-4


def test_guided_loop(network, shared_golden, highest):
    """p_sample_loop with cond_fn: the mean moved by variance * gradient at x_t, after clipping."""
    arrays, meta = network.arrays, network.meta
    config = json.loads(str(np.load(shared_golden / "guidance" / "glide_cfg.npz")["meta"]))["config"]
    weights = load_file(shared_golden / "guidance" / "glide_cfg.safetensors")
    model, params = glide.glide_from_config(config), glide.glide_to_params(weights, config)
    told = {"tokens": jnp.asarray(arrays["tokens"], jnp.int32), "mask": jnp.asarray(arrays["mask"])}
    denoise = samplers.denoiser(bind(model, params, **told), "eps", clip=1.0, variance="learned_range")
    denoise = guidance.mean_shifted(denoise, gradient_of(network))
    table = samplers.ddpm(sections(schedules.cosine(1000), meta["respacing"]), variance="learned_range")
    np.testing.assert_array_equal(table.rows.time, arrays["model_times"][:, 0])
    table = guidance.on_classifier(table, scale=meta["guidance_scale"])
    last = lambda name: jnp.asarray(np.moveaxis(arrays[name], -3, -1))
    found = trace(denoise, table, last("x_init"), last("noise"))
    assert relative(found, last("samples")) < 1e-4


def test_there_and_back(network):
    check_there_and_back(network)


def test_every_misfit_is_listed(network):
    check_every_misfit_is_listed(
        network,
        removed="text_encoder.blocks.block_1.f_mlp.f_2.b",
        cut="image_encoder.blocks.input.w_t",
        layer="text",
    )


def test_what_follows_the_end_of_a_text_is_not_read(network):
    tokens, lengths = text(network).values()
    encode = jax.jit(lambda tokens: network.model.text.apply({"params": network.params["text"]}, tokens, lengths))
    padded = jnp.where(jnp.arange(tokens.shape[1])[None] < lengths[:, None], tokens, 5)
    assert (padded != tokens).any()
    np.testing.assert_allclose(encode(padded), encode(tokens), atol=1e-6)
    assert relative(encode(jnp.flip(tokens, axis=1)), encode(tokens)) > 1e-2


def test_size_of_the_published_network():
    """ViT-B/16's towers: 12 blocks of 12 d^2 + 12 d (the key has no bias), tables, norms and projections."""
    _, wanted = glide_clip._names_and_shapes(glide_clip.PUBLISHED)
    blocks = lambda d: 12 * (12 * d**2 + 12 * d)
    text = blocks(512) + (65536 + 77) * 512 + 2 * 512 + 512 * 512
    image = blocks(768) + (1000 + 257 + 48) * 768 + 4 * 768 + 768 * 512
    assert sum(int(np.prod(shape)) for shape in wanted.values()) == text + image


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda network: network.model.text.apply({}, jnp.zeros((2, 3), int), jnp.ones(2, int)), r"tokens must be int"),
        (
            lambda network: network.model.image.apply({}, jnp.zeros((2, 9, 8, 3)), jnp.ones(2)),
            r"x_t must be \[B, 8, 8, 3\]",
        ),
        (lambda network: FAMILY[0]({**glide_clip.PUBLISHED, "n_heads": 3}), "it has n_heads=3"),
        (lambda network: FAMILY[0]({"n_embd": 3}), "it misses image_size, misses logit_scale"),
    ],
)
def test_wrong_input(network, call, message):
    with pytest.raises(ValueError, match=message):
        call(network)
