"""Folders for diffusers: configurations there and back, what is in the files, what cannot be written."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from safetensors.numpy import load_file

from ddpm_jax import interop, models, process, schedules
from ddpm_jax.interop import FirstStage, autoencoder, ddim, diffusers, dit, ldm, openai
from ddpm_jax.interop.diffusers import conditional, save
from ddpm_jax.interop.diffusers import to_diffusers as to
from ddpm_jax.samplers.configs.common import schedule_of
from ddpm_jax.trained import Trained
from tests.helpers import changed, few, trained_of
from tests.interop.golden_networks import load

# A stored network: (from_config, to_params) of the family it is in.
STORED = {
    "unet2d_ddpm_pad0": (diffusers.unet_from_config, diffusers.unet2d_to_params),
    "unet2d_pad1_class_scaleshift": (diffusers.unet_from_config, diffusers.unet2d_to_params),
    "unet2d_resnet_updown": (diffusers.unet_from_config, diffusers.unet2d_to_params),
    "ddim_model": (ddim.unet_from_config, ddim.ddim_to_params),
    "improved_unet": (openai.unet_from_config, openai.unet_to_params),
    "unet2dcond_sd1": (conditional.unet_from_config, conditional.unet2dcond_to_params),
    "unet2dcond_sd2_linear_class": (conditional.unet_from_config, conditional.unet2dcond_to_params),
    "ldm_unet_spatial_transformer": (ldm.unet_from_config, ldm.unet_to_params),
    "dit_transformer2d": (dit.transformer2d_from_config, dit.transformer2d_to_params),
}
SMALL_KL = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 4}
SMALL_KL |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def loaded(model, params, shape, **changes) -> Trained:
    return trained_of(model=model, params=params, image_shape=shape, **{"variance": "fixed_large", **changes})


def small_unet(**changes) -> models.UNet:
    settings = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "num_groups": 4, "dropout": 0.0}
    settings |= {"attention_resolutions": None, "attention_factors": (2,), **changes}
    return models.UNet(**settings)


def zeros(model, shape, *time, **conditioning):
    """Parameters of the right shapes, without a compilation."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), *time, **conditioning)["params"]
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)


def numbered(params):
    """Every array different from every other."""
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([leaf + np.float32(i) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def small():
    """A small U-Net for 8x8 images, with parameters."""
    return loaded(small_unet(), numbered(zeros(small_unet(), (8, 8, 3), jnp.zeros(1))), (8, 8, 3))


@pytest.fixture(scope="module")
def small_kl():
    model = autoencoder.kl_from_config(SMALL_KL)
    return FirstStage(model, numbered(zeros(model, (8, 8, 3))), 0.5)


# ------------------------------------------------------------------------------------------------------- there and back


def program(model, params, shape, **conditioning) -> str:
    """What the network computes, operation by operation; equal for equal computations, and nothing is compiled."""
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    apply = lambda params, *inputs: replace(model, dtype=jnp.float32).apply({"params": params}, *inputs, **conditioning)
    return str(jax.make_jaxpr(apply)(params, x, t))


@pytest.mark.parametrize("name", few(STORED, "unet2d_ddpm_pad0", "improved_unet", "unet2dcond_sd1"))
def test_a_stored_network_is_the_same_after_the_folder(name, shared_golden, tmp_path):
    """Weights of diffusers, OpenAI, DDIM's repository and latent-diffusion, written for diffusers and read again: the
    same parameters bit for bit in the same program, whose output is compared with the recorded one elsewhere."""
    arrays, meta, weights = load(shared_golden, name)
    from_config, to_params = STORED[name]
    model, params, config = from_config(meta["config"]), to_params(weights, meta["config"]), meta["config"]
    shape = arrays["in.x"].transpose(0, 2, 3, 1).shape[1:]
    variance = "learned_range" if model.out_channels == 2 * shape[-1] else "fixed_large"
    given = (
        {"y": jnp.asarray(arrays["in.y"][:1], jnp.int32 if model.num_classes else jnp.float32)}
        if "in.y" in arrays
        else {}
    )
    given |= {"context": jnp.asarray(arrays["in.ctx"][:1])} if "in.ctx" in arrays else {}
    before = loaded(model, params, shape, variance=variance, config=config)
    if type(model) is models.DiT or model.transformer_depth:
        first_stage = autoencoder.kl_from_config(SMALL_KL | {"latent_channels": shape[-1]})
        before = replace(before, first_stage=FirstStage(first_stage, zeros(first_stage, (8, 8, 3)), 0.18215))
    interop.save_diffusers(tmp_path / "folder", before)
    after = interop.load(tmp_path / "folder")

    assert after.image_shape == shape and after.variance == variance
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert program(after.model, after.params, shape, **given) == program(model, params, shape, **given)


def test_everything_is_read_as_it_was_written(small, tmp_path):
    before = changed(small, prediction="v", variance="fixed_small", clip=2.0, schedule=schedules.cosine(100))
    interop.save_diffusers(tmp_path / "folder", before)
    after = interop.load(tmp_path / "folder")
    assert (after.reading, after.image_shape) == (before.reading, before.image_shape)
    # Theirs are made of float32: the smallest betas are off the most.
    np.testing.assert_allclose(after.schedule.betas, before.schedule.betas, rtol=2e-3)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    # and once more: the scheduler is now written as it was read
    interop.save_diffusers(tmp_path / "again", after)
    for file in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        assert (tmp_path / "again" / file).read_text() == (tmp_path / "folder" / file).read_text(), file
    first, second = (load_file(tmp_path / name / "unet" / save.WEIGHTS) for name in ("folder", "again"))
    assert first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)


def test_a_run_that_clips_nothing_says_so(small, tmp_path):
    interop.save_diffusers(tmp_path / "folder", changed(small, clip=None))
    assert interop.load(tmp_path / "folder").reading.clip is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_resolutions": (8,), "attention_factors": None},
        {"attention_factors": (), "num_res_blocks": 2},
        {"attention_factors": (1, 2), "num_head_channels": 4, "scale_shift_norm": True},
        {"scale_shift_norm": True, "mid_attention_norm": False, "num_classes": 3},
        {"num_heads": 4, "num_heads_upsample": 4},
        {"downsample": "resblock", "upsample": "resblock", "downsample_padding": 1},
        {"channel_multipliers": (1, 2, 1), "downsample": ("conv", "resblock"), "upsample": ("resblock", "conv")},
        {"channel_multipliers": (1, 1.5, 2), "time_cosine_first": True, "time_endpoint": False, "norm_eps": 1e-5},
        {"channel_multipliers": [1], "attention_factors": [1], "dropout": 0.3, "remat": True, "dtype": jnp.bfloat16},
        {"class_embed_type": "timestep", "center_input_sample": True},
    ],
)
def test_the_unet_of_the_configuration_computes_the_same(changes):
    """Not the settings are compared but parameters and program: those are what must not change."""
    shape = (8, 8, 3)
    model = small_unet(**changes)
    again = diffusers.unet_from_config(json.loads(json.dumps(to.unet_to_config(model, shape))))
    y = {"y": jnp.zeros(1, jnp.float32 if model.class_embed_type else jnp.int32)}
    y = y if model.num_classes or model.class_embed_type else {}
    params, params_again = (zeros(m, shape, jnp.zeros(1), **y) for m in (model, again))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, params_again)
    again = replace(again, remat=model.remat)
    assert program(model, params, shape, **y) == program(again, params, shape, **y)


@pytest.mark.parametrize("heads", [{"num_heads": 4}, {"num_head_channels": 4}])
def test_the_conditional_unet_of_the_configuration_computes_the_same(heads):
    shape, context = (8, 8, 4), {"context": jnp.zeros((1, 3, 5))}
    model = small_unet(transformer_depth=1, attention_factors=(1,), time_cosine_first=True, **heads)
    again = conditional.unet_from_config(to.conditional_unet_to_config(model, shape, 5))
    params = zeros(model, shape, jnp.zeros(1), **context)
    assert program(model, params, shape, **context) == program(again, params, shape, **context)


@pytest.mark.parametrize("changes", [{}, {"attention_levels": [0, 1], "num_res_blocks": 2, "out_channels": 1}])
def test_the_autoencoder_of_the_configuration_is_the_same(changes):
    kl = models.AutoencoderKL(channels=8, channel_multipliers=[1, 2], num_groups=4, **changes)
    vq = models.VQModel(channels=8, channel_multipliers=(1, 2), num_groups=4, z_channels=3, num_codes=9, **changes)
    shape = (8, 8, kl.out_channels)
    config = to.kl_to_config(kl, shape, 0.3)
    assert config["scaling_factor"] == 0.3
    shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    assert shapes(autoencoder.kl_from_config(config)) == shapes(kl)
    assert shapes(autoencoder.vq_from_config(to.vq_to_config(vq, shape, 1.0))) == shapes(vq)


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample": "pool", "upsample": "nearest"}, r"downsample=\('pool',\), upsample=\('nearest',\)"),
        ({"num_heads": 2, "num_heads_upsample": 4}, "num_heads=2, num_heads_upsample=4"),
        ({"num_heads": 2, "attention_factors": (1, 2)}, "num_heads=2"),
        ({"channel_multipliers": (0.5, 1)}, r"channels=8, channel_multipliers=\(0.5, 1\)"),
        ({"mid_attention_norm": False}, "mid_attention_norm=False"),
        (
            {"channel_multipliers": (1, 2, 2), "attention_factors": (1, 2), "downsample": ("conv", "resblock")},
            r"downsample=\('conv', 'resblock'\)",
        ),
    ],
)
def test_settings_that_a_unet_of_diffusers_has_not_are_listed(changes, message):
    with pytest.raises(ValueError, match="UNet2DModel of diffusers cannot compute.*: " + message + "$"):
        to.unet_to_config(small_unet(**changes), (8, 8, 3))


def test_settings_that_the_other_classes_have_not_are_listed():
    conditional_unet = small_unet(transformer_depth=1, downsample="resblock", num_heads_upsample=2)
    with pytest.raises(ValueError, match=r"UNet2DConditionModel .*: downsample=\('resblock',\), num_heads_upsample=2$"):
        to.conditional_unet_to_config(conditional_unet, (8, 8, 4), 5)
    published = models.DiT(mlp_ratio=2.0)
    with pytest.raises(ValueError, match=r"mlp_ratio=2.0, time_endpoint=False, condition_per_block=False$"):
        to.dit_to_config(published, (32, 32, 4))
    with pytest.raises(ValueError, match="takes square images, got 32 x 16"):
        to.dit_to_config(published, (32, 16, 4))
    with pytest.raises(ValueError, match=r"AutoencoderKL of diffusers .*: z_channels=3$"):
        to.kl_to_config(models.AutoencoderKL(z_channels=3), (32, 32, 3), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "score"}, "DDPMScheduler of diffusers cannot express prediction='score'$"),
        ({"variance": "learned", "time_scale": 0.25}, "express time_scale=0.25, variance='learned'$"),
        ({"schedule": schedules.respace(schedules.linear(10), [0, 4, 9])}, "express timesteps of the schedule"),
        ({"prediction": "x_prev"}, "no networks of objective.prediction 'x_prev'; sample it as a run"),
        ({"time_scale": 0.5, "scheduler_config": {"_class_name": "DDIMScheduler"}}, "time_scale=0.5$"),
        ({"image_shape": (8, 8, 1)}, "no pipeline for a network of 3 channels on 1 of images"),
        ({"model": models.UViT()}, "no class for a UViT: a UNet or a DiT can be written"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(changes, message, small, tmp_path):
    with pytest.raises(ValueError, match=message):
        interop.save_diffusers(tmp_path / "folder", changed(small, **changes))
    assert not list(tmp_path.iterdir())


def test_networks_without_a_pipeline_are_refused(small, small_kl, tmp_path):
    model = small_unet(transformer_depth=1)
    text = loaded(model, zeros(model, (8, 8, 3), jnp.zeros(1), context=jnp.zeros((1, 2, 5))), (8, 8, 3))
    with pytest.raises(ValueError, match="no pipeline for a UNet2DConditionModel without a first stage"):
        interop.save_diffusers(tmp_path / "folder", text)
    with pytest.raises(ValueError, match="no first stage of class UNet"):
        interop.save_diffusers(tmp_path / "folder", changed(small, first_stage=replace(small_kl, model=small.model)))


# ---------------------------------------------------------------------------------------------------------------- files


def test_whole_or_not_at_all(small, tmp_path, monkeypatch):
    def disk_full(weights, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", disk_full)
        with pytest.raises(OSError, match="no space"):
            interop.save_diffusers(tmp_path / "a" / "folder", small)
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "empty").mkdir()
    interop.save_diffusers(tmp_path / "empty", small)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"model_index.json", "unet", "scheduler"}
    with pytest.raises(FileExistsError, match="empty exists and is not empty; nothing was written"):
        interop.save_diffusers(tmp_path / "empty", small)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file exists"):
        interop.save_diffusers(tmp_path / "file", small)
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "empty", "file"}


def test_a_text_pipeline_names_what_is_absent(small_kl, tmp_path):
    model = small_unet(transformer_depth=1, out_channels=4)
    text = loaded(
        model, zeros(model, (4, 4, 4), jnp.zeros(1), context=jnp.zeros((1, 2, 5))), (4, 4, 4), first_stage=small_kl
    )
    interop.save_diffusers(tmp_path / "folder", text)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["requires_safety_checker"] is False
    assert index["text_encoder"] == index["tokenizer"] == index["safety_checker"] == [None, None]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and index["vae"] == ["diffusers", "AutoencoderKL"]
    after = interop.load(tmp_path / "folder")
    assert after.first_stage is not None and after.first_stage.scale == 0.5
    jax.tree.map(np.testing.assert_array_equal, after.first_stage.params, small_kl.params)


# ------------------------------------------------------------------------------------------------------------ scheduler


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.linear(1000), {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
        (schedules.const(7, beta_end=0.02), {"beta_schedule": "linear", "beta_start": 0.02, "beta_end": 0.02}),
        (
            schedules.quad(1000, beta_start=0.00085, beta_end=0.012),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (schedules.cosine(4000), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_betas_with_a_name(schedule, expected):
    assert save._betas(schedule) == expected | {"trained_betas": None}


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.sigmoid(50),
        schedules.zero_terminal_snr(schedules.linear(1000)),
        schedules.jsd(20),
        schedules.from_betas(schedules.linear(20).betas_float64 * (1 + 1e-4 * np.sin(np.pi * np.arange(20) / 19))),
    ],
)
def test_betas_without_a_name_are_written_one_by_one(schedule, small, tmp_path):
    """In their float32, 1 - alphas_cumprod is off by 2^-24 / beta_0: 3e-4 for a first beta of 2e-4."""
    interop.save_diffusers(tmp_path / "folder", changed(small, schedule=schedule, prediction="v"))
    config = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert config["trained_betas"] == schedule.betas_float64.tolist()
    found = schedule_of(config).alphas_cumprod_float64
    np.testing.assert_allclose(found, schedule.alphas_cumprod_float64, rtol=1e-6, atol=2e-8)


def test_the_default_sampler_is_ddpm_with_the_network_s_variance(small, tmp_path):
    """Every timestep, on the folder and on what it was written from: the same rows but for the rounding of betas."""
    for variance in ("fixed_small", "fixed_large"):
        before = changed(small, variance=variance, sampler="ddpm" if variance == "fixed_large" else "ddpm_small")
        interop.save_diffusers(tmp_path / variance, before)
        rows, expected = (
            loaded.default_sampler(1000).table.rows for loaded in (interop.load(tmp_path / variance), before)
        )
        np.testing.assert_array_equal(rows.time, expected.time)
        np.testing.assert_allclose(rows.sigma, expected.sigma, rtol=2e-4)
        np.testing.assert_allclose(rows.update, expected.update, rtol=2e-3, atol=1e-6)


def test_predictions_have_their_names():
    assert set(save.PREDICTIONS.values()) < set(process.PredictionType.__args__)
