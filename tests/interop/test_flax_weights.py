"""Flax weights of diffusers and transformers: recorded outputs, the same as PyTorch's, one error for what is wrong."""

import re
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util

from ddpm_jax.interop import autoencoder, clip, files, flax_weights, load, save_diffusers
from ddpm_jax.interop.diffusers import conditional
from ddpm_jax.names import choose
from tests.helpers import few, golden, relative
from tests.interop.golden_networks import nhwc
from tests.interop.test_hub import Hub
from tests.interop.test_load import STEM, fails, same_tree, write, write_model

ARRAYS, META = golden("other/flax_networks")
UNETS = ("unet_sd1", "unet_sd2")
PNDM = {"_class_name": "FlaxPNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}


def recorded(name, **changes):
    """(config, parameters by path) of a recorded network, which the recipe in its file makes."""
    layout = META["networks"][name]["layout"]
    return META["networks"][name]["config"] | changes, {path: values(path, shape) for path, shape in layout.items()}


def values(path, shape):
    u = np.random.RandomState(zlib.crc32(path.encode())).uniform(-1, 1, shape)
    leaves = {"scale": 1 + u / 4, "bias": u / 4, "kernel": u * np.sqrt(3 / np.prod(shape[:-1])), "embedding": u}
    return choose("leaf", path.rpartition("/")[2], leaves).astype(np.float32)


def write_flax(folder, config, weights):
    write(folder / "config.json", config)
    nested = traverse_util.unflatten_dict(dict(weights), sep="/")
    (folder / flax_weights.NAME).write_bytes(serialization.to_bytes(nested))


def write_pipeline(folder, unet, vae=None, scheduler=PNDM):
    """A folder as FlaxStableDiffusionPipeline saves it, its text encoder left out."""
    write_flax(folder / "unet", *unet)
    parts = {"unet": ["diffusers", unet[0]["_class_name"]], "scheduler": ["diffusers", scheduler["_class_name"]]}
    if vae is not None:
        write_flax(folder / "vae", *vae)
        parts["vae"] = ["diffusers", vae[0]["_class_name"]]
    write(folder / "scheduler" / "scheduler_config.json", scheduler)
    write(folder / "model_index.json", {"_class_name": "FlaxStableDiffusionPipeline", **parts})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_pipeline(tmp_path / "flax", recorded("unet_sd1"))


def outputs(loaded, name, *params):
    """Of the recorded input, with each of these parameters."""
    t, context = jnp.asarray(ARRAYS[f"{name}.t"], jnp.float32), jnp.asarray(ARRAYS[f"{name}.context"])
    compiled = jax.jit(lambda params: loaded.model_fn(params, context=context)(nhwc(ARRAYS[f"{name}.x"]), t))
    return [compiled(each) for each in params]


def flax_layout(state_dict, layout):
    """PyTorch's arrays in Flax's layout: numbers after "_", and of the names that a layer can have the class's."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
    result = {}
    for name, array in state_dict.items():
        *layers, leaf = re.sub(r"\.(\d+)\b", r"_\1", name).split(".")
        spelled = ["/".join(layers), "/".join([*layers[:-1], old.get(layers[-1], layers[-1])])]
        leaves = ("kernel", "scale", "embedding") if leaf == "weight" else ("bias",)
        (path,) = {f"{layer}/{leaf}" for layer in spelled for leaf in leaves} & set(layout)
        result[path] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        result[path] = array.T if path.endswith("kernel") and array.ndim == 2 else result[path]
    return result


@pytest.mark.parametrize("name", UNETS)
def test_unet(name, tmp_path, highest):
    """What FlaxUNet2DConditionModel computed, with the gelu of PyTorch; with its own one, tanh's, nearly so."""
    loaded = load(write_pipeline(tmp_path, recorded(name)))
    (found,) = outputs(loaded, name, loaded.params)
    assert relative(found, nhwc(ARRAYS[f"{name}.out_exact_gelu"])) < 1e-5
    assert 5e-5 < relative(found, nhwc(ARRAYS[f"{name}.out"])) < 2e-4
    assert loaded.image_shape == (8, 8, 4)
    assert loaded.origin == "a diffusers folder (FlaxStableDiffusionPipeline)"
    assert loaded.scheduler_config is not None and loaded.scheduler_config["_class_name"] == "PNDMScheduler"
    assert loaded.default_sampler(10).table.num_calls == 11


def test_autoencoder(folder, highest):
    """What FlaxAutoencoderKL computed."""
    write_pipeline(folder, recorded("unet_sd1"), recorded("vae"))
    first_stage = load(folder).first_stage
    assert first_stage is not None and first_stage.scale == 0.18215
    encode = jax.jit(lambda x: first_stage.model.apply({"params": first_stage.params}, x, method="encode"))
    posterior = encode(nhwc(ARRAYS["vae.x"]))
    assert relative(posterior.mean, ARRAYS["vae.mean"]) < 1e-5
    assert relative(posterior.log_variance, ARRAYS["vae.logvar"]) < 1e-5
    decoded = jax.jit(first_stage.decode)(0.18215 * nhwc(ARRAYS["vae.z"]))
    assert relative(decoded, nhwc(ARRAYS["vae.decoded"])) < 1e-5


def test_text_encoder(tmp_path, highest):
    """What FlaxCLIPTextModel computed, from its file or its parameters."""
    config, weights = recorded("clip")
    nested = traverse_util.unflatten_dict(weights, sep="/")
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(nested))
    params = clip.flax_clip_to_params(files.read(tmp_path / "flax_model.msgpack"), config)
    same_tree(clip.flax_clip_to_params(nested, config), params)
    same_tree(clip.flax_clip_to_params({"params": nested}, config), params)
    found: Any = clip.clip_from_config(config).apply({"params": params}, jnp.asarray(ARRAYS["clip.tokens"]))
    assert relative(found.last_hidden, ARRAYS["clip.last_hidden"]) < 1e-5
    assert relative(found.pooled, ARRAYS["clip.pooled"]) < 1e-5
    del nested["text_model"]["final_layer_norm"]["scale"]
    with pytest.raises(ValueError, match=r"missing final_layer_norm\.weight"):
        clip.flax_clip_to_params(nested, config)


@pytest.mark.parametrize("name", few(UNETS, "unet_sd1"))
def test_the_same_as_a_folder_of_pytorch(name, tmp_path):
    """The same bits, and outputs, whichever layout random weights are in; also when they are saved again."""
    config, _ = recorded(name)
    kl_config, kl_weights = recorded("vae")
    layouts = META["networks"][name]["layout"], META["networks"]["vae"]["layout"]
    ours = load(write_pipeline(tmp_path / "a", recorded(name), recorded("vae")))
    assert ours.first_stage is not None
    unet = conditional.params_to_unet2dcond(ours.params, config)
    vae = autoencoder.params_to_kl(ours.first_stage.params, kl_config)
    write_model(tmp_path / "b" / "unet", "UNet2DConditionModel", config, unet)
    write_model(tmp_path / "b" / "vae", "AutoencoderKL", kl_config, vae)
    write(tmp_path / "b" / "scheduler" / "scheduler_config.json", PNDM | {"_class_name": "PNDMScheduler"})
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["", ""], "vae": ["", ""]}
    write(tmp_path / "b" / "model_index.json", index)
    theirs = load(tmp_path / "b")
    write_flax(tmp_path / "c" / "unet", config, flax_layout(unet, layouts[0]))
    assert flax_layout(vae, layouts[1]).keys() == kl_weights.keys()
    write_flax(tmp_path / "c" / "vae", kl_config, flax_layout(vae, layouts[1]))
    write(tmp_path / "c" / "scheduler" / "scheduler_config.json", PNDM)
    write(tmp_path / "c" / "model_index.json", index | {"_class_name": "FlaxStableDiffusionPipeline"})
    save_diffusers(tmp_path / "d", ours)
    for other in (theirs, load(tmp_path / "c"), load(tmp_path / "d")):
        assert other.model == ours.model and other.first_stage is not None
        assert other.first_stage.model == ours.first_stage.model
        same_tree(other.params, ours.params)
        same_tree(other.first_stage.params, ours.first_stage.params)
        assert other.reading == ours.reading
        assert (other.clip, other.time_scale) == (ours.reading.clip, ours.reading.time_scale)
        same_tree(other.default_sampler(7).table, ours.default_sampler(7).table)
    np.testing.assert_array_equal(*outputs(ours, name, theirs.params, ours.params))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype, folder):
    """The branches "bf16" and "flax" of published models: every number is that of the file."""
    config, weights = recorded("unet_sd1")
    expected = {path: np.asarray(array.astype(dtype), np.float32) for path, array in weights.items()}
    write_flax(folder / "unet", config, {path: array.astype(dtype) for path, array in weights.items()})
    found = load(folder).params
    write_flax(folder / "unet", config, expected)
    same_tree(found, load(folder).params)


def test_weights_of_pytorch_win(folder):
    """Where a part has both, as many published ones do; and the class may be named as either's."""
    config, weights = recorded("unet_sd1", _class_name="UNet2DConditionModel")
    write_flax(folder / "unet", config, {path: 0 * array for path, array in weights.items()})
    assert not load(folder).params["conv_in"]["kernel"].any()
    plain = flax_weights.to_state_dict(recorded("unet_sd1")[1])
    write_model(folder / "unet", "FlaxUNet2DConditionModel", config, {k: v.copy() for k, v in plain.items()})
    assert load(folder).params["conv_in"]["kernel"].any()


def test_large_arrays_are_stored_in_pieces(tmp_path, monkeypatch):
    """Flax cuts arrays of more than a gigabyte."""
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 4096)
    config, weights = recorded("vae")
    write_flax(tmp_path, config, weights)
    assert (tmp_path / flax_weights.NAME).read_bytes().count(b"__msgpack_chunked_array__") > 10
    same_tree(files.read(tmp_path / flax_weights.NAME), weights)


def test_on_the_hub(folder, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub.utils")
    stand_in = Hub(folder, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    same_tree(load("hf:someone/model@flax").params, load(folder).params)
    assert {path.name for path in stand_in.cache.rglob("*.msgpack")} == {flax_weights.NAME}


def test_defaults_of_the_flax_class(folder):
    """A configuration that says no size has the class's, 32; PyTorch's has none."""
    config, weights = recorded("unet_sd1")
    del config["sample_size"]
    write_flax(folder / "unet", config, weights)
    assert load(folder).image_shape == (32, 32, 4)


def packed(array, dtype=None, shape=None):
    """An array as Flax packs it, or one that it would not."""
    content = (shape or array.shape, dtype or array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))


ONES = np.ones((2, 2), np.float32)
HOSTILE = {
    "objects": ({"a": packed(ONES, "O")}, "OBJECT array"),
    "a wrong size": ({"a": packed(ONES, shape=(3, 3))}, "cannot reshape"),
    "a wrong dtype": ({"a": packed(ONES, "float33")}, "float33"),
    "a structured dtype": ({"a": packed(ONES, "f4,f4", (2,))}, "a is "),
    "texts": ({"a": packed(ONES, "S4")}, "a is "),
    "numbers for names": ({1: packed(ONES)}, "damaged file of Flax"),
    "a number": ({"a": {"b": 3}}, "a/b is '3'"),
    "an unknown extension": ({"a": msgpack.ExtType(9, b"code")}, 'a is "ExtType(code=9'),
    "pieces of nothing": ({"a": {"__msgpack_chunked_array__": True}}, "damaged file of Flax"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_with_other_things_is_refused(kind, folder):
    content, message = HOSTILE[kind]
    if kind == "numbers for names":  # behind a text, without which no file looks like one of Flax
        content = {"a": content}
    (folder / "unet" / flax_weights.NAME).write_bytes(msgpack.packb(content))
    fails(folder, f"unet/{flax_weights.NAME}", "of Flax", message)


def test_a_damaged_file_is_one_line(folder):
    path = folder / "unet" / flax_weights.NAME
    whole, random = path.read_bytes(), np.random.RandomState(0)
    nested = b"\x81\xa1a" * 5000 + b"\xc0"
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:20], whole + b"\0", nested):
        path.write_bytes(content)
        fails(folder, f"unet/{flax_weights.NAME}", "damaged file of Flax")
    write_flax(folder, *recorded("clip"))
    path = folder / flax_weights.NAME
    whole = path.read_bytes()
    for place in random.randint(0, 400, 100):  # in the first names and headers
        path.write_bytes(whole[:place] + bytes([whole[place] ^ random.randint(1, 256)]) + whole[place + 1 :])
        try:
            files.read(path)  # a changed name or number is a file all the same
        except ValueError as error:
            assert "\n" not in str(error)


def test_other_names_and_arrays_are_refused(folder):
    config, weights = recorded("unet_sd1")
    for change, message in (
        ({"conv_in/kernell": ONES}, "parameters of Flax are kernel, scale, embedding, bias, got 'conv_in/kernell'"),
        ({"conv_in/scale": ONES}, "'conv_in/scale' under another name too, which would be conv_in.weight"),
        ({"mid_block/resnets_9/conv1/bias": ONES}, "left over mid_block.resnets.9.conv1.bias"),
        ({"conv_in/kernel": ONES}, "conv_in.weight is [2, 2], expected [32, 4, 3, 3]"),
    ):
        write_flax(folder / "unet", config, weights | change)
        fails(folder, message)
    del weights["down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_out_0/kernel"]
    write_flax(folder / "unet", config, weights)
    fails(folder, "missing down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight")
    (folder / "unet" / flax_weights.NAME).unlink()
    fails(folder, "no weights in", f"{STEM}.safetensors or .bin, or {flax_weights.NAME}", kind=FileNotFoundError)


def test_a_file_alone_is_sent_to_its_folder(folder):
    fails(folder / "unet" / flax_weights.NAME, "read as folders with their config.json", "conv_in/bias")


def test_schedulers_without_a_namesake_are_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    write(path, {"_class_name": "FlaxKarrasVeScheduler", "sigma_min": 0.02})
    fails(folder, "unknown Flax scheduler class 'FlaxKarrasVeScheduler'", "FlaxDDIMScheduler")
    write(path, PNDM | {"skip_prk_stepps": True})
    fails(folder, "unknown setting of PNDMScheduler 'skip_prk_stepps'")
    write(path, PNDM | {"skip_prk_steps": "yes"})
    fails(folder, "skip_prk_steps must be true or false, got 'yes'")
