"""CLIP's text encoder with transformers' weights: outputs, gradients, and the way of the weights there and back."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import clip, layers
from ddpm_jax.models import CLIPText
from tests.helpers import relative
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, stored


@pytest.fixture(scope="module")
def network(shared_golden):
    return stored(shared_golden, "clip_text", (clip.clip_from_config, clip.clip_to_params, clip.params_to_clip))


def features(network, mask=None, **changes):
    model = replace(network.model, **changes)
    return jax.jit(model.apply)({"params": network.params}, jnp.asarray(network.arrays["in.ids"], jnp.int32), mask)


def test_output_and_gradients(network, highest):
    tokens = jnp.asarray(network.arrays["in.ids"], jnp.int32)
    check(
        lambda params: network.model.apply({"params": params}, tokens).last_hidden,
        network,
        output="last_hidden_state",
        inputs=(),
        no_gradient=r"k_proj\.bias",  # it adds the same to all logits of a query
    )


def test_pooled_and_penultimate(network, highest):
    found = features(network)
    assert relative(found.pooled, network.arrays["out.pooler_output"]) < 1e-5
    assert relative(found.hidden[-2], network.arrays["out.penultimate_hidden_state"]) < 1e-5
    assert len(found.hidden) == network.meta["config"]["num_hidden_layers"] + 1


def test_mask(network, highest):
    mask = jnp.asarray(network.arrays["in.mask"], bool)
    expected = network.arrays["out.masked_last_hidden_state"]
    assert relative(features(network, mask).last_hidden, expected) < 1e-5
    # Here padding follows the text, and no token of the text attends to what follows: it changes padding alone.
    assert relative(features(network).last_hidden[mask], expected[mask]) < 1e-5
    assert relative(features(network).last_hidden, expected) > 1e-2


def test_end_token_of_older_configurations(network, highest):
    """transformers pools at the largest token where the config says 2; in these texts that is the end token."""
    model = clip.clip_from_config(network.meta["config"] | {"eos_token_id": 2})
    assert model == replace(network.model, eos_token=None)
    np.testing.assert_array_equal(features(network, eos_token=None).pooled, features(network).pooled)


def test_bfloat16_is_close_to_float32(network):
    found = features(network, dtype=jnp.bfloat16)
    assert {found.last_hidden.dtype, found.pooled.dtype, *(h.dtype for h in found.hidden)} == {jnp.dtype("float32")}
    assert 1e-4 < relative(found.last_hidden, network.arrays["out.last_hidden_state"]) < 2e-2


def test_there_and_back(network):
    check_there_and_back(network)


def test_every_misfit_is_listed(network):
    check_every_misfit_is_listed(
        network,
        removed="encoder.layers.1.mlp.fc2.bias",
        cut="embeddings.position_embedding.weight",
        layer="norm_out",
    )


def test_names_of_older_checkpoints(network):
    old = {f"text_model.{name}": array for name, array in network.weights.items()}
    old["text_model.embeddings.position_ids"] = np.arange(16)[None]
    jax.tree.map(np.testing.assert_array_equal, network.to_params(old), network.params)
    with pytest.raises(ValueError, match=r"left over text_model\.final_layer_norm\.bias$"):
        name = "final_layer_norm.bias"
        network.to_params(network.weights | {f"text_model.{name}": network.weights[name]})


# What differs from the defaults of CLIPTextConfig in Stable Diffusion's text_encoder/config.json.
STABLE_DIFFUSION_1 = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 2}
STABLE_DIFFUSION_1 |= {"_name_or_path": "openai/clip-vit-large-patch14", "torch_dtype": "float32"}
STABLE_DIFFUSION_2 = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "eos_token_id": 2}
STABLE_DIFFUSION_2 |= {"num_hidden_layers": 23, "hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("config", "size"), [(STABLE_DIFFUSION_1, 123_060_480), (STABLE_DIFFUSION_2, 340_387_840)], ids=["1", "2"]
)
def test_sizes_of_published_networks(config, size):
    """transformers 5.23.0 on PyTorch's meta device: the text encoders of Stable Diffusion 1 and 2."""
    _, wanted = clip._names_and_shapes(config)
    assert sum(math.prod(shape) for shape in wanted.values()) == size


def test_the_default_is_that_of_stable_diffusion_1():
    assert clip.clip_from_config(STABLE_DIFFUSION_1) == CLIPText()
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    assert layers.param_shapes(CLIPText(), tokens) == clip._names_and_shapes(STABLE_DIFFUSION_1)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"new_setting": 1, "use_cache": True},
            "not a CLIPTextModel that is known here: new_setting=1, use_cache=True",
        ),
        ({"hidden_act": "relu"}, r"unknown hidden_act 'relu'.* \(known: quick_gelu, gelu\)"),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        clip.clip_from_config(STABLE_DIFFUSION_1 | change)
