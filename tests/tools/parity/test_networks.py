"""Networks of the installed diffusers with random weights: there and back bit for bit, and the same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import interop
from ddpm_jax.interop import FirstStage, ddim, ldm, openai
from ddpm_jax.interop.diffusers import to_diffusers
from tests.helpers import few, relative, trained_of
from tests.interop import golden_networks
from tests.tools.parity.live import NETWORKS, OURS, nchw, network, nhwc, weights

DENOISERS = ("ddpm", "adm", "stable_diffusion_1", "stable_diffusion_2", "dit")


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name, torch, theirs):
    """PyTorch's arrays to ours to a network of PyTorch with other ones: the same bits, none missing or left over."""
    net, other = network(torch, theirs, name), network(torch, theirs, name, seed=1)
    _, to_params, to_state_dict = OURS[NETWORKS[name][0]]
    config = dict(net.config)
    back = to_state_dict(to_params(weights(net), config), config)
    other.load_state_dict({key: torch.from_numpy(array) for key, array in back.items()}, strict=True)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_return_the_same(name, torch, theirs, highest):
    net = network(torch, theirs, name)
    from_config, to_params, _ = OURS[NETWORKS[name][0]]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 8, 8, net.config.in_channels), np.float32)
    t, y, context = np.array([3.0, 770.0], np.float32), np.array([4, 1]), None
    given, given_theirs = {}, {}
    if name in ("adm", "dit"):
        given, given_theirs = {"y": jnp.asarray(y, jnp.int32)}, {"class_labels": torch.from_numpy(y)}
    if name.startswith("stable"):
        context = generator.standard_normal((2, 3, 6), np.float32)
        given, given_theirs = {"context": context}, {"encoder_hidden_states": torch.from_numpy(context)}
    with torch.no_grad():
        expected = nhwc(net(nchw(torch, x), timestep=torch.from_numpy(t), **given_theirs).sample)
    params = to_params(weights(net), dict(net.config))
    found = jax.jit(from_config(dict(net.config)).apply)({"params": params}, x, t, **given)
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_first_stages_return_the_same(name, torch, theirs, highest):
    net = network(torch, theirs, name)
    from_config, to_params, _ = OURS[NETWORKS[name][0]]
    model, params = from_config(dict(net.config)), to_params(weights(net), dict(net.config))
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    with torch.no_grad():
        encoded = net.encode(nchw(torch, x))
        latents = encoded.latent_dist.mean if name == "kl" else encoded.latents
        expected = nhwc(latents), nhwc(net.decode(latents).sample)

    def both(params, x):
        z = model.apply({"params": params}, x, method="encode")
        z = z.mean if name == "kl" else z
        return z, model.apply({"params": params}, z, method="decode")

    for found, wanted in zip(jax.jit(both)(params, x), expected, strict=True):
        assert relative(found, wanted) < 1e-4


# Settings of UNet2DModel: those of a network, and what it is called with.
TIMES = np.array([3.0, 20.0], np.float32)  # small: the digits of 770 w are in doubt on both sides
SETTINGS = {
    "mish, no attention in the middle": {"act_fn": "mish", "add_attention": False, "mid_block_scale_factor": 3.0},
    "gelu, groups of the middle": {"act_fn": "GELU", "attn_norm_num_groups": 8, "mid_block_scale_factor": 2**0.5},
    "relu, groups beside scale and shift": {
        "act_fn": "relu", "attn_norm_num_groups": 2, "resnet_time_scale_shift": "scale_shift",
    },
    "attention on the way down only": {"up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D")},
    "attention elsewhere on the way up": {"up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "attention_head_dim": None},
    "fourier": {"time_embedding_type": "fourier", "flip_sin_to_cos": False},
    "fourier, class": {"time_embedding_type": "fourier", "class_embed_type": "timestep"},
    # What google/ncsnpp-celebahq-256 is made of.
    "score-SDE": {
        "block_out_channels": (32, 64), "norm_num_groups": None, "attention_head_dim": None,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "fourier", "mid_block_scale_factor": 1.41421356237, "norm_eps": 1e-6,
    },
    "score-SDE, other attention": {
        "block_out_channels": (32, 32, 64), "norm_num_groups": 8, "attention_head_dim": 16, "act_fn": "gelu",
        "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"), "layers_per_block": 2,
    },
}  # fmt: skip


def output_and_slope(torch, net, x, cotangent, **given):
    """The output of a network of diffusers at x [B, H, W, C], and the gradient of mean(cotangent * output) there."""
    x = nchw(torch, x).requires_grad_(True)
    output = net(x, timestep=torch.from_numpy(TIMES), **given).sample
    (output * nchw(torch, cotangent)).mean().backward()
    return nhwc(output), nhwc(x.grad)


def our_output_and_slope(model, params, x, cotangent, **given):
    def loss(x):
        output = model.apply({"params": params}, x, jnp.asarray(TIMES), **given)
        return jnp.mean(output * cotangent), output

    (_, output), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(x))
    return output, slope


@pytest.mark.parametrize("name", few(SETTINGS, "mish, no attention in the middle", "score-SDE"))
def test_settings_of_unet2d(name, torch, theirs, highest):
    """Output and gradient; and what is written for diffusers is read there as the same network."""
    net = network(torch, theirs, "ddpm", **SETTINGS[name])
    x, cotangent = np.random.default_rng(0).standard_normal((2, 2, 8, 8, 3), np.float32)
    y = np.array([2.0, 5.0], np.float32)
    classes = net.config.class_embed_type is not None
    given = {"class_labels": torch.from_numpy(y)} if classes else {}
    config, (from_config, to_params, to_state_dict) = dict(net.config), OURS["UNet2DModel"]
    expected = output_and_slope(torch, net, x, cotangent, **given)
    model, params = from_config(config), to_params(weights(net), config)
    found = our_output_and_slope(model, params, x, cotangent, **({"y": jnp.asarray(y)} if classes else {}))
    assert relative(found[0], expected[0]) < 1e-5 and relative(found[1], expected[1]) < 1e-5

    written = to_diffusers.unet_to_config(model, (8, 8, 3))
    again = theirs.UNet2DModel(**written).eval()
    back = {key: torch.from_numpy(array) for key, array in to_state_dict(params, written).items()}
    again.load_state_dict(back, strict=True)
    np.testing.assert_array_equal(output_and_slope(torch, again, x, cotangent, **given)[0], expected[0])


MASKS = {
    "bool": np.array([[True, True, False], [True, False, True]]),
    "of integers": np.array([[1, 1, 0], [0, 0, 1]]),
    "in parts": np.array([[1, 0.9999, 0], [1, 1, 1]], np.float32),
}


@pytest.mark.parametrize("name", few(MASKS, "bool"))
def test_mask_of_the_context(name, torch, theirs, highest):
    net = network(torch, theirs, "stable_diffusion_2", mid_block_scale_factor=1.5)
    x, cotangent = np.random.default_rng(0).standard_normal((2, 2, 8, 8, 4), np.float32)
    context, mask = np.random.default_rng(1).standard_normal((2, 3, 6), np.float32), MASKS[name]
    tensors = {"encoder_hidden_states": torch.from_numpy(context), "encoder_attention_mask": torch.from_numpy(mask)}
    expected = output_and_slope(torch, net, x, cotangent, **tensors)
    from_config, to_params, _ = OURS["UNet2DConditionModel"]
    given = {"context": jnp.asarray(context), "context_mask": jnp.asarray(mask)}
    model, params = from_config(dict(net.config)), to_params(weights(net), dict(net.config))
    found = our_output_and_slope(model, params, x, cotangent, **given)
    assert relative(found[0], expected[0]) < 1e-5 and relative(found[1], expected[1]) < 1e-5
    with torch.no_grad():
        whole = nhwc(net(nchw(torch, x), torch.from_numpy(TIMES), torch.from_numpy(context)).sample)
    assert relative(whole, expected[0]) > 1e-3  # the mask tells


@pytest.mark.parametrize("size", [4, 12])
def test_dit_at_another_size(size, torch, theirs, highest):
    """Places are those of the grid it was made for: 4 x 4 patches here, whatever the size of the images."""
    net = network(torch, theirs, "dit")
    x = np.random.default_rng(0).standard_normal((2, size, size, 4), np.float32)
    y = np.array([4, 1])
    with torch.no_grad():
        expected = nhwc(net(nchw(torch, x), torch.from_numpy(TIMES), torch.from_numpy(y)).sample)
    from_config, to_params, _ = OURS["DiTTransformer2DModel"]
    params = to_params(weights(net), dict(net.config))
    found = jax.jit(from_config(dict(net.config)).apply)({"params": params}, x, TIMES, y=jnp.asarray(y, jnp.int32))
    assert relative(found, expected) < 1e-5


# --------------------------------------------------------------------------------------------------- other projects'

STORED = {
    "improved_unet": (openai.unet_from_config, openai.unet_to_params, "UNet2DModel"),
    "ddim_model": (ddim.unet_from_config, ddim.ddim_to_params, "UNet2DModel"),
    "ldm_unet_spatial_transformer": (ldm.unet_from_config, ldm.unet_to_params, "UNet2DConditionModel"),
}


@pytest.mark.parametrize("name", STORED)
def test_diffusers_computes_what_other_projects_recorded(name, torch, theirs, shared_golden, tmp_path):
    """OpenAI's, DDIM's and latent-diffusion's weights, written by us, run by diffusers, against their own output."""
    from_config, to_params, class_name = STORED[name]
    arrays, meta, stored = golden_networks.load(shared_golden, name)
    model, config, x = from_config(meta["config"]), meta["config"], arrays["in.x"]
    shape = (*x.shape[2:], x.shape[1])
    variance = "learned_range" if model.out_channels == 2 * x.shape[1] else "fixed_small"
    first_stage = None
    if class_name == "UNet2DConditionModel":
        kl = network(torch, theirs, "kl")
        from_kl, kl_to_params, _ = OURS["AutoencoderKL"]
        first_stage = FirstStage(from_kl(dict(kl.config)), kl_to_params(weights(kl), dict(kl.config)), 0.18215)
    loaded = trained_of(
        config=config, model=model, params=to_params(stored, config), variance=variance, image_shape=shape,
        first_stage=first_stage,
    )  # fmt: skip
    interop.save_diffusers(tmp_path / "folder", loaded)
    net = getattr(theirs, class_name).from_pretrained(tmp_path / "folder", subfolder="unet")
    given = {"class_labels": torch.from_numpy(arrays["in.y"])} if "in.y" in arrays else {}
    given |= {"encoder_hidden_states": torch.from_numpy(arrays["in.ctx"])} if "in.ctx" in arrays else {}
    with torch.no_grad():
        output = net(torch.from_numpy(x), torch.from_numpy(arrays["in.t"]), **given).sample
    assert relative(output.numpy(), arrays["out.sample"]) < 1e-4
