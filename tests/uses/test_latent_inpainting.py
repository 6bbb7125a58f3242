"""In-painting in latents: Stable Diffusion's pipelines as recorded, with 4 channels and with 9, and the command."""

import importlib.util
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import guided, images, interop, keys, pictures, samplers
from ddpm_jax.guided import Guidance
from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.uses import batches, image_to_image, inpainting
from tests.helpers import trace
from tests.uses.common import call, images_of, refused

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed")
FOLDERS = {4: "sd_tiny", 9: "sd_inpaint9_tiny"}
CASES = {"c0": 4, "c1": 4, "c2": 9, "c3": 9}


@pytest.fixture(scope="module")
def opened(shared_golden):
    return {channels: interop.load(shared_golden / "uses" / name) for channels, name in FOLDERS.items()}


@pytest.fixture(scope="module")
def recorded(shared_golden):
    with np.load(shared_golden / "uses" / "sd_inpaint.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, -3, -1))


@pytest.mark.parametrize("name", CASES)
def test_pipelines_as_recorded(name, opened, recorded):
    """What the network is told, latents at every step, before and after they are blended, and the pictures.

    Noise is drawn there in this order: of the picture's posterior where its latents are needed (4 channels, or strength
    below 1), at the first level, of the posterior of the masked picture, and one for each step with eta.
    """
    (arrays, meta), trained = recorded, opened[CASES[name]]
    options = next(case["call"] for case in meta["cases"] if case["key"] == name)
    steps, strength, eta = options["num_inference_steps"], options["strength"], options.get("eta")
    of = lambda part: nhwc(arrays[f"{name}.{part}"])
    noise = [of(f"noise{i}") for i in range(sum(part.startswith(f"{name}.noise") for part in arrays))]
    stage = trained.first_stage
    picture, known = 2 * nhwc(arrays["image"]) - 1, jnp.where(nhwc(arrays["mask"]) < 0.5, 1.0, 0.0)
    encoded = lambda x, z: stage.scaled(stage.posterior(x).sample(z))
    x_0 = encoded(picture, noise.pop(0)) if CASES[name] == 4 or strength < 1 else None
    z = noise.pop(0)
    masked = encoded(picture * known, noise.pop(0))
    kept = inpainting.of_latents(known, z.shape)
    start = steps - image_to_image.steps_run(steps, strength)
    config = {"_class_name": "DDIMScheduler", **meta["scheduler_config"]}
    preset = from_diffusers_config(config, steps, start=start, **({} if eta is None else {"eta": eta}))
    x_t = z if x_0 is None or not start else image_to_image.noised(preset.table, x_0, z)
    np.testing.assert_allclose(x_t, of("sample_in"), atol=1e-5)

    chosen = Guidance(options["guidance_scale"])
    contexts = lambda texts: jnp.asarray(trained.text.contexts(trained.text.tokens(texts).ids))
    beside = {} if CASES[name] == 4 else inpainting.known_latents_to_network(masked, kept)
    told, otherwise = ({"context": contexts(texts), **beside} for texts in (meta["prompts"], ("", "")))
    denoise = guided.denoise_of(trained, chosen, guided.parameters(trained, chosen), told, preset.denoiser, otherwise)
    table = chosen.on(preset.table, trained.schedule.num_timesteps)._replace(init=1.0)
    if CASES[name] == 4:
        denoise = inpainting.blend(denoise, table, x_0, kept, z)
    found = np.asarray(trace(denoise, table, x_t, noise or [0 * z] * table.num_calls))
    np.testing.assert_allclose(found, of("latents"), atol=1e-4)
    last = inpainting.kept(found[-1], x_0, kept) if CASES[name] == 4 else found[-1]
    np.testing.assert_allclose(last, of("latents_after_blend")[-1], atol=1e-4)
    decoded = np.clip(np.asarray(stage.decode(last)) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(decoded, arrays[f"{name}.images"], atol=1e-5)


@pytest.fixture
def painted(tmp_path):
    """A picture, and a mask that is white in its right half."""
    picture, mask = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8), np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    for name, pixels in (("picture", picture), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path / "picture.png", "--mask", tmp_path / "mask.png", "--num-steps", "4", "--prompt", "the dog"


def test_which_networks_are_told_latents(opened):
    """By their spatial transformers: latent-diffusion's own for in-painting has none, and is told otherwise."""
    assert [inpainting.is_told(opened[channels]) for channels in FOLDERS] == [False, True]
    assert not inpainting.is_told(replace(opened[9], model=opened[9].model.clone(transformer_depth=0)))


def test_nothing_is_left_in_a_mapped_file(opened):
    """So that a folder may be written anew, or go, while what was read of it is in use."""
    for trained in opened.values():
        leaves = jax.tree.leaves((trained.params, trained.first_stage.params, trained.text.params))
        assert all(leaf.flags.owndata or leaf.base.flags.owndata for leaf in leaves)


@pytest.mark.parametrize("channels, strength", [(4, None), (4, "0.5"), (9, "1"), (9, "0.5")])
def test_the_command_is_these_functions(channels, strength, opened, painted, shared_golden, tmp_path):
    trained, chosen, key = opened[channels], Guidance(5.0), keys.make(0)
    options = () if strength is None else ("--strength", strength)
    folder = shared_golden / "uses" / FOLDERS[channels]
    call("inpaint", folder, *painted, "--guidance-scale", "5", *options, "--out", tmp_path / "a.npz")
    x = images.to_float(jnp.asarray(Image.open(painted[0]))[None])
    known = jnp.ones_like(x).at[:, :, 8:].set(0)
    own = lambda row: jax.random.fold_in(jax.random.fold_in(key, 0), row)[None]
    x_0 = trained.first_stage.encode_each(x, own(batches.POSTERIOR))
    masked = trained.first_stage.encode_each(x * known, own(inpainting.MASKED))
    half = jnp.ones_like(x_0).at[:, :, 4:].set(0)
    beside = {} if channels == 4 else {"concat": jnp.concatenate([1 - half[..., :1], masked], axis=-1)}
    text = pictures.prompts(trained, ("the dog",), guided=chosen).told(0, 1)
    preset = image_to_image.preset(trained, float(strength or 1), None, 4)
    of_texts = ({**each, **beside} for each in (text.told, text.otherwise))
    told, otherwise = of_texts
    denoise = guided.denoise_of(trained, chosen, guided.parameters(trained, chosen), told, preset.denoiser, otherwise)
    table = chosen.on(preset.table, trained.schedule.num_timesteps)
    z = image_to_image.start_noise(key, x_0.shape)
    begin = {"x_T": z} if strength != "0.5" else {"x_t": image_to_image.noised(table, x_0, z)}
    if channels == 4:
        denoise = inpainting.blend(denoise, table, x_0, half, z)
    found = samplers.sample(denoise, table, key, x_0.shape, **begin)
    found = jnp.where(half == 1, x_0, found) if channels == 4 else found
    expected = images.to_uint8(np.asarray(trained.first_stage.decode(found))).astype(int)
    assert abs(expected - images_of(tmp_path / "a.npz")).max() <= 1


def test_a_pipeline_of_9_channels_is_written(opened, painted, shared_golden, tmp_path, capsys):
    """As StableDiffusionInpaintPipeline, of the same weights; the command that is named next is one that works."""
    call("convert", shared_golden / "uses" / FOLDERS[9], tmp_path / "after")
    words = capsys.readouterr().out.splitlines()[-1].removeprefix("pictures: ddpm-jax ")
    assert words == f'inpaint {tmp_path / "after"} PICTURES --mask MASK --prompt "..."'
    index, before = (
        json.loads((place / "model_index.json").read_text())
        for place in (tmp_path / "after", shared_golden / "uses" / FOLDERS[9])
    )
    assert index == before and interop.load(tmp_path / "after").weights == opened[9].weights
    call("inpaint", tmp_path / "after", *painted, "--out", tmp_path / "a.npz")


def test_what_is_refused(opened, painted, shared_golden, tmp_path, capsys):
    four, nine = (shared_golden / "uses" / name for name in FOLDERS.values())
    refusal = lambda folder, *more: refused(capsys, "inpaint", folder, *painted, *more)
    assert refusal(four, "--method", "network").startswith("--method network is for networks that are told the known")
    assert "is told which pixels are known: --method network, got blended" in refusal(nine, "--method", "blended")
    assert "--method repaint takes all steps of its own sampler: --strength 0.5 is for others" in refusal(
        four, "--method", "repaint", "--strength", "0.5"
    )
    assert "--strength must lie in (0, 1], got 0.0" in refusal(four, "--strength", "0")
    without = shutil.copytree(nine, tmp_path / "without")
    shutil.rmtree(without / "tokenizer")
    found = refused(capsys, "inpaint", without, *painted[:-2])
    assert "inpaint gives known pixels, a label and a text, and the network needs a context" in found
    call("convert", without, tmp_path / "written")
    assert "ddpm-jax" not in capsys.readouterr().out  # no command line draws with it
    white = np.zeros((16, 16), np.uint8)
    white[3, 3] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    assert "--mask of picture 0 paints no latent: white must cover the upper left pixel" in refusal(four)
