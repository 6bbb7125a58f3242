"""interop.load of single files: OpenAI's, latent-diffusion's, DiT's and ddim's checkpoints.

Published networks are too large to load here. Their tables are tested on names and shapes alone, and stored networks
take the places of published ones in them.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax import schedules
from ddpm_jax.interop import autoencoder, ddim, dit, layers, ldm, load, openai, shown
from ddpm_jax.interop.ldm import load as load_ldm
from ddpm_jax.interop.openai import load as load_openai
from ddpm_jax.interop.openai.published import CONFIGS, DIFFUSIONS
from ddpm_jax.interop.published import DDIM, LATENT_DIFFUSION
from tests.helpers import few, relative
from tests.interop.golden_networks import load as golden
from tests.interop.golden_networks import nhwc
from tests.interop.test_load import fails, same_tree

OPENAI = ("improved_unet", "guided_unet_adm", "guided_unet_legacy", "guided_superres")
FLAGS = {"image_size": 8, "diffusion_steps": 100, "noise_schedule": "cosine"}


def unet_config(meta) -> dict:
    """With the in_channels of SuperResModel."""
    config = dict(meta["config"])
    return config | ({"in_channels": 6} if "SuperResModel" in meta["cls"] else {})


def saved(path, weights: Mapping[str, np.ndarray]):
    save_file(dict(weights), path)
    return path


@pytest.mark.parametrize("name", OPENAI)
def test_openai(name, tmp_path, shared_golden):
    """What shows is read off; the rest is given, in their words."""
    _, meta, weights = golden(shared_golden, name)
    config = unet_config(meta)
    path = saved(tmp_path / "model.pt", weights)
    hidden = {key: config[key] for key in config if "head" in key or key == "use_new_attention_order"}
    loaded = load(path, hidden | FLAGS)
    assert loaded.model == openai.unet_from_config(config)
    same_tree(loaded.params, openai.unet_to_params(weights, config))
    assert loaded.image_shape == (8, 8, 3)
    learned = name != "guided_unet_legacy"
    assert (loaded.variance, loaded.sampler) == (
        ("learned_range", "ddpm_learned_range") if learned else ("fixed_large", "ddpm")
    )
    np.testing.assert_array_equal(loaded.schedule.betas, schedules.cosine(100).betas)
    assert (loaded.prediction, loaded.reading.clip, loaded.reading.time_scale) == ("eps", 1.0, 1.0)
    assert loaded.default_sampler(3).table.num_calls == 3
    # All of the settings may be given too.
    assert load(path, config | FLAGS).model == loaded.model


def test_flags_of_openai(tmp_path, shared_golden):
    _, meta, weights = golden(shared_golden, "guided_unet_legacy")
    flags = FLAGS | {"noise_schedule": "linear", "rescale_timesteps": True, "predict_xstart": True, "sigma_small": True}
    loaded = load(saved(tmp_path / "model.pt", weights), unet_config(meta) | flags)
    np.testing.assert_array_equal(loaded.schedule.betas, schedules.linear_rescaled(100).betas)
    assert (loaded.prediction, loaded.variance, loaded.sampler) == ("x_0", "fixed_small", "ddpm_small")
    assert loaded.reading.time_scale == 10


def test_rescaled_timesteps(tmp_path, shared_golden, highest):
    """The network is told 1000 t / T: PyTorch's output at time 1000 t / T."""
    arrays, meta, weights = golden(shared_golden, "improved_unet")
    path = saved(tmp_path / "model.pt", weights)
    loaded = load(path, unet_config(meta) | FLAGS | {"diffusion_steps": 4000, "rescale_timesteps": True})
    model_fn = jax.jit(loaded.model_fn(y=jnp.asarray(arrays["in.y"], jnp.int32)))
    output = model_fn(nhwc(arrays["in.x"]), 4 * jnp.asarray(arrays["in.t"], jnp.float32))
    assert relative(output, nhwc(arrays["out.sample"])) < 1e-4


def test_a_published_network_of_openai(tmp_path, shared_golden, monkeypatch):
    """Recognized whatever the file's name; twins agree in everything but dropout, which is then 0."""
    _, meta, weights = golden(shared_golden, "guided_unet_adm")
    config = unet_config(meta) | {"channel_mult": (2, 4), "attention_resolutions": (1,)}
    for name, dropout in (("64x64_diffusion", 0.3), ("lsun_cat", 0.1)):
        monkeypatch.setitem(CONFIGS, name, config | {"dropout": dropout})
        monkeypatch.setitem(DIFFUSIONS, name, {"diffusion_steps": 1000, "noise_schedule": "cosine"})
    loaded = load(saved(tmp_path / "some.ckpt", weights))
    assert loaded.origin == "OpenAI's 64x64_diffusion or lsun_cat"
    assert loaded.model == openai.unet_from_config(config | {"dropout": 0.0})
    np.testing.assert_array_equal(loaded.schedule.betas, schedules.cosine(1000).betas)
    # With a config it is what the config says.
    other = load(tmp_path / "some.ckpt", config | FLAGS | {"use_new_attention_order": False})
    assert other.model == openai.unet_from_config(config)
    key = "query", "kernel"
    assert not np.array_equal(
        loaded.params["mid_attention"][key[0]][key[1]], other.params["mid_attention"][key[0]][key[1]]
    )


def test_openai_errors(tmp_path, shared_golden):
    _, meta, weights = golden(shared_golden, "guided_unet_legacy")
    path, config = saved(tmp_path / "model.pt", weights), unet_config(meta)
    fails(
        path, "none of those published", "diffusion_steps, noise_schedule, image_size, num_heads or num_head_channels"
    )
    fails(path, "config={...} with noise_schedule ", config=config | {"diffusion_steps": 10})
    fails(path, "unknown setting 'num_head'", "'num_heads'", config=config | {"num_head": 1})
    fails(path, "unknown noise_schedule 'linea'", config=config | FLAGS | {"noise_schedule": "linea"})
    fails(path, "num_res_blocks is 1, not 2", config=config | FLAGS | {"num_res_blocks": 2})
    del weights["input_blocks.1.0.emb_layers.1.weight"]
    fails(saved(path, weights), "input_blocks.1.0.emb_layers.1.weight is missing")
    _, _, classifier = golden(shared_golden, "guided_encoder_attention")
    fails(saved(path, classifier), "noisy classifier", "use opening.classifier")


def shapes_of(config) -> dict[str, np.ndarray]:
    """Arrays of no memory with the names and shapes of a network's weights, in their project."""
    if config.get("use_spatial_transformer"):
        names, wanted, conv1x1 = ldm._layout(config)
        conv1d = frozenset()
    else:
        model = openai.unet_from_config(config)
        (names, wanted), conv1x1, conv1d = openai._unet_names_and_shapes(model, config), openai.CONV1X1, openai.CONV1D
    shapes = {path: layers.their_shape(path, shape, conv1x1, conv1d) for path, shape in wanted.items()}
    # q, k and v are one array there; of which only the name of the norm beside them is looked at.
    return {layers.their_name(path, names): np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}


UNETS = [name for name in CONFIGS if not name.endswith("classifier")]
# One of each kind: half a width, an upsampler, transformed or pooled levels, classes.
QUICK = ("512x512_diffusion", "upsample_cond_500K", "lsun_horse", "imagenet64_cond_270M_250K")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in UNETS])
def test_published_networks_of_openai_are_recognized(name):
    matches = shown.matches(shown.unet(shapes_of(CONFIGS[name])), CONFIGS, load_openai.ABSENT)
    assert name in matches
    for other in matches:  # no difference that matters
        assert DIFFUSIONS[other] == DIFFUSIONS[name]
        assert CONFIGS[other] | {"dropout": 0} == CONFIGS[name] | {"dropout": 0}


def test_every_published_unet_has_its_diffusion():
    assert list(DIFFUSIONS) == UNETS
    for settings in DIFFUSIONS.values():
        assert settings.keys() <= load_openai.DIFFUSION.keys()


# The U-Nets' parameters, as the training scripts of these projects print them, in millions.
LDM_SIZES = {
    "Stable Diffusion 1": 859.52,
    "Stable Diffusion 2": 865.91,
    "LDM text-to-image": 872.30,
    "LDM ImageNet, class-conditional": 400.92,
    "LDM CelebA-HQ, FFHQ or LSUN bedrooms": 274.06,
    "LDM LSUN churches": 294.97,
}
ABSENT_LDM = load_openai.ABSENT | {name: default for name, (default, _) in ldm.SETTINGS.items()}


@pytest.mark.parametrize("name", few(LATENT_DIFFUSION, *[*LATENT_DIFFUSION][:2]))
def test_published_latent_diffusion_is_recognized(name):
    weights = shapes_of(LATENT_DIFFUSION[name]["unet_config"])
    unets = {other: entry["unet_config"] for other, entry in LATENT_DIFFUSION.items()}
    assert shown.matches(shown.conditional_unet(weights), unets, ABSENT_LDM) == [name]
    assert name not in LDM_SIZES or round(sum(map(np.size, weights.values())) / 1e6, 2) == LDM_SIZES[name]


LATENTS = {"image_size": 8, "linear_start": 0.00085, "linear_end": 0.012, "parameterization": "eps"}


@pytest.fixture
def latent_diffusion(shared_golden):
    """(weights of a whole checkpoint, config of its U-Net, config of its first stage)."""
    _, meta, unet = golden(shared_golden, "ldm_unet_spatial_transformer")
    _, first, encoder = golden(shared_golden, "ldm_kl_encoder")
    _, _, decoder = golden(shared_golden, "ldm_kl_decoder")
    weights = {f"model.diffusion_model.{name}": array for name, array in unet.items()}
    weights |= {f"first_stage_model.{name}": array for name, array in (encoder | decoder).items()}
    weights["first_stage_model.loss.logvar"] = np.zeros((), np.float32)
    weights["cond_stage_model.transformer.position_ids"] = np.arange(4)
    betas = schedules.make_beta_schedule("linear", 1000, 0.00085, 0.012)
    weights |= {"betas": betas.astype(np.float32), "model_ema.decay": np.zeros((), np.float32)}
    return weights, meta["config"], first["config"]


def moving_averages(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [name for name in weights if name.startswith("model.diffusion_model.")]
    return {"model_ema." + name.removeprefix("model.").replace(".", ""): weights[name] + 1 for name in names}


def test_latent_diffusion(latent_diffusion, tmp_path, shared_golden, highest):
    weights, unet, first = latent_diffusion
    config = LATENTS | {"unet_config": {"target": "UNetModel", "params": unet}, "scale_factor": 0.25, "monitor": "loss"}
    loaded = load(saved(tmp_path / "model.ckpt", weights), config)
    assert loaded.origin == "a LatentDiffusion of CompVis; left out: the encoder of its condition, 1 arrays"
    assert loaded.model == ldm.unet_from_config(unet)
    plain = {name.removeprefix(load_ldm.UNET): a for name, a in weights.items() if name.startswith(load_ldm.UNET)}
    same_tree(loaded.params, ldm.unet_to_params(plain, unet))
    assert (loaded.image_shape, loaded.prediction, loaded.variance) == ((8, 8, 4), "eps", "fixed_small")
    assert (loaded.sampler, loaded.reading.clip) == ("ddim", None)
    # float64 from the settings, since the file has them rounded to float32.
    np.testing.assert_array_equal(
        loaded.schedule.betas_float64, schedules.quad(1000, beta_start=0.00085, beta_end=0.012).betas_float64
    )
    assert loaded.default_sampler(3).table.num_calls == 3

    arrays, _, _ = golden(shared_golden, "ldm_kl_decoder")
    first_stage = loaded.first_stage
    assert first_stage is not None and first_stage.scale == 0.25
    decoded = jax.jit(first_stage.decode)(0.25 * nhwc(arrays["in.x"]))
    assert relative(decoded, nhwc(arrays["out.decoded"])) < 1e-4
    # The same autoencoder from the settings of its own.
    given = {"target": "AutoencoderKL", "params": {"embed_dim": first["embed_dim"], "ddconfig": dict(first)}}
    del given["params"]["ddconfig"]["embed_dim"]
    other = load(tmp_path / "model.ckpt", config | {"first_stage_config": given}).first_stage
    assert other is not None and other.model == first_stage.model == autoencoder.ldm_from_config(first)


def test_moving_averages(latent_diffusion, tmp_path):
    """Where the file has them, unless use_ema is off; all of them or none."""
    weights, unet, _ = latent_diffusion
    config, averages = LATENTS | {"unet_config": unet}, moving_averages(weights)
    plain = load(saved(tmp_path / "a.safetensors", weights), config).params
    saved(tmp_path / "a.safetensors", weights | averages)
    same_tree(load(tmp_path / "a.safetensors", config).params, jax.tree.map(lambda leaf: leaf + np.float32(1), plain))
    same_tree(load(tmp_path / "a.safetensors", config | {"use_ema": False}).params, plain)
    averages.popitem()
    fails(saved(tmp_path / "b", weights | averages), f"moving averages of {len(averages)} of the", config=config)


def test_schedule_and_scale_of_the_file(latent_diffusion, tmp_path):
    """Buffers in the file win over settings; without either, an error."""
    weights, unet, _ = latent_diffusion
    betas = np.linspace(0.1, 0.2, 5).astype(np.float32)
    path = saved(tmp_path / "a", weights | {"betas": betas, "scale_factor": np.array(0.5, np.float32)})
    loaded = load(path, LATENTS | {"unet_config": unet})
    np.testing.assert_array_equal(loaded.schedule.betas_float64, betas.astype(np.float64))
    assert loaded.first_stage is not None and loaded.first_stage.scale == 0.5
    unknown = {"unet_config": unet, "image_size": 8, "parameterization": "x0"}
    assert load(path, unknown).prediction == "x_0"
    fails(saved(path, {name: weights[name] for name in weights if name != "betas"}), "no betas", config=unknown)


def test_published_latent_diffusion(latent_diffusion, tmp_path, monkeypatch):
    """A published network needs no config, except for what its weights do not show."""
    weights, unet, _ = latent_diffusion
    path = saved(tmp_path / "a", weights)
    fails(path, "an unpublished LatentDiffusion", "unet_config, image_size, parameterization")
    entry = {**LATENT_DIFFUSION["Stable Diffusion 2"], "unet_config": unet | {"channel_mult": (1, 1)}}
    monkeypatch.setitem(LATENT_DIFFUSION, "Stable Diffusion 2", entry)
    fails(path, "Stable Diffusion 2: its weights do not show parameterization")
    loaded = load(path, {"parameterization": "v"})
    assert loaded.prediction == "v" and loaded.origin.startswith("Stable Diffusion 2; ")
    assert loaded.image_shape == (64, 64, 4)
    assert loaded.first_stage is not None and loaded.first_stage.scale == 0.18215
    fails(path, "unknown parameterization 'eps2'", config={"parameterization": "eps2"})
    fails(path, "unknown setting of LatentDiffusion 'linear_stat'", "'linear_start'", config={"linear_stat": 1})


def test_vq_first_stage(latent_diffusion, tmp_path, shared_golden):
    """Without attention, with a codebook: read off the shapes as well."""
    weights, unet, _ = latent_diffusion
    config = {
        **{"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 2, "attn_resolutions": [], "resolution": 16, "out_ch": 3},
        **{"in_channels": 3, "z_channels": 3, "double_z": False, "embed_dim": 4, "n_embed": 5},
    }
    model = autoencoder.ldm_from_config(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: random.randn(*leaf.shape).astype(np.float32), shapes)
    kept = {name: array for name, array in weights.items() if not name.startswith("first_stage_model.")}
    vq = autoencoder.params_to_ldm(params, config)
    path = saved(tmp_path / "a", kept | {f"first_stage_model.{name}": array for name, array in vq.items()})
    first_stage = load(path, LATENTS | {"unet_config": unet}).first_stage
    assert first_stage is not None and first_stage.model == model and first_stage.scale == 1.0
    same_tree(first_stage.params, params)
    assert load(saved(path, kept), LATENTS | {"unet_config": unet}).first_stage is None


@pytest.mark.parametrize("name", ("dit_learn_sigma", "dit_plain"))
def test_dit(name, tmp_path, shared_golden):
    _, meta, weights = golden(shared_golden, name)
    config = {key: value for key, value in meta["config"].items() if key != "cfg_scale"}
    path = saved(tmp_path / "model.pt", weights)
    fails(path, "no published DiT has width", "give num_heads")
    given = {key: config[key] for key in ("num_heads", "num_classes", "class_dropout_prob")}
    loaded = load(path, given)
    assert loaded.model == dit.dit_from_config(config)
    same_tree(loaded.params, dit.dit_to_params(weights, config))
    variance = "learned_range" if config["learn_sigma"] else "fixed_large"
    assert (loaded.variance, loaded.reading.clip, loaded.prediction) == (variance, None, "eps")
    assert loaded.image_shape == (8, 8, config["in_channels"])
    np.testing.assert_array_equal(loaded.schedule.betas, schedules.linear(1000).betas)
    assert loaded.default_sampler(3).table.num_calls == 3
    fails(path, "unknown setting of DiT 'num_head'", config={"num_head": 4})


def test_training_checkpoints(tmp_path, shared_golden):
    """Of DiT and of ddim, with the moving average beside the plain weights: it is taken."""
    torch = pytest.importorskip("torch")
    _, meta, weights = golden(shared_golden, "dit_learn_sigma")
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    changed = tensors | {"final_layer.linear.bias": tensors["final_layer.linear.bias"] + 1}
    torch.save({"model": changed, "ema": tensors, "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, tmp_path / "d")
    same_tree(load(tmp_path / "d", {"num_heads": 4}).params, dit.dit_to_params(weights, meta["config"]))

    _, meta, weights = golden(shared_golden, "ddim_model")
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    parallel = {f"module.{name}": tensor + 1 for name, tensor in tensors.items()}
    expected = ddim.ddim_to_params(weights, meta["config"])
    torch.save([parallel, {"state": {}}, 7, 1000, tensors], tmp_path / "d")
    same_tree(load(tmp_path / "d", DDIM_FLAGS | meta["config"]).params, expected)
    torch.save([parallel, {"state": {}}, 7, 1000], tmp_path / "d")  # without a moving average
    plus_one = jax.tree.map(lambda leaf: leaf + np.float32(1), expected)
    same_tree(load(tmp_path / "d", DDIM_FLAGS | meta["config"]).params, plus_one)


DDIM_FLAGS = {
    "beta_schedule": "quad",
    "beta_start": 1e-4,
    "beta_end": 0.05,
    "num_diffusion_timesteps": 50,
    "var_type": "fixedsmall",
}


def test_ddim(tmp_path, shared_golden, monkeypatch):
    _, meta, weights = golden(shared_golden, "ddim_model")
    config, path = (
        meta["config"] | DDIM_FLAGS | {"num_diffusion_timesteps": 50},
        saved(tmp_path / "model.ckpt", weights),
    )
    fails(path, "none of the published networks (CIFAR-10; CelebA 64; LSUN or CelebA-HQ 256)")
    fails(path, "the settings miss image_size", config={key: config[key] for key in config if key != "image_size"})
    fails(path, "unknown setting 'chs'", config=config | {"chs": 1})
    fails(path, "unknown var_type 'fixed'", config=config | {"var_type": "fixed"})
    fails(path, "unknown beta_schedule 'qad'", config=config | {"beta_schedule": "qad"})
    loaded = load(path, config)
    assert loaded.model == ddim.unet_from_config(config)
    same_tree(loaded.params, ddim.ddim_to_params(weights, config))
    np.testing.assert_array_equal(loaded.schedule.betas, schedules.quad(50, beta_end=0.05).betas)
    assert (loaded.variance, loaded.sampler, loaded.reading.clip, loaded.image_shape) == (
        "fixed_small",
        "ddpm_small",
        1.0,
        (8, 8, 3),
    )
    # The stored network in the place of a published one.
    small = DDIM["CIFAR-10"] | {
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "image_size": 8,
        "attn_resolutions": (4,),
    }
    monkeypatch.setitem(DDIM, "CIFAR-10", small)
    loaded = load(path)
    assert loaded.origin.endswith("(CIFAR-10)") and loaded.model == ddim.unet_from_config(config)
    assert (loaded.variance, loaded.sampler) == ("fixed_large", "ddpm")
    np.testing.assert_array_equal(loaded.schedule.betas, schedules.linear(1000).betas)


# Ho et al. 2020, appendix B: 35.7 M and 114 M parameters.
@pytest.mark.parametrize(("name", "size"), [("CIFAR-10", 35_746_307), ("LSUN or CelebA-HQ 256", 113_673_219)])
def test_published_networks_of_ddim(name, size):
    """The table's networks have the sizes of the published ones, and no two look alike."""
    names, wanted = ddim._names_and_shapes(DDIM[name])
    assert sum(map(math.prod, wanted.values())) == size
    shapes = {path: layers.their_shape(path, shape, ddim.CONV1X1) for path, shape in wanted.items()}
    weights = {layers.their_name(path, names): np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    seen = shown.levels(weights)
    assert seen["ch_mult"] == DDIM[name]["ch_mult"] and seen["num_res_blocks"] == 2
    assert [DDIM[name]["image_size"] >> level for level in seen["attention_levels"]] == [16]
    assert len({settings["ch_mult"] for settings in DDIM.values()}) == len(DDIM)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet2d_ddpm_pad0", "weights of no network known here"),  # as a folder, with its config.json
        ("clip_text", "weights of no network known here"),
    ],
)
def test_unknown_weights(name, message, tmp_path, shared_golden):
    _, _, weights = golden(shared_golden, name)
    fails(saved(tmp_path / "a.pt", weights), message, f"the first of {len(weights)} names", min(weights))


def test_contents_that_are_no_weights(tmp_path):
    torch = pytest.importorskip("torch")
    for content, message in (
        (torch.ones(2), "no arrays by name in it, but ndarray"),
        ([1, 2], "no arrays by name in it, but list"),
        ({"state_dict": {"a": 1}}, "not arrays by name: a"),
        ({}, "nothing in it"),
    ):
        torch.save(content, tmp_path / "a.pt")
        fails(tmp_path / "a.pt", message)
