"""Folders of Stable Diffusion: tokens, contexts, whole pipelines as recorded, prompts of the command line."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli, guided, images, interop, keys, pictures
from ddpm_jax.guided import Guidance
from ddpm_jax.interop.tokenizers import ClipTokenizer
from ddpm_jax.samplers import from_diffusers_config
from ddpm_jax.uses import batches, image_to_image
from tests.helpers import trace

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed")
PROMPTS, NEGATIVE = ("a red cat on the blue photo", "the dog"), ("blurry", "bad thing")


@pytest.fixture(scope="module")
def folder(shared_golden):
    return shared_golden / "uses" / "sd_tiny"


@pytest.fixture(scope="module")
def recorded(shared_golden):
    with np.load(shared_golden / "uses" / "sd_text2img.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


@pytest.fixture(scope="module")
def trained(folder):
    return interop.load(folder)


def nhwc(array):
    return np.moveaxis(array, -3, -1)


@pytest.mark.parametrize("left_out", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_tokens_are_those_of_transformers(left_out, folder, recorded, tmp_path):
    """From either of the two forms that transformers has written."""
    place = shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    for name in left_out:
        (place / name).unlink()
    tokenize, arrays = ClipTokenizer(place, 12), recorded[0]
    for texts, name in ((PROMPTS, "prompt_ids"), (NEGATIVE, "negative_ids"), (("",), "empty_ids")):
        found = tokenize(texts)
        np.testing.assert_array_equal(found.ids, arrays[name])
    assert tokenize(["the dog"]).cut == (0,) and tokenize(["dog " * 10, "dog " * 15]).cut == (0, 5)
    long = tokenize(["dog " * 15]).ids[0]
    assert long[0] == arrays["empty_ids"][0, 0] and long[-1] == arrays["empty_ids"][0, 1]


def test_contexts_are_those_of_transformers(trained, recorded):
    arrays = recorded[0]
    for texts, name in ((PROMPTS, "prompt_embeds"), (("",), "empty_embeds")):
        found = trained.text.contexts(trained.text.tokens(texts).ids)
        np.testing.assert_allclose(found, arrays[name], atol=1e-5)


@pytest.mark.parametrize("key", ["c0", "c1", "c2"])
def test_a_pipeline_as_recorded(key, trained, recorded):
    """Latents at every step, and pictures; PNDM at 7.5, DDIM with noise, rescale and negative prompts, no guidance."""
    arrays, meta = recorded
    case = next(case for case in meta["cases"] if case["key"] == key)
    call, of = case["call"], lambda name: nhwc(arrays[f"{key}.{name}"])
    scale = call["guidance_scale"]
    chosen = None if scale == 1 else Guidance(scale, rescale=call.get("guidance_rescale"))
    options = {"eta": call["eta"]} if "eta" in call else {}
    config = {"_class_name": f"{case['scheduler']}Scheduler", **case["scheduler_config"]}
    preset = from_diffusers_config(config, call["num_inference_steps"], **options)
    contexts = lambda texts: jnp.asarray(trained.text.contexts(trained.text.tokens(texts).ids))
    told = {"context": contexts(PROMPTS)}
    otherwise = {"context": contexts(call.get("negative_prompt", ("", "")))}
    params = guided.parameters(trained, chosen)
    denoise = guided.denoise_of(trained, chosen, params, told, preset.denoiser, otherwise)
    table = preset.table if chosen is None else chosen.on(preset.table, trained.schedule.num_timesteps)
    noise = of("step_noise") if f"{key}.step_noise" in arrays else [0 * of("noise0")] * 6
    found = trace(denoise, table, jnp.asarray(of("noise0")), [jnp.asarray(z) for z in noise])
    expected = of("latents")
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    decoded = np.clip(np.asarray(trained.first_stage.decode(found[-1])) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(decoded, arrays[f"{key}.images"], atol=1e-5)


def sample(folder, *options):
    cli.main(["sample", str(folder), "--num-steps", "2", *options])


def images_of(path):
    return np.load(path)["images"]


def test_prompts_reach_the_pictures(folder, trained, tmp_path):
    """In turn, by option or file; guided towards the text, away from the negative one; the same bits in any batch."""
    (tmp_path / "texts").write_text("\n".join(PROMPTS) + "\n\n")
    options = ["-n", "3", "--guidance-scale", "7.5"]
    sample(folder, *options, "--prompt", *PROMPTS, "--out", str(tmp_path / "a.npz"))
    sample(
        folder, *options, "--prompts", str(tmp_path / "texts"), "--batch-size", "2", "--out", str(tmp_path / "b.npz")
    )
    sample(folder, *options, "--prompt", *PROMPTS, "--negative-prompt", "blurry", "--out", str(tmp_path / "c.npz"))
    a, b, c = (images_of(tmp_path / f"{name}.npz").astype(int) for name in "abc")
    assert a.shape == (3, 16, 16, 3) and abs(a - b).max() <= 1 and abs(a - c).max() > 1
    chosen = Guidance(7.5)
    told = pictures.prompts(trained, (PROMPTS[1],), guided=chosen)
    preset = pictures.preset(trained, None, 2, None, None)
    (drawn,) = pictures.batches(trained, preset, told, 2, 2, 0)
    assert abs(drawn.pictures[1].astype(int) - a[1]).max() <= 1


def test_one_compilation_for_all_prompts(trained):
    preset = pictures.preset(trained, None, 2, None, None)
    program = None
    for text in PROMPTS:
        told = pictures.prompts(trained, (text,), guided=Guidance(3.0))
        program = program or pictures.Program(trained, preset, told, 2, 0, jax.devices()[:1])
        program._labels = told
        next(program.batches(pictures.weights_of(trained, told), 0, 2))
    assert program._draw._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the network draws what a text says: give --prompt"),
        (("--prompt", "a", "--prompts", "b"), "give either --prompt or --prompts, got 'a' and b"),
        (("--prompts", "nowhere"), "no file nowhere, which --prompts names"),
        (("--prompt", "a", "--label", "1"), "give either --prompt or labels, got both"),
        (("--prompt", "a", "--negative-prompt", "b"), "--negative-prompt is for --guidance-scale, got 'b' without it"),
    ],
)
def test_what_is_refused(options, message, folder, capsys):
    with pytest.raises(SystemExit):
        sample(folder, *options)
    error = capsys.readouterr().err.strip()
    assert error == f"ddpm-jax: {message}"


def test_a_folder_without_tokenizer_or_text(folder, trained, tmp_path, capsys):
    place = shutil.copytree(folder, tmp_path / "sd")
    shutil.rmtree(place / "tokenizer")
    with pytest.raises(SystemExit):
        sample(place, "--prompt", "a")
    assert f"(context=; text_encoder: no tokenizer in {place}/tokenizer (tokenizer.json, or" in capsys.readouterr().err
    cli.main(["convert", str(place), str(tmp_path / "without")])
    assert "without a text encoder, so that its pipeline takes prompts as embeddings" in capsys.readouterr().out
    shutil.copytree(folder / "tokenizer", place / "tokenizer")
    (place / "text_encoder" / "model.safetensors").rename(place / "text_encoder" / "model.fp16.safetensors")
    assert interop.load(place).weights == trained.weights  # the only variant there is
    (place / "text_encoder" / "model.fp16.safetensors").unlink()
    found = interop.load(place)
    assert found.text is None and found.no_text.startswith(f"no weights in {place}/text_encoder")
    bare = pictures.replace(trained, text=None)
    with pytest.raises(
        ValueError, match="--prompt is for networks with a text encoder, and this one has none, got 'a'"
    ):
        pictures.prompts(bare, ("a",))
    said = []
    pictures.prompts(trained, ("dog " * 15,), say=said.append)
    assert len(said) == 1 and said[0].endswith("is too long: its last 5 tokens are left out (10 fit)")


@pytest.mark.parametrize("left_out", [(), ("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_a_pipeline_is_written_whole(left_out, folder, trained, tmp_path, capsys):
    """Tokens, contexts and pictures of the folder that was written are those of the one that was read."""
    before = shutil.copytree(folder, tmp_path / "before")
    for name in left_out:
        (before / "tokenizer" / name).unlink()
    cli.main(["convert", str(before), str(tmp_path / "after")])
    assert '--prompt "..."' in capsys.readouterr().out
    after = interop.load(tmp_path / "after")
    tokens = after.text.tokens(PROMPTS).ids
    np.testing.assert_array_equal(tokens, trained.text.tokens(PROMPTS).ids)
    np.testing.assert_array_equal(after.text.contexts(tokens), trained.text.contexts(tokens))
    assert after.weights == trained.weights and after.text.model.eos_token == trained.text.model.eos_token
    for name in ("vocab.json", "merges.txt"):
        ours, theirs = ((place / "tokenizer" / name).read_text() for place in (tmp_path / "after", folder))
        same = json.loads(ours) == json.loads(theirs) if name == "vocab.json" else ours.split() == theirs.split()
        assert same, name


@pytest.mark.parametrize("key", ["c0", "c1"])
def test_image_to_image_as_recorded(key, trained, shared_golden):
    """The draw from the posterior, the noise at the first step, latents at every step, and the pictures."""
    with np.load(shared_golden / "uses" / "sd_img2img.npz") as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["meta"]))
    call = next(case["call"] for case in meta["cases"] if case["key"] == key)
    steps, strength, chosen = call["num_inference_steps"], call["strength"], Guidance(call["guidance_scale"])
    of = lambda name: jnp.asarray(nhwc(arrays[f"{key}.{name}"]))
    if "eta" in call:  # which is an option of the scheduler's step, and all of its steps are run
        preset = from_diffusers_config(trained.scheduler_config, steps, eta=call["eta"])
    else:
        preset = image_to_image.preset(trained, strength, None, steps)
    stage = trained.first_stage
    posterior = stage.posterior(2 * jnp.asarray(nhwc(arrays["image"])) - 1)
    x_t = image_to_image.noised(preset.table, stage.scaled(posterior.sample(of("noise0"))), of("noise1"))
    np.testing.assert_allclose(x_t, of("sample_in"), atol=1e-5)
    contexts = lambda texts: jnp.asarray(trained.text.contexts(trained.text.tokens(texts).ids))
    told, otherwise = {"context": contexts(PROMPTS)}, {"context": contexts(("", ""))}
    denoise = guided.denoise_of(trained, chosen, guided.parameters(trained, chosen), told, preset.denoiser, otherwise)
    noise = [of(f"noise{2 + i}") if "eta" in call else 0 * x_t for i in range(preset.table.num_calls)]
    # A table scales what it is given to its first level: x_t is at that already.
    table = chosen.on(preset.table, trained.schedule.num_timesteps)._replace(init=1.0)
    found = trace(denoise, table, x_t, noise)
    np.testing.assert_allclose(found, of("latents"), atol=1e-4)
    decoded = np.clip(np.asarray(stage.decode(found[-1])) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(decoded, arrays[f"{key}.images"], atol=1e-5)


def test_img2img_in_latents(folder, trained, tmp_path, capsys):
    """The command is the function between encode and decode, told the text."""
    picture = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    options = ["--strength", "0.5", "--num-steps", "4", "--prompt", PROMPTS[0], "--guidance-scale", "5"]
    cli.main(["img2img", str(folder), str(tmp_path / "a.png"), *options, "--out", str(tmp_path / "a.npz")])
    key, chosen = keys.make(0), Guidance(5.0)
    own = jax.random.fold_in(jax.random.fold_in(key, 0), batches.POSTERIOR)
    x_0 = trained.first_stage.encode_each(images.to_float(jnp.asarray(picture[None])), own[None])
    preset = image_to_image.preset(trained, 0.5, None, 4)
    text = pictures.prompts(trained, (PROMPTS[0],), guided=chosen).told(0, 1)
    params = guided.parameters(trained, chosen)
    denoise = guided.denoise_of(trained, chosen, params, text.told, preset.denoiser, text.otherwise)
    table = chosen.on(preset.table, trained.schedule.num_timesteps)
    expected = trained.first_stage.decode(image_to_image.image_to_image(denoise, table, key, x_0))
    off = images.to_uint8(np.asarray(expected)).astype(int) - images_of(tmp_path / "a.npz")
    assert abs(off).max() <= 1
    cli.main(["img2img", str(folder), str(tmp_path / "a.png"), *options, "--negative-prompt", "blurry",
              "--out", str(tmp_path / "b.npz")])  # fmt: skip
    assert (images_of(tmp_path / "a.npz") != images_of(tmp_path / "b.npz")).any()
    with pytest.raises(SystemExit):
        cli.main(["img2img", str(folder), str(tmp_path / "a.png"), "--prompt", "a", "--negative-prompt", "b"])
    assert "--negative-prompt is for --guidance-scale, got 'b' without it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["img2img", str(folder), str(tmp_path / "a.png"), "--strength", "0.5"])
    assert "the network draws what a text says: give --prompt" in capsys.readouterr().err


def edited(place, name, **changes):
    path = place / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | changes))


def test_special_and_added_tokens(folder, tmp_path):
    """As in folders of Stable Diffusion 2, where padding is "!" of the vocabulary, and of textual inversion."""
    place = shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    (place / "tokenizer.json").unlink()
    vocabulary = json.loads((place / "vocab.json").read_text())
    edited(place, "special_tokens_map.json", pad_token="!")
    edited(place, "added_tokens.json", **{"<mine>": len(vocabulary)})
    found = ClipTokenizer(place, 12)(["the <mine>!"]).ids[0]
    start, end, padding = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"], vocabulary["!"]
    assert list(found) == [start, vocabulary["the</w>"], len(vocabulary), padding, end] + 7 * [padding]
    edited(place, "tokenizer_config.json", added_tokens_decoder={})  # then the map is not read
    assert list(ClipTokenizer(place, 12)([""]).ids[0]) == [start] + 11 * [end]
    for changes, message in (
        ({"model_max_length": 2}, "model_max_length must be at least 3, got 2"),
        ({"pad_token": 7}, "pad_token must be a text, got 7"),
        ({"pad_token": "<none>"}, "the vocabulary has no '<none>', which is its pad_token"),
        ({"added_tokens_decoder": {"3": "<other>"}}, "the added token '<other>' has the number 3 of another"),
    ):
        shutil.copy(folder / "tokenizer" / "tokenizer_config.json", place)
        (place / "special_tokens_map.json").unlink(missing_ok=True)
        edited(place, "tokenizer_config.json", **changes)
        with pytest.raises(ValueError, match=message):
            ClipTokenizer(place, 12)(["a"])
    shutil.copy(folder / "tokenizer" / "tokenizer_config.json", place)
    edited(place, "tokenizer_config.json", model_max_length=None, pad_token=None)
    assert list(ClipTokenizer(place, 12)([""]).ids[0]) == [start] + 11 * [end]


def test_a_negative_prompt_beside_another_network_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        options = ["--prompt", "a", "--negative-prompt", "b", "--guidance-scale", "2", "--guidance-with", str(folder)]
        sample(folder, *options)
    assert "--negative-prompt 'b' is not for --guidance-with" in capsys.readouterr().err
