"""Training in latents: what x_0 is, what a run keeps of the autoencoder, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cli, opening
from ddpm_jax.config.run import Config, DataConfig, from_dict
from ddpm_jax.data import load
from ddpm_jax.data.records import from_arrays
from ddpm_jax.models import AutoencoderKL
from ddpm_jax.runs.checkpoint import load_run
from ddpm_jax.train.tasks import clean
from ddpm_jax.trained import FirstStage
from ddpm_jax.uses.encode import encode
from tests.helpers import assert_train_refuses

pytestmark = pytest.mark.usefixtures("optax_promotes")
SIZE = {"channels": 4, "channel_multipliers": (1, 2), "num_res_blocks": 1, "num_groups": 2, "out_channels": 1}
MODEL = AutoencoderKL(**SIZE, latent_channels=3, z_channels=3)
PIXELS = np.random.RandomState(4).randint(0, 256, (16, 4, 4, 1)).astype(np.uint8)
SOURCE = from_arrays("mine", {"image": PIXELS, "label": np.arange(16, dtype=np.int32) % 2}, ("cat", "dog"))
SHORT = [
    *("--train.num-steps", "2", "--train.batch-size", "8", "--train.log-every", "1", "--sample.num-images", "2"),
    *("--optimizer.warmup-steps", "0", "--optimizer.decay-steps", "2", "--sample.num-steps", "2"),
    *("--model.channels", "8", "--model.channel-multipliers", "1", "--model.num-res-blocks", "1"),
    *("--model.num-groups", "4", "--sample.clip", "None"),
]


def stage_of(seed):
    params = MODEL.init(jax.random.key(seed), jnp.zeros((1, 4, 4, 1)))["params"]
    return FirstStage(MODEL, jax.device_get(params), 0.7)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoded") / "z"
    encode(stage_of(1), SOURCE, place, batch_size=8, scaling="one")
    return place


def config_of(**data):
    return from_dict({"data": data, "sample": {"clip": None}}, Config)


def test_x_0_is_drawn_from_each_images_posterior_by_its_own_key(encoded):
    """Cached or encoded at every step, alike: scale (mean + exp(log variance / 2) eps)."""
    source, stage = load(str(encoded)), stage_of(1)
    rows, keys = np.array([3, 0, 9]), jax.random.split(jax.random.key(2), 3)
    of_latents = clean.of_source(config_of(name=str(encoded)), source, print)
    found = of_latents.x_0(source.read(rows), keys)
    eps = [jax.random.normal(jax.random.fold_in(key, clean.POSTERIOR), (2, 2, 3)) for key in keys]
    said = source.read(rows)
    expected = 0.7 * (said["latent"] + np.exp(said["log_variance"] / 2) * np.stack(eps))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    at_once = clean.Encoded(stage).x_0({"image": PIXELS[rows]}, keys)
    np.testing.assert_allclose(at_once, found, atol=1e-5)
    assert of_latents.reads == ("latent", "log_variance") and clean.PIXELS.reads == ("image",)


@pytest.fixture(scope="module")
def run(encoded, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    with jax.numpy_dtype_promotion("standard"):
        cli.main(["train", "--data.name", str(encoded), "--condition", "class", *SHORT, "--workdir", str(workdir)])
    return workdir


def test_a_run_has_all_that_decodes_what_it_draws(run, encoded, tmp_path):
    """Its folder alone: the pictures are decode(x_0) with the autoencoder that the data came with."""
    moved = shutil.copytree(run, tmp_path / "moved")
    trained = opening.open(moved, print)
    assert trained.image_shape == (2, 2, 3) and trained.classes == ("cat", "dog")
    z = jnp.asarray(np.random.RandomState(0).randn(2, 2, 2, 3), jnp.float32)
    np.testing.assert_array_equal(trained.first_stage.decode(z), stage_of(1).decode(z))
    cli.main(["sample", str(moved), "-n", "3", "--num-steps", "2", "--out", str(tmp_path / "x.npz")])
    assert np.load(tmp_path / "x.npz")["images"].shape == (3, 4, 4, 1)
    assert load_run(run).networks == {"first stage": json.loads((encoded / "latents.json").read_text())["weights"]}


def test_a_run_says_that_it_is_of_latents(run, encoded, tmp_path, capsys):
    options = ["--data.name", str(encoded), *SHORT, "--workdir", str(tmp_path / "run")]
    with jax.numpy_dtype_promotion("standard"):
        cli.main(["train", *options])
    assert "parameters for latents of 2 x 2 x 3: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run), "--features", "digits", "-n", "2"])
    assert f"was trained on latents, {encoded}: give its images as --against DATA" in capsys.readouterr().err


def test_a_run_without_its_autoencoder_draws_nothing(run, tmp_path, capsys):
    """Nor does one with another: latents decoded by it are no pictures of this model."""
    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / "first_stage.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"first_stage.safetensors, the autoencoder in whose latents"):
        opening.open(moved, print)
    encode(stage_of(2), SOURCE, tmp_path / "other", batch_size=8, scaling="one")
    shutil.copy(tmp_path / "other" / "first_stage.safetensors", moved)
    with pytest.raises(ValueError, match=r"another autoencoder: its weights and scale are .* is what is used here"):
        opening.open(moved, print)


@pytest.mark.parametrize(("seed", "scaling"), [(2, "one"), (1, "channels")])
def test_a_run_goes_on_in_latents_of_the_same_autoencoder_only(seed, scaling, run, tmp_path, capsys):
    """Of the same scale, too: what was encoded is the same, and x_0 is another."""
    encode(stage_of(seed), SOURCE, tmp_path / "other", batch_size=8, scaling=scaling)
    options = ["--data.name", str(tmp_path / "other"), "--condition", "class", *SHORT]
    kept = (run / "first_stage.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        cli.main(["train", *options, "--workdir", str(run)])
    error = capsys.readouterr().err
    assert "weights of the first stage: " in error and "--train.begin-from" not in error
    assert (run / "first_stage.safetensors").read_bytes() == kept


def test_another_run_is_begun_from_in_the_same_latents_only(run, tmp_path, capsys):
    encode(stage_of(2), SOURCE, tmp_path / "other", batch_size=8, scaling="one")
    options = ["--data.name", str(tmp_path / "other"), "--condition", "class", *SHORT]
    with pytest.raises(SystemExit):
        cli.main(["train", *options, "--train.begin-from", str(run), "--train.begin-with", "ema"])
    assert f"train.begin_from: {run} was trained with another first stage (weights " in capsys.readouterr().err


def test_latents_are_decoded_in_batches_of_their_own(run, tmp_path, capsys):
    """To the same pictures, and in less memory beside weights and pictures: 2 at once instead of 16."""
    for size in (None, 3):
        options = [] if size is None else ["--decode-batch-size", str(size)]
        out = ["--out", str(tmp_path / f"{size}.npz")]
        cli.main(["sample", str(run), "-n", "8", "--num-steps", "2", *options, *out])
    whole, parts = (np.load(tmp_path / f"{size}.npz")["images"].astype(int) for size in (None, 3))
    assert abs(whole - parts).max() <= 1 and len(np.unique(whole)) > 2
    model, z = MODEL.clone(channels=32), jax.ShapeDtypeStruct((32, 16, 16, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    decode = lambda params, z, n: FirstStage(model, params, 1.0).decode(z, n)
    program = lambda n: jax.jit(decode, static_argnums=2).lower(params, z, n).compile()
    memory = lambda n: program(n).memory_analysis().temp_size_in_bytes
    assert memory(2) < 0.3 * memory(None)
    before = sorted(run.iterdir())
    with pytest.raises(SystemExit):
        cli.main(["sample", str(run), "--decode-batch-size", "0"])
    assert "--decode-batch-size must be at least 1" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before  # nothing that keeps the right command away


def test_settings_of_images_are_refused_in_latents(encoded, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    of_latents = " ".join(["--data.name", str(encoded), *SHORT])
    for options, message in (
        (of_latents.replace("--sample.clip None", ""), "sample.clip 1 bounds images, and latents have no bounds"),
        (f"{of_latents} --data.flip", "data.flip is for images, and .* holds latents"),
        (f"{of_latents} --data.encode-with x", "data.encode_with x is for images, and .* holds latents"),
        (f"{of_latents} --condition mask", "--condition mask is made of images, and this run is on latents"),
        (f"{of_latents} --evaluate.every 2 --evaluate.metrics kid --evaluate.features digits", "every compares with"),
        (f"--task classifier --data.name {encoded}", "has no images, which are needed here"),
        ("--task autoencoder --data.encode-with x", "--data.encode-with is no setting of --task autoencoder"),
        (f"--data.encode-with {Path(encoded).parent}", "no model_index.json|no config.json|config.json"),
    ):
        assert_train_refuses(options, message, capsys)


def test_shapes_are_those_of_what_is_encoded_at_every_step(monkeypatch):
    monkeypatch.setattr(opening, "first_stage_of", lambda place, say: (stage_of(1), None))
    config = config_of(name="mine", encode_with="runs/first")
    assert clean.shape_of(config, SOURCE, print) == (2, 2, 3)
    assert clean.shape_of(dataclasses.replace(config, data=DataConfig()), SOURCE, print) == (4, 4, 1)
    odd = from_arrays("odd", {"image": np.zeros((2, 5, 4, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"data.encode_with runs/first: H and W must be divisible by 2"):
        clean.shape_of(config, odd, print)
    colours = from_arrays("colours", {"image": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"data.encode_with runs/first: the autoencoder encodes images of 1 channels"):
        clean.shape_of(config, colours, print)


def test_encode_and_train_by_the_command_line(tmp_path, monkeypatch, capsys):
    """What DATA and its options say is encoded; training that encodes at every step draws what is decoded."""
    monkeypatch.setattr(opening, "first_stage_of", lambda place, say: (stage_of(1), None))
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", images=PIXELS, others=PIXELS[::-1], labels=np.arange(16) % 2)
    cli.main(["encode", "first", "mine.npz", "--data.key", "others", "--batch-size", "5"])
    said = json.loads((tmp_path / "first_latents" / "latents.json").read_text())
    assert said["scale"] == 0.7 and "--data.name first_latents --sample.clip None" in capsys.readouterr().out
    x = jnp.asarray(PIXELS[::-1] / 127.5 - 1, jnp.float32)
    found = load("first_latents").arrays
    np.testing.assert_allclose(found["latent"], stage_of(1).posterior(x).mean, atol=1e-5)
    cli.main(["encode", "first", "mine.npz", "--data.key", "images", "--scaling", "channels", "--out", "z"])
    assert len(json.loads((tmp_path / "z" / "latents.json").read_text())["scale"]) == 3
    for options, message in (
        ("first", "first does not say which images it was trained on: give DATA"),
        ("first mine.npz --data.key images --out z", "z is there already: choose another --out, or delete it"),
        ("first mine.npz --data.key images --batch-size 0 --out y", "--batch-size must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["encode", *options.split()])
        assert message in capsys.readouterr().err
    options = ["--data.name", "mine.npz", "--data.key", "images", "--data.encode-with", "first", *SHORT]
    cli.main(["train", *options, "--workdir", "run"])
    trained = opening.open("run", print)
    assert trained.image_shape == (2, 2, 3) and trained.picture_shape == (4, 4, 1)
    assert load_run(Path("run")).networks == {"first stage": stage_of(1).weights}
