"""Pipelines of the installed diffusers and our samplers from one folder that we wrote, with the same noise.

Images are compared as people see them: 256 levels, none off by more than one. A network with random weights drives an
image to the ends of its range in all but a few steps' noise, and what is clipped says nothing: so the schedules end
early (alpha_T^2 = 0.6), and most pixels must lie between the ends.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import guidance, images, interop, samplers, schedules
from ddpm_jax.interop import FirstStage
from tests.helpers import relative, trained_of
from tests.tools.parity.live import NETWORKS, OURS, drawn, network, weights

MILD = schedules.linear(1000, beta_start=1e-5, beta_end=1e-3)
MILD_QUAD = schedules.quad(1000, beta_start=1e-5, beta_end=2e-3)
DDIM = {"_class_name": "DDIMScheduler", "beta_start": 1e-5, "beta_end": 1e-3, "clip_sample": False}


def written(folder, torch, theirs, name, *, stage=None, **settings):
    """The folder of a random network of diffusers, and its image shape."""
    net = network(torch, theirs, name, **settings.pop("network", {}))
    from_config, to_params, _ = OURS[NETWORKS[name][0]]
    config = dict(net.config)
    first_stage = None
    if stage is not None:
        decoder = network(torch, theirs, stage)
        from_stage, stage_to_params, _ = OURS[NETWORKS[stage][0]]
        stage_config = dict(decoder.config)
        first_stage = FirstStage(from_stage(stage_config), stage_to_params(weights(decoder), stage_config), 0.7)
    settings = {"schedule": MILD, "config": config, **settings}
    shape = (8, 8, config["in_channels"])
    loaded = trained_of(
        model=from_config(config), params=to_params(weights(net), config), image_shape=shape,
        first_stage=first_stage, **settings,
    )  # fmt: skip
    interop.save_diffusers(folder, loaded)
    return shape


def ours(folder, num_steps, x_T, noise, *, model_fn=lambda loaded: loaded.model_fn()):
    """x_0 of the folder's own sampler."""
    loaded = interop.load(folder)
    table, denoiser = loaded.default_sampler(num_steps)

    @jax.jit
    def run(x_T, noise):
        x_0 = samplers.sample(denoiser(model_fn(loaded)), table, None, x_T.shape, x_T=x_T, noise=noise)
        return x_0 if loaded.first_stage is None else loaded.first_stage.decode(x_0)

    return np.asarray(run(x_T, noise))


def check_images(found, pipeline_images):
    """One of 255 levels, and before rounding 1e-4 of the range."""
    levels = (pipeline_images * 255).round().astype(int)
    assert np.mean((levels > 0) & (levels < 255)) > 0.3
    assert np.abs(images.to_uint8(found) - levels).max() <= 1
    assert np.abs(np.clip(found / 2 + 0.5, 0, 1) - pipeline_images).max() < 1e-4


def pipeline_of(theirs, name, folder):
    pipeline = getattr(theirs, name).from_pretrained(folder)
    assert type(theirs.DiffusionPipeline.from_pretrained(folder)) is type(pipeline)  # as model_index.json says
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_pipeline(torch, theirs, name, folder, num_steps, shape):
    """Two images from noise of this shape [H, W, C], by theirs and by ours; returns ours."""
    generator = torch.Generator().manual_seed(3)
    expected = pipeline_of(theirs, name, folder)(2, generator, num_inference_steps=num_steps, output_type="np").images
    found = ours(folder, num_steps, *drawn(torch, 3, (2, *shape), num_steps))
    check_images(found, expected)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variance": "fixed_large", "clip": None},
        {"prediction": "v", "schedule": MILD_QUAD},
        {"prediction": "x_0", "schedule": schedules.cosine(1000)},
        {"variance": "learned_range", "network": {"out_channels": 6}},
    ],
    ids=["eps", "eps-large-unclipped", "v-quad", "x_0-cosine", "learned_range"],
)
def test_ddpm_50(settings, torch, theirs, tmp_path, highest):
    shape = written(tmp_path / "folder", torch, theirs, "ddpm", **settings)
    check_pipeline(torch, theirs, "DDPMPipeline", tmp_path / "folder", 50, shape)


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler_config": DDIM},
        {"scheduler_config": DDIM | {"clip_sample": True, "timestep_spacing": "trailing"}},
        {"scheduler_config": DDIM | {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}},
    ],
    ids=["eps", "eps-trailing-clipped", "v"],
)
def test_ddim_10(settings, torch, theirs, tmp_path, highest):
    shape = written(tmp_path / "folder", torch, theirs, "ddpm", **settings)
    check_pipeline(torch, theirs, "DDIMPipeline", tmp_path / "folder", 10, shape)


@pytest.mark.parametrize("stage", ["vq", "kl"])
def test_latent_diffusion_10(stage, torch, theirs, tmp_path, highest):
    """Latents, and the image decoded from them; codes of the codebook are the same, or the image would not be."""
    channels = {"in_channels": 2, "out_channels": 2} if stage == "vq" else {"in_channels": 4, "out_channels": 4}
    written(tmp_path / "folder", torch, theirs, "ddpm", stage=stage, scheduler_config=DDIM, network=channels)
    shape = (8, 8, channels["in_channels"])
    found = check_pipeline(torch, theirs, "LDMPipeline", tmp_path / "folder", 10, shape)
    assert found.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit_10(scale, torch, theirs, tmp_path, highest):
    """With a learned variance, which the pipeline drops; its label for no class is 1000, whatever the network."""
    shape = written(
        tmp_path / "folder", torch, theirs, "dit", stage="kl", scheduler_config=DDIM, variance="learned_range"
    )
    pipeline = pipeline_of(theirs, "DiTPipeline", tmp_path / "folder")
    generator = torch.Generator().manual_seed(3)
    expected = pipeline([7, 933], scale, generator, num_inference_steps=10, output_type="np").images

    def guided(loaded):
        conditional, unconditional = (loaded.model_fn(y=jnp.array(y, jnp.int32)) for y in ([7, 933], [1000, 1000]))
        return guidance.classifier_free(conditional, unconditional, scale=scale)

    found = ours(tmp_path / "folder", 10, *drawn(torch, 3, (2, *shape), 10), model_fn=guided)
    check_images(found, expected)


def test_parts_of_a_text_pipeline_are_loaded(torch, theirs, tmp_path):
    """The pipeline itself needs the transformers package; the parts do not."""
    written(tmp_path / "folder", torch, theirs, "stable_diffusion_2", stage="kl")
    unet = theirs.UNet2DConditionModel.from_pretrained(tmp_path / "folder", subfolder="unet")
    vae = theirs.AutoencoderKL.from_pretrained(tmp_path / "folder", subfolder="vae")
    for name, net in (("stable_diffusion_2", unet), ("kl", vae)):
        for key, tensor in network(torch, theirs, name).state_dict().items():
            assert torch.equal(tensor, net.state_dict()[key]), key
    assert vae.config.scaling_factor == 0.7


def test_tables_of_the_written_scheduler(torch, theirs, tmp_path):
    """What diffusers makes of the betas, by name and one by one, beside the schedule they come from."""
    for schedule in (MILD, MILD_QUAD, schedules.cosine(1000), schedules.sigmoid(1000)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        written(folder, torch, theirs, "ddpm", schedule=schedule)
        scheduler = theirs.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        # cosine: the last beta is 0.999, so that the last alphas_cumprod is off by as much as 1 - 0.999 in float32
        assert relative(scheduler.alphas_cumprod.numpy(), schedule.alphas_cumprod_float64) < 1e-6
        np.testing.assert_allclose(scheduler.alphas_cumprod, schedule.alphas_cumprod_float64, rtol=3e-5)
