"""`ddpm-jax convert` and `ddpm-jax sample` on folders: of a run, of networks with classes, of latents."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ddpm_jax import cli, images, interop, models, opening, samplers, schedules
from ddpm_jax.guidance import classifier_free
from ddpm_jax.interop import FirstStage, ddim
from ddpm_jax.interop.diffusers import to_diffusers
from tests.cli.test_cli import SMALL, images_of
from tests.helpers import trained_of

# At the end of this schedule half of the image is left: what a network without training says is not clipped away.
MILD = "--schedule.num-timesteps 100 --schedule.arguments beta_start 1e-4 beta_end 1e-2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps."""
    home = tmp_path_factory.mktemp("home")
    (home / "small.py").write_text(SMALL)
    command = f"train {home}/small.py --workdir {home}/run --train.num-steps 2 --train.checkpoint-every 2 {MILD}"
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        cli.main(command.split())
    return home / "run"


@pytest.fixture(scope="module")
def converted(run):
    cli.main(["convert", str(run), str(run.parent / "folder")])
    return run.parent / "folder"


def random_params(model, shape, *time, seed=0, **conditioning):
    """Parameters of which none is zero, made without a compilation."""
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), *time, **conditioning)["params"]
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.3 * generator.standard_normal(leaf.shape).astype(np.float32), template)


def write(folder, model, image_shape, *, first_stage=None, scheduler=None, **conditioning):
    params = random_params(model, image_shape, jnp.zeros(1), **conditioning)
    schedule = schedules.linear(100, beta_start=1e-4, beta_end=1e-2)
    trained = trained_of(
        model=model, params=params, schedule=schedule, image_shape=image_shape, scheduler_config=scheduler,
        first_stage=first_stage,
    )  # fmt: skip
    interop.save_diffusers(folder, trained)
    return folder


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory):
    """A U-Net with 3 classes and no label for none, and its own DDIM."""
    model = models.UNet(
        channels=4, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2, num_classes=3,
        dropout=0.0,
    )  # fmt: skip
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 100, "beta_end": 1e-2, "clip_sample": False}
    folder = tmp_path_factory.mktemp("classes") / "folder"
    return write(folder, model, (4, 4, 3), scheduler=scheduler, y=jnp.zeros(1, jnp.int32))


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A DiT with 3 classes and a label for none, on latents."""
    model = models.DiT(
        width=8, depth=1, num_heads=2, num_classes=3, out_channels=4, time_endpoint=True, condition_per_block=True
    )
    stage = models.AutoencoderKL(channels=4, channel_multipliers=(1, 1), num_res_blocks=1, num_groups=2)
    first_stage = FirstStage(stage, random_params(stage, (8, 8, 3), seed=1), 0.5)
    folder = tmp_path_factory.mktemp("latent") / "folder"
    return write(folder, model, (4, 4, 4), first_stage=first_stage, y=jnp.zeros(1, jnp.int32))


def sample(source, out, *options):
    cli.main(["sample", str(source), "--num-steps", "4", "-n", "4", "--out", str(out), *options])
    return images_of(out)


# -------------------------------------------------------------------------------------------------------------- runs


def test_a_converted_run_has_its_averaged_parameters(run, converted, capsys):
    before, after = opening.open(run, print), interop.load(converted)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert (after.prediction, after.variance, after.image_shape) == ("eps", "fixed_large", (8, 8, 1))
    assert before.sampler == "ddim" and before.origin == "a run of ddpm-jax, 2 steps"
    cli.main(["convert", str(run), str(run.parent / "again")])
    count = sum(leaf.size for leaf in jax.tree.leaves(before.params))
    said = f"a run of ddpm-jax, 2 steps: {count:,} parameters, images of 8 x 8 x 1\n"
    assert said in capsys.readouterr().out


def test_samples_of_a_converted_run_are_those_of_the_run(run, converted, tmp_path):
    """The same sampler, seed and parameters; the schedule is back from float32 betas, so almost the same numbers."""
    options = ("--sampler", "ddpm", "--seed", "3")
    of_run = sample(run, tmp_path / "run.npz", *options).astype(int)
    of_folder = sample(converted, tmp_path / "folder.npz", *options).astype(int)
    assert np.mean((of_run > 0) & (of_run < 255)) > 0.5
    assert np.abs(of_run - of_folder).max() <= 1


def test_diffusers_draws_what_we_draw(converted, tmp_path):
    """After a training of two steps: 50 steps of DDPM with the same noise, to one of 255 levels."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers")
    from tests.tools.parity.live import drawn

    torch.set_num_threads(1)
    pipeline = theirs.DDPMPipeline.from_pretrained(converted)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    expected = pipeline(3, generator, num_inference_steps=50, output_type="np").images
    loaded = interop.load(converted)
    table, denoiser = loaded.default_sampler(50)
    x_T, noise = drawn(torch, 5, (3, 8, 8, 1), 50)
    run = jax.jit(lambda x, z: samplers.sample(denoiser(loaded.model_fn()), table, None, x.shape, x_T=x, noise=z))
    found, levels = images.to_uint8(run(x_T, noise)).astype(int), (expected * 255).round().astype(int)
    assert np.mean((levels > 0) & (levels < 255)) > 0.5
    assert np.abs(found - levels).max() <= 1


def test_a_picture_lies_in_the_run_or_beside_the_caller(run, converted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(converted.rglob("*"))
    cli.main(["sample", str(converted), "--num-steps", "2", "-n", "1"])
    cli.main(["sample", str(run), "--num-steps", "2", "-n", "1", "--seed", "1"])
    assert [path.name for path in tmp_path.iterdir()] == ["folder_2_n1_seed0.png"]
    assert Image.open(tmp_path / "folder_2_n1_seed0.png").size == (50, 50)
    assert (run / "step2_ddim_2_n1_seed1.png").is_file() and sorted(converted.rglob("*")) == before
    assert "1 images: folder_2_n1_seed0.png" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ classes and latents


def test_labels(with_classes, tmp_path):
    """Image i is of class i mod 3, or of one class; and the same in any batch."""
    each = sample(with_classes, tmp_path / "each.npz")
    np.testing.assert_array_equal(sample(with_classes, tmp_path / "b.npz", "--batch-size", "3"), each)
    for label in range(3):
        one = sample(with_classes, tmp_path / f"{label}.npz", "--label", str(label))
        same = [(one[i] == each[i]).all() for i in range(4)]
        assert same == [i % 3 == label for i in range(4)]


def test_its_own_sampler_is_the_default(with_classes, tmp_path):
    own = sample(with_classes, tmp_path / "own.npz")
    ddim = sample(with_classes, tmp_path / "ddim.npz", "--sampler", "ddim", "--grid", "leading")
    ddpm = sample(with_classes, tmp_path / "ddpm.npz", "--sampler", "ddpm_small")
    assert np.abs(own.astype(int) - ddim).max() <= 1 and np.abs(own.astype(int) - ddpm).max() > 20


@pytest.mark.slow
def test_latents_are_guided_and_decoded(latent, tmp_path):
    """Against the same by hand: u + 3 (c - u), the folder's DDPM, decode(z / 0.5)."""
    found = sample(latent, tmp_path / "x.npz", "--guidance-scale", "3", "--label", "1")
    loaded = interop.load(latent)
    conditional, unconditional = (loaded.model_fn(y=jnp.full(4, y, jnp.int32)) for y in (1, 3))
    table, denoiser = loaded.default_sampler(4)
    denoise = denoiser(classifier_free(conditional, unconditional, scale=3.0))
    z = jax.jit(lambda key: samplers.sample(denoise, table, key, (4, 4, 4, 4)))(jax.random.key(0))
    stage = loaded.first_stage
    decoded = jax.jit(lambda z: stage.model.apply({"params": stage.params}, z / 0.5, method="decode"))(z)
    assert found.shape == (4, 8, 8, 3)
    assert np.abs(images.to_uint8(decoded).astype(int) - found).max() <= 1
    assert (found != sample(latent, tmp_path / "y.npz", "--label", "1")).any()


# ---------------------------------------------------------------------------------------------------- settings to give

DDIM = {"in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []}
DDIM |= {"dropout": 0.0, "resamp_with_conv": True, "image_size": 4, "beta_schedule": "quad", "beta_start": 1e-4}
DDIM |= {"beta_end": 0.02, "num_diffusion_timesteps": 100, "var_type": "fixedsmall"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that is not published, with an average beside it, and a file that says what it is."""
    model, home = ddim.unet_from_config(DDIM), tmp_path_factory.mktemp("ddim")
    content = {}
    for seed, name in enumerate(("model", "ema")):
        weights = ddim.params_to_ddim(random_params(model, (4, 4, 3), jnp.zeros(1), seed=seed), DDIM)
        content |= {f"{name}.{key}": array for key, array in weights.items()}
    save_file(content, home / "weights")
    (home / "ddim.json").write_text(json.dumps(DDIM))
    return home


def test_settings_of_a_network_are_given_in_a_file(checkpoint, tmp_path, capsys):
    """As in Python; what is loaded is said in one line, with which of its weights."""
    options = ("--config", str(checkpoint / "ddim.json"))
    found = sample(checkpoint / "weights", tmp_path / "a.npz", *options)
    said = "(one that is not published); weights: the average, ema, not model"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "DDPM" in line]
    assert line.endswith(said)
    given = interop.load(checkpoint / "weights", DDIM)
    table, denoiser = given.default_sampler(4)
    denoise = denoiser(given.model_fn())
    x_0 = jax.jit(lambda key: samplers.sample(denoise, table, key, (4, 4, 4, 3)))(jax.random.key(0))
    assert np.abs(images.to_uint8(x_0).astype(int) - found).max() <= 1
    assert np.mean((found > 0) & (found < 255)) > 0.2
    cli.main(["convert", str(checkpoint / "weights"), str(tmp_path / "folder"), *options])
    assert f"{said}: " in capsys.readouterr().out
    converted = interop.load(tmp_path / "folder")
    jax.tree.map(np.testing.assert_array_equal, converted.params, given.params)
    np.testing.assert_array_equal(given.schedule.betas, schedules.quad(100).betas)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample CONVERTED --label 1", r"the network has no classes, got label 1"),
        ("sample CLASSES --label 3", r"the network has the labels 0 .. 2, got label 3"),
        ("sample CLASSES --guidance-scale 2", r"no label that stands for no class, got --guidance-scale 2"),
        ("sample CLASSES --grid karras", r"its own sampler comes with its own steps: .* with grid 'karras'"),
        ("sample CLASSES --timesteps 9 0", r"its own steps: give a sampler together with timesteps \[9, 0\]"),
        ("sample CLASSES --num-steps 101", r"num_steps must be a whole number in \[1, 100\], got 101"),
        ("sample CLASSES --sampler ddpm_learned_range", r"'learned_range' .* got one with 'fixed_small'"),
        ("sample EMPTY", r"EMPTY"),
        ("convert EMPTY there", r"EMPTY"),
        ("convert nowhere there", r"no file or folder nowhere"),
        ("convert CONVERTED CONVERTED", r"exists and is not empty; nothing was written"),
        ("convert CONVERTED", r"ddpm-jax convert.*required"),
        ("convert RUN.edm there", r"other projects have no networks of objective.loss 'edm'; sample it as a run"),
        ("convert RUN.x_prev there", r"other projects have no networks of objective.prediction 'x_prev'"),
        ("sample RUN.json", r"RUN.json/config.json"),
        ("sample OTHER", r"give config={...} .*; on the command line --config FILE.json"),
        ("convert OTHER there", r"give config={...} .*; on the command line --config FILE.json"),
        ("sample OTHER --config nowhere.json", r"no file nowhere.json, which --config names"),
        ("convert OTHER there --config nowhere.json", r"no file nowhere.json, which --config names"),
        ("sample OTHER --config OTHER", r"--config .*weights is not JSON"),
        ("sample OTHER --config list.json", r"--config list.json: list.json must hold a mapping, got list"),
        ("sample OTHER --config one.json", r"unknown setting 'chs'; did you mean 'ch'"),
        ("sample OTHER --config words.json", r"ch must be a whole number in .*, got '32'"),
        ("sample RUN --config one.json", r"--config one.json says what networks of other projects .*run is a run"),
        ("convert RUN there --config one.json", r"--config one.json says what networks .*run is a run"),
        ("nll CONVERTED", r"does not say which images it was trained on: give --data.name, as in train"),
        ("nll CONVERTED --data.image-size 8", r"does not say which images .*: give --data.name"),
        ("nll CONVERTED --data.name nothing", r"'nothing'"),
        ("nll CONVERTED --data.name digits --config one.json", r"unknown setting for a diffusers folder 'chs'"),
        ("nll RUN --data.name digits", r"--data.name digits is for what is no run: .*run is one, of 'digits'"),
        ("nll RUN --data.image-size 8", r"--data.image-size 8 is for what is no run"),
        ("nll RUN --config one.json", r"--config one.json says what networks of other projects .*run is a run"),
        ("nll CLASSES --data.name digits", r"the images of train have shape \(8, 8, 1\), the network's \(4, 4, 3\)"),
        ("nll LATENT --data.name digits", r"bits per dimension are those of images, and this network .* latents"),
        ("learn-sampler CLASSES", r"needs one of 3 labels \(y=\), which learn-sampler does not give"),
        ("learn-sampler RUN --config one.json", r"--config one.json says what networks .*run is a run"),
        ("learn-sampler nowhere", r"no file or folder nowhere"),
        ("sample CLASSES --config one.json", r"unknown setting for a diffusers folder 'chs'"),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line(
    command, message, run, converted, with_classes, latent, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    text = (run / "config.json").read_text()
    for name in ("edm", "x_prev", "json"):
        values = json.loads(text)
        values["config"]["objective"] |= {"edm": {"loss": "edm", "timesteps": "lognormal"}, "json": {}}.get(
            name, {"prediction": "x_prev"}
        )
        (tmp_path / f"RUN.{name}").mkdir()
        (tmp_path / f"RUN.{name}" / "checkpoints").symlink_to(run / "checkpoints")
        (tmp_path / f"RUN.{name}" / "config.json").write_text(json.dumps(values)[: -1 if name == "json" else None])
    for name, content in (("list", "[]"), ("one", '{"chs": 2}'), ("words", json.dumps({**DDIM, "ch": "32"}))):
        (tmp_path / f"{name}.json").write_text(content)
    names = {
        "CONVERTED": converted,
        "CLASSES": with_classes,
        "RUN": run,
        "OTHER": checkpoint / "weights",
        "LATENT": latent,
    }
    words = [str(names.get(word, word)) for word in command.split()]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("ddpm-jax: ") and "\n" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "there").exists() and not [*tmp_path.glob("*_nll"), *tmp_path.glob("*_samplers")]


def test_networks_that_need_more_than_a_label_are_refused(tmp_path, capsys):
    model = models.UNet(
        channels=4, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(4,), num_groups=2,
        out_channels=4, transformer_depth=1, dropout=0.0,
    )  # fmt: skip
    stage = models.AutoencoderKL(channels=4, channel_multipliers=(1, 1), num_res_blocks=1, num_groups=2)
    first_stage = FirstStage(stage, random_params(stage, (8, 8, 3)), 0.5)
    text = write(tmp_path / "text", model, (4, 4, 4), first_stage=first_stage, context=jnp.zeros((1, 2, 5)))
    with pytest.raises(SystemExit):
        cli.main(["sample", str(text), "-n", "1"])
    assert "needs a context, such as the embedding of a text (context=)" in capsys.readouterr().err
    assert to_diffusers.conditional_unet_to_config(model, (4, 4, 4), 5)["cross_attention_dim"] == 5
