"""FlaxAutoencoderKL under its old name: recorded numbers, the axes it had, the programs that call it, refusals."""

import json
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct, traverse_util
from safetensors.numpy import save_file

from ddpm_jax.interop import autoencoder, flax_weights, load_first_stage
from ddpm_jax.interop.flax import FlaxAutoencoderKL, LatentDist
from ddpm_jax.models.autoencoder import AutoencoderKL
from ddpm_jax.trained import FirstStage
from tests.helpers import relative
from tests.interop.golden_networks import load, nhwc
from tests.interop.test_flax_weights import ARRAYS, recorded, values, write_flax
from tests.interop.test_hub import Hub
from tests.interop.test_load import STEM, same_tree, write_model

CONFIG, WEIGHTS = recorded("vae")
TORCH = {name: np.ascontiguousarray(array) for name, array in flax_weights.to_state_dict(WEIGHTS).items()}
IMAGES, LATENTS = jnp.asarray(ARRAYS["vae.x"]), jnp.asarray(ARRAYS["vae.z"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As FlaxAutoencoderKL.save_pretrained wrote it."""
    folder = tmp_path_factory.mktemp("flax") / "vae"
    write_flax(folder, CONFIG, WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return FlaxAutoencoderKL.from_pretrained(folder)


@pytest.fixture(scope="module")
def posterior(loaded):
    vae, params = loaded
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda p, x: vae.apply({"params": p}, x, method=vae.encode).latent_dist)(params, IMAGES)


def decode(loaded, z, **options):
    vae, params = loaded
    return jax.jit(partial(vae.apply, method=vae.decode, **options))({"params": params}, z)


class Tiny(NamedTuple):
    """One level of 4 channels, which is compiled soon; images, their posterior, and the images of its mean."""

    vae: FlaxAutoencoderKL
    params: Any
    x: jax.Array
    posterior: LatentDist
    decoded: jax.Array


@pytest.fixture(scope="module")
def tiny():
    vae = FlaxAutoencoderKL(block_out_channels=[4], norm_num_groups=2, latent_channels=2)
    shapes = traverse_util.flatten_dict(jax.eval_shape(vae.init_weights, jax.random.key(0)), sep="/")
    params = traverse_util.unflatten_dict({path: values(path, leaf.shape) for path, leaf in shapes.items()}, sep="/")
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 6))
    return Tiny(vae, params, x, *both(vae)(params, x))


def both(vae):
    """params, images -> (posterior, the images of its mean)."""

    def run(params, x):
        found = vae.apply({"params": params}, x, method=vae.encode).latent_dist
        return found, vae.apply({"params": params}, found.mean, method=vae.decode).sample

    return jax.jit(run)


def test_what_the_flax_class_computed(loaded, posterior, highest):
    """Recorded from diffusers 0.30.3: images [B, C, H, W], latents [B, h, w, D] or [B, D, h, w]."""
    assert relative(posterior.mean, ARRAYS["vae.mean"]) < 1e-5
    assert relative(posterior.logvar, ARRAYS["vae.logvar"]) < 1e-5
    assert relative(decode(loaded, jnp.asarray(ARRAYS["vae.z"])).sample, ARRAYS["vae.decoded"]) < 1e-5


def test_what_the_pytorch_class_computed(shared_golden, tmp_path, highest):
    """Recorded from AutoencoderKL of diffusers 0.42.1, whose latents have channels first."""
    arrays, meta, weights = load(shared_golden, "autoencoder_kl")
    write_model(tmp_path / "vae", "AutoencoderKL", meta["config"], weights)
    vae, params = FlaxAutoencoderKL.from_pretrained(str(tmp_path), from_pt=True, subfolder="vae")
    z = jnp.asarray(arrays["out.z"])
    both = jax.jit(lambda x, z: (vae.apply({"params": params}, x, method=vae.encode).latent_dist,
                                 vae.apply({"params": params}, z, method=vae.decode).sample))  # fmt: skip
    found, images = both(jnp.asarray(arrays["in.x"]), z)
    assert relative(found.mode(), nhwc(arrays["out.mean"])) < 1e-5
    assert relative(found.logvar, nhwc(arrays["out.logvar"])) < 1e-5
    assert relative(found.std, nhwc(arrays["out.std"])) < 1e-5
    np.testing.assert_allclose(found.kl(), arrays["out.kl"], rtol=1e-5)
    np.testing.assert_allclose(found.nll(nhwc(arrays["out.z"])), arrays["out.nll"], rtol=1e-5)
    assert relative(images, arrays["out.decoded"]) < 1e-5


def test_the_same_as_our_first_stage(folder, loaded, tiny, highest):
    """Parameters and all: `encode` is FirstStage's with axes moved, and its scale is the config's."""
    (vae, params), stage = loaded, load_first_stage(folder)
    same_tree(params, stage.params)
    assert stage.scale == vae.config.scaling_factor == 0.18215
    stage = FirstStage(AutoencoderKL(**autoencoder.kl_settings(tiny.vae.config)), tiny.params, stage.scale)
    x = tiny.x.transpose(0, 2, 3, 1)
    ours, decoded = jax.jit(lambda x: (found := stage.posterior(x), stage.decode(stage.scaled(found.mode()))))(x)
    assert relative(tiny.posterior.mean, ours.mean) < 1e-6 and relative(tiny.posterior.logvar, ours.log_variance) < 1e-6
    assert relative(tiny.decoded.transpose(0, 2, 3, 1), decoded) < 1e-5
    np.testing.assert_allclose(tiny.posterior.kl(), ours.kl(), rtol=1e-6)
    shapes = jax.eval_shape(stage.model.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, tiny.params) == jax.tree.map(jnp.shape, shapes)


def test_latents_as_wide_as_they_have_channels_are_channels_last(tiny):
    """As the old class took them: [1, 2, 3, 2] are 2 x 3 latents, not 3 x 2."""
    z = tiny.posterior.mean[:1, :2, :3]
    first, last = jax.jit(lambda z: (decode(tiny[:2], z.transpose(0, 3, 1, 2)).sample, decode(tiny[:2], z).sample))(z)
    assert z.shape == (1, 2, 3, 2) and last.shape == (1, 3, 2, 3)
    np.testing.assert_allclose(first, last, atol=1e-6)


def test_the_distribution(posterior):
    mean, logvar = np.asarray(posterior.mean, np.float64), np.asarray(posterior.logvar, np.float64)
    np.testing.assert_allclose(posterior.std, np.exp(logvar / 2), rtol=1e-6)
    np.testing.assert_allclose(posterior.var, np.exp(logvar), rtol=1e-6)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        z = np.asarray(jax.random.normal(key, mean.shape))
        np.testing.assert_allclose(posterior.sample(key), mean + np.exp(logvar / 2) * z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(posterior.kl(posterior), 0, atol=1e-5)
    other = LatentDist(posterior.mean + 1, posterior.logvar)
    np.testing.assert_allclose(posterior.kl(other), (1 / np.exp(logvar)).sum((1, 2, 3)) / 2, rtol=1e-5)
    expected = (mean**2 + np.exp(logvar) - 1 - logvar).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(posterior.kl(), expected, rtol=1e-5)


def test_settings_are_read_by_name(loaded):
    vae, _ = loaded
    assert vae.config.scaling_factor == vae.config["scaling_factor"] == vae.scaling_factor == 0.18215
    assert vae.config.block_out_channels == vae.block_out_channels == (16, 32)
    assert vae.config.latent_channels == 4 and vae.config.get("sample_size") == 8 and "dtype" not in vae.config
    assert getattr(vae.config, "shift_factor", None) is None
    with pytest.raises(AttributeError, match=r"no setting 'scaling_facto'.*scaling_factor"):
        _ = vae.config.scaling_facto
    with pytest.raises(ValueError, match="act_fn='relu'"):
        vae.clone(act_fn="relu")
    same = FlaxAutoencoderKL(**{name: value for name, value in CONFIG.items() if not name.startswith("_")})
    assert vae == same and hash(vae) == hash(same) and FlaxAutoencoderKL().config.block_out_channels == (64,)


# ------------------------------------------------------------------------------------------ the programs that call it


def test_as_improved_mean_flow_calls_it(tiny):
    """Encodes [devices, B, H, W, C] under pmap into [mean, std]; decodes [devices, B, D, h, w] by a compiled pmap."""
    vae, params = tiny[:2]

    def moments(images):
        found = vae.apply({"params": params}, jnp.transpose(images, (0, 3, 1, 2)), method=FlaxAutoencoderKL.encode)
        return jnp.concatenate((found.latent_dist.mean, found.latent_dist.std), axis=-1)

    found = jax.pmap(moments, axis_name="batch")(tiny.x.transpose(0, 2, 3, 1)[:, None])
    np.testing.assert_allclose(found[:, 0], np.concatenate([tiny.posterior.mean, tiny.posterior.std], -1), atol=1e-5)

    each = jax.tree.map(lambda array: jnp.stack([array, array]), {"params": params})
    z = tiny.posterior.mean.transpose(0, 3, 1, 2)[:, None]
    compiled = jax.pmap(partial(vae.apply, method=FlaxAutoencoderKL.decode), axis_name="batch").lower(each, z).compile()
    images = compiled(each, z).sample
    assert images.shape == (2, 1, 3, 4, 6)
    np.testing.assert_allclose(images[:, 0], tiny.decoded, atol=1e-5)


@struct.dataclass
class Held:
    """Parameters as leaves and the module as a static field, as shortcut models keep them."""

    params: dict
    module: FlaxAutoencoderKL = struct.field(pytree_node=False)

    @partial(jax.jit, static_argnames="scale")
    def encode(self, key, images, scale=True):
        x = images.transpose(0, 3, 1, 2)
        z = self.module.apply({"params": self.params}, x, method=self.module.encode).latent_dist.sample(key)
        return z * self.module.config.scaling_factor if scale else z

    @partial(jax.jit, static_argnames="scale")
    def decode(self, latents, scale=True):
        z = latents / self.module.config.scaling_factor if scale else latents
        images = self.module.apply({"params": self.params}, z, method=self.module.decode).sample
        return images.transpose(0, 2, 3, 1)


def test_as_shortcut_models_call_it(tiny):
    """A static field of a tree under jit, which is not compiled again for an equal one; latents stay [B, h, w, D]."""
    vae, params = tiny[:2]
    held, key = Held(jax.device_get(params), vae), jax.random.PRNGKey(42)
    z = held.encode(key, tiny.x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(z, 0.18215 * tiny.posterior.sample(key), atol=1e-5)
    before = Held.decode._cache_size()
    for found in (Held(params, module).decode(0.18215 * tiny.posterior.mean) for module in (vae, vae.clone())):
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), tiny.decoded, atol=1e-5)
    assert Held.decode._cache_size() == before + 1


def test_as_diffuse_nnx_bridges_an_autoencoder(tiny):
    """nnx.bridge.ToNNX with a lazy initialization, its state replaced by what was loaded, methods by name."""
    bridged = nnx.bridge.ToNNX(tiny.vae, rngs=nnx.Rngs(0, gaussian=1)).lazy_init(tiny.x)
    nnx.update(bridged, jax.tree.map(nnx.Param, tiny.params))

    @nnx.jit
    def run(bridged, x):
        z = bridged(x, method="encode").latent_dist.mode()
        return z, bridged(z, True, method="decode").sample

    z, found = run(bridged, tiny.x)
    np.testing.assert_allclose(z, tiny.posterior.mean, atol=1e-5)
    np.testing.assert_allclose(found, tiny.decoded, atol=1e-5)


def test_parameters_that_an_old_program_kept(loaded):
    """The tree of the old class, in a pickle or msgpack, and ours."""
    vae, params = loaded
    kept = traverse_util.unflatten_dict(dict(WEIGHTS), sep="/")
    same_tree(autoencoder.kl_to_params(flax_weights.to_state_dict(kept), vae.config), params)


def test_vmap(tiny):
    one = lambda x: tiny.vae.apply({"params": tiny.params}, x[None], method="encode").latent_dist.mean[0]
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(tiny.x), tiny.posterior.mean, atol=1e-5)


def test_gradients(tiny, highest):
    """Those of our autoencoder, to parameters and latents."""
    vae, ours = tiny.vae, AutoencoderKL(**autoencoder.kl_settings(tiny.vae.config))
    old = lambda p, z: jnp.sum(vae.apply({"params": p}, z, method=vae.decode).sample ** 2)
    new = lambda p, z: jnp.sum(ours.apply({"params": p}, z, method="decode") ** 2)
    gradients = jax.jit(lambda *args: (jax.grad(old, (0, 1))(*args), jax.grad(new, (0, 1))(*args)))
    found, expected = gradients(tiny.params, tiny.posterior.mean)
    assert np.abs(found[1]).max() > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def test_a_reconstruction(tiny):
    """decode(mode), or with the key "gaussian" decode(z) of z ~ q(z | x)."""
    run = lambda drawn: jax.jit(
        lambda key: tiny.vae.apply({"params": tiny.params}, tiny.x, drawn, rngs={"gaussian": key}).sample
    )
    first, second = jax.random.split(jax.random.key(0))
    np.testing.assert_allclose(run(False)(first), tiny.decoded, atol=1e-5)
    drawn = run(True)
    np.testing.assert_array_equal(drawn(first), drawn(first))
    assert np.abs(drawn(first) - drawn(second)).max() > 1e-3 and np.abs(drawn(first) - tiny.decoded).max() > 1e-3


def test_tuples_in_the_place_of_fields(tiny):
    for method, x in (("encode", tiny.x), ("decode", tiny.posterior.mean), ("__call__", tiny.x)):
        call = lambda method=method, x=x, **options: jax.eval_shape(
            partial(tiny.vae.apply, method=method, **options), {"params": tiny.params}, x
        )
        found, named = call(return_dict=False), call()
        assert type(found) is tuple and type(named) is not tuple and found == tuple(named)


def test_dtype_is_of_the_computation(tiny):
    """Results have the dtype, draws are float32, parameters may be either: as in the old class."""
    found, decoded = both(tiny.vae.clone(dtype=jnp.bfloat16))(tiny.params, tiny.x)
    assert found.mean.dtype == found.logvar.dtype == found.std.dtype == decoded.dtype == jnp.bfloat16
    assert found.sample(jax.random.key(0)).dtype == tiny.posterior.mean.dtype == tiny.decoded.dtype == jnp.float32
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        with_rounded = decode((tiny.vae, rounded), tiny.posterior.mean).sample
    assert (found.mean != tiny.posterior.mean.astype(jnp.bfloat16)).any()  # not only the result is rounded
    pairs = (found.mean, tiny.posterior.mean), (decoded, tiny.decoded), (with_rounded, tiny.decoded)
    for actual, expected in pairs:  # 8 bits of a mantissa, through 10 layers
        assert 1e-5 < relative(actual.astype(jnp.float32), expected) < 3e-2
    half = jax.eval_shape(both(tiny.vae.clone(dtype="float16")), tiny.params, tiny.x)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float16")}


def test_dtype_of_a_folder(folder, loaded):
    vae, params = FlaxAutoencoderKL.from_pretrained(folder, jnp.bfloat16)
    same_tree(params, loaded[1])
    assert vae == loaded[0].clone(dtype=jnp.bfloat16) == loaded[0].clone(dtype="bfloat16") != loaded[0]


# --------------------------------------------------------------------------------------------------- where it is read


def test_which_weights_are_read(tmp_path):
    """Flax's where there are some, PyTorch's by from_pt or where there are no others."""
    torch = TORCH | {"decoder.conv_out.bias": TORCH["decoder.conv_out.bias"] + 1}
    write_model(tmp_path, "FlaxAutoencoderKL", CONFIG, torch)
    bias = lambda **options: FlaxAutoencoderKL.from_pretrained(tmp_path, **options)[1]["decoder"]["conv_out"]["bias"]
    moved = WEIGHTS["decoder/conv_out/bias"] + 1
    np.testing.assert_array_equal(bias(), moved)
    write_flax(tmp_path, CONFIG, WEIGHTS)
    np.testing.assert_array_equal(bias(), WEIGHTS["decoder/conv_out/bias"])
    np.testing.assert_array_equal(bias(from_pt=True), moved)
    (tmp_path / f"{STEM}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected diffusion_pytorch_model\.safetensors or \.bin$"):
        bias(from_pt=True)
    (tmp_path / flax_weights.NAME).unlink()
    with pytest.raises(FileNotFoundError, match=f"safetensors or .bin, or {flax_weights.NAME}"):
        bias()


def test_names_on_the_hub(folder, loaded, tmp_path, monkeypatch):
    """As old programs give them, or with hf: before; the part that is asked for, in the form that is asked for."""
    pytest.importorskip("huggingface_hub.utils")
    source = tmp_path / "source"
    for part in ("", "vae/"):
        write_flax(source / part, CONFIG, WEIGHTS)
        save_file(TORCH, source / part / f"{STEM}.safetensors")
    stand_in = Hub(source, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    of_flax, of_torch = f"vae/{flax_weights.NAME}", f"vae/{STEM}.safetensors"
    for name, options, expected in (
        ("hf:owner/sd", {"subfolder": "vae"}, {of_flax}),
        ("owner/sd", {"subfolder": "vae", "from_pt": True, "revision": "bf16"}, {of_flax, of_torch}),
        ("owner/sd", {}, {of_flax, of_torch, flax_weights.NAME}),
    ):
        same_tree(FlaxAutoencoderKL.from_pretrained(name, **options)[1], loaded[1])
        found = {str(path.relative_to(stand_in.cache)) for path in stand_in.cache.rglob("*") if path.is_file()}
        assert {path for path in found if not path.endswith(".json")} == expected
    assert {revision for _, revision in stand_in.calls} == {None, "bf16"}


ARGUMENTS = {
    "torch_dtype": (jnp.bfloat16, r"torch_dtype=.*bfloat16.* is no argument.*did you mean 'dtype'"),
    "cache_dir": ("/tmp", r"cache_dir='/tmp' is no argument.*HF_HOME"),
    "use_safetensors": (True, r"use_safetensors=True is no argument.*safetensors are read"),
    "scaling_factor": (0.5, r"scaling_factor=0\.5 is no argument.*vae\.clone\(scaling_factor=\.\.\.\)"),
    "revision": ("flax", r"revision is of a name on the hub.*is a folder, got 'flax'"),
    "dtype": (jnp.int8, r"dtype must be one of float32, bfloat16, float16, got .*int8"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_without_effect_are_refused(name, folder):
    value, message = ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        FlaxAutoencoderKL.from_pretrained(folder, **{name: value})


SETTINGS = {
    "act_fn": ("relu", "act_fn='relu'"),
    "down_block_types": (["AttnDownEncoderBlock2D"] * 2, "up_block_types"),
    "block_out_channels": ([16, 40], r"block_out_channels=\(?\[?16, 40"),
    "shift_factor": (0.1, "shift_factor"),
    "norm_num_groups": ("8", "norm_num_groups"),
    "latent_channels": (3, "quant_conv"),
    "_class_name": ("VQModel", r"must hold an AutoencoderKL or a FlaxAutoencoderKL, got 'VQModel'"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_it_would_read_past_are_refused(name, tmp_path):
    """The old class computed the same whatever act_fn, attention of the levels or shift a file had."""
    value, message = SETTINGS[name]
    write_flax(tmp_path, CONFIG | {name: value}, WEIGHTS)
    with pytest.raises(ValueError, match=message):
        FlaxAutoencoderKL.from_pretrained(tmp_path)


def test_folders_without_an_autoencoder(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no config.json .* {folder.parent}: give subfolder='vae'"):
        FlaxAutoencoderKL.from_pretrained(folder.parent)
    with pytest.raises(FileNotFoundError, match=r"no config\.json of an autoencoder"):
        FlaxAutoencoderKL.from_pretrained(folder, subfolder="unet")
    with pytest.raises(FileNotFoundError, match=r"no folder .*and no owner/name"):
        FlaxAutoencoderKL.from_pretrained(tmp_path / "nothing" / "here")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG)[:-5])
    with pytest.raises(ValueError, match=r"config\.json"):
        FlaxAutoencoderKL.from_pretrained(tmp_path)


def test_shapes_are_refused_with_what_is_allowed(loaded):
    vae, params = loaded
    call = lambda method, shape, **options: jax.eval_shape(
        partial(vae.apply, method=method, **options), {"params": params}, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    for shape in ((2, 8, 8, 3), (3, 8, 8), (2, 4, 8, 8)):
        with pytest.raises(ValueError, match=rf"images must be \[B, 3, H, W\], channels first, got shape \({shape[0]}"):
            call("encode", shape)
    with pytest.raises(ValueError, match="divisible by 2, got 9 x 8"):
        call("encode", (2, 3, 9, 8))
    for shape in ((2, 3, 8, 8), (4, 8, 4)):
        with pytest.raises(ValueError, match=r"latents must be \[B, h, w, 4\] or \[B, 4, h, w\], got shape"):
            call("decode", shape)
    for method, shape in (("encode", (2, 3, 8, 8)), ("decode", (2, 4, 4, 4)), ("__call__", (2, 3, 8, 8))):
        with pytest.raises(ValueError, match=r"deterministic must be True.*got False"):
            call(method, shape, deterministic=False)
