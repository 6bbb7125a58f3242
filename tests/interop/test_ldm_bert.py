"""Latent diffusion's text encoders under their own names: outputs, gradients, and the way of the weights and back."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax.interop import layers, ldm_bert
from ddpm_jax.models import LDMBert
from tests.helpers import relative
from tests.interop.golden_networks import check, check_every_misfit_is_listed, check_there_and_back, network_of

HEAD = ("transformer.to_logits.weight", "transformer.to_logits.bias")


@pytest.fixture(scope="module", params=["ldm_bert_embedder", "ldm_transformer_embedder"])
def network(request, shared_golden):
    """Without to_logits, whose gradient was not recorded: no way leads from it to the context."""
    path = shared_golden / "first_stage" / request.param
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
        meta = json.loads(str(file["meta"]))
    norms = dict(zip(meta["param_names"], arrays["grad_norms"], strict=True))
    assert [norms.pop(name) for name in HEAD] == [-1, -1]
    meta["param_names"], arrays["grad_norms"] = [*norms], np.array([*norms.values()])
    arrays["grad_global_norm"] = np.linalg.norm(arrays["grad_norms"])
    weights = {name: array for name, array in load_file(path.with_suffix(".safetensors")).items() if name not in HEAD}
    family = (ldm_bert.ldm_from_config, ldm_bert.ldm_to_params, ldm_bert.params_to_ldm)
    return network_of(family, meta["config"], weights, arrays, meta)


def test_output_and_gradients(network, highest):
    tokens = jnp.asarray(network.arrays["in.tokens"], jnp.int32)
    check(lambda params: network.model.apply({"params": params}, tokens), network, output="z", inputs=())


def test_a_short_text(network, highest):
    tokens = jnp.asarray(network.arrays["in.tokens"][:, :5], jnp.int32)
    found = network.model.apply({"params": network.params}, tokens)
    assert relative(found, network.arrays["out.z_short5"]) < 1e-5


def test_there_and_back(network):
    check_there_and_back(network)
    with_head = network.weights | dict.fromkeys(HEAD, np.zeros(3, np.float32))
    jax.tree.map(np.testing.assert_array_equal, network.to_params(with_head), network.params)


def test_every_misfit_is_listed(network):
    removed, cut = "transformer.attn_layers.layers.1.1.net.2.bias", "transformer.pos_emb.emb.weight"
    check_every_misfit_is_listed(network, removed=removed, cut=cut, layer="norm_out")


# Of CompVis/ldm-text2im-large-256: all of it is default.
PUBLISHED = {"architectures": ["LDMBertModel"], "num_hidden_layers": 32, "scale_embedding": False, "use_cache": True}


def test_the_default_is_the_published_one():
    """diffusers 0.42.1 on PyTorch's meta device, without to_logits; and the original's settings."""
    assert ldm_bert.bert_from_config(PUBLISHED) == ldm_bert.bert_from_config({}) == LDMBert()
    assert ldm_bert.ldm_from_config({"n_embed": 1280, "n_layer": 32}) == LDMBert()
    shapes = layers.param_shapes(LDMBert(), jax.ShapeDtypeStruct((1, 77), jnp.int32))
    assert sum(map(math.prod, shapes.values())) == 542_895_360
    assert ldm_bert.bert_from_config(ldm_bert.bert_to_config(LDMBert(depth=3))) == LDMBert(depth=3)


UNKNOWN = "not an LDMBertModel that is known here: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope": 1, "hidden_size": 8}, f"{UNKNOWN}rope=1, hidden_size=8$"),
        ({"scale_embedding": True}, f"{UNKNOWN}scale_embedding=True"),
        ({"encoder_layers": 3}, f"{UNKNOWN}num_hidden_layers=32"),
        ({"activation_function": "relu"}, r"unknown activation_function 'relu'.* \(known: quick_gelu, gelu\)"),
        ({"head_dim": 0}, "head_dim must be a whole number in .*, got 0"),
        ({"d_model": None}, "d_model must be a whole number in .*, got None"),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ldm_bert.bert_from_config(PUBLISHED | change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_embed": 8, "n_layer": 1, "heads": 3}, "not a BERTEmbedder that is known here: heads=3"),
        ({"n_embed": 8}, "n_layer must be a whole number in .*, got None"),
    ],
)
def test_other_embedders_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ldm_bert.ldm_from_config(config)


def test_more_layers_than_a_file_can_hold():
    with pytest.raises(ValueError, match="encoder_layers is 100000, for a file of 1 arrays"):
        ldm_bert.bert_to_params({"a": np.zeros(1)}, {"encoder_layers": 100000})
