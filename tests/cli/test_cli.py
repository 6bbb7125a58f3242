"""The command line as a user meets it: in one process, with what it prints."""

import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build, cli
from ddpm_jax.cli.parsing import parse, parse_run
from ddpm_jax.cli.train import TrainArguments
from ddpm_jax.config.defaults import described, resolved
from ddpm_jax.config.run import Config, DiTConfig, ModelConfig, UViTConfig, differences, from_dict, to_dict
from ddpm_jax.samplers.catalogue import make_table

SMALL = """
from ddpm_jax.config.run import *

config = Config(
    model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2),
    sample=SampleConfig(num_steps=2, num_images=4),
    train=TrainConfig(num_steps=4, batch_size=8, log_every=2, checkpoint_every=2, sample_every=2),
)
"""


pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run made by `ddpm-jax train EXPERIMENT.py`, in its default directory."""
    home = tmp_path_factory.mktemp("home")
    (home / "small.py").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.chdir(home)
        cli.main(["train", "small.py", "--train.num-steps", "3"])
    return home / "runs" / "small"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that learns its variance, its t drawn by importance."""
    home = tmp_path_factory.mktemp("learned")
    (home / "small.py").write_text(SMALL)
    command = (
        "train HOME/small.py --workdir HOME/run --train.num-steps 3 --schedule.name cosine --schedule.num-timesteps 8"
        " --objective.loss hybrid --objective.variance learned_range --objective.prediction v"
        " --objective.timesteps importance --objective.timesteps-arguments history 2"
        " --sample.sampler ddpm_learned_range"
    )
    with jax.numpy_dtype_promotion("standard"):
        cli.main(command.replace("HOME", str(home)).split())
    return home / "run"


def images_of(path):
    with np.load(path) as file:
        return file["images"]


def sample(run, out, *options):
    cli.main(["sample", str(run), "--num-steps", "5", "--out", str(out), *options])
    return images_of(out) if out.suffix == ".npz" else None


def test_train_leaves_a_run(run):
    assert {p.name for p in run.iterdir()} >= {
        "config.json", "environment.jsonl", "metrics.jsonl", "checkpoints", "samples", "samples.png", "loss.png",
    }  # fmt: skip
    assert [p.name for p in sorted((run / "samples").iterdir())] == ["step_0000002.png", "step_0000003.png"]
    assert json.loads((run / "config.json").read_text())["config"]["train"]["num_steps"] == 3
    # What t is drawn with is nothing here, and the directory is what it was before there were such states.
    items = {p.name for p in (run / "checkpoints" / "3").iterdir() if p.is_dir()}
    assert items >= {"params", "ema_params", "opt_state"} and "timestep_state" not in items
    # 4 digits of 8x8 enlarged 6 times, in 2 columns with lines of one pixel
    assert Image.open(run / "samples.png").size == (2 * 49 + 1, 2 * 49 + 1)


def test_train_goes_on_and_says_how_to_sample(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    cli.main(["train", "small.py"])
    out = capsys.readouterr().out
    assert "run directory: runs/small" in out and "trained for 4 steps; pictures: runs/small/samples.png" in out
    command = out.splitlines()[-1].split("ddpm-jax ")[1].split()
    assert command[:2] == ["sample", "runs/small"]
    cli.main([*command, "--num-steps", "2"])  # the printed command works
    assert [json.loads(x)["from_step"] for x in (run / "environment.jsonl").read_text().splitlines()] == [0, 3]


def test_samples_depend_on_the_seed_only(run, tmp_path):
    five = sample(run, tmp_path / "five.npz", "-n", "5")
    assert five.shape == (5, 8, 8, 1) and five.dtype == np.uint8
    np.testing.assert_array_equal(sample(run, tmp_path / "b.npz", "-n", "5", "--batch-size", "2"), five)
    np.testing.assert_array_equal(sample(run, tmp_path / "c.npz", "-n", "2"), five[:2])
    with jax.default_prng_impl("rbg"):  # as JAX_DEFAULT_PRNG_IMPL on many TPUs
        np.testing.assert_array_equal(sample(run, tmp_path / "r.npz", "-n", "5", "--batch-size", "2"), five)
    assert (sample(run, tmp_path / "d.npz", "-n", "5", "--seed", "1") != five).any()
    assert (sample(run, tmp_path / "e.npz", "-n", "5", "--sampler", "ddpm") != five).any()


@pytest.mark.slow
def test_a_learned_variance_is_trained_and_sampled_with(learned, tmp_path):
    logged = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    for line in logged:
        assert line["loss"] == pytest.approx(line["simple"] + line["vlb"] / 1000, rel=1e-5)
    assert (learned / "checkpoints" / "3" / "timestep_state").is_dir()
    small = sample(learned, tmp_path / "a.npz", "-n", "4", "--sampler", "ddpm_small")
    between = sample(learned, tmp_path / "b.npz", "-n", "4", "--sampler", "ddpm_learned_range")
    large = sample(learned, tmp_path / "c.npz", "-n", "4", "--sampler", "ddpm_large")
    np.testing.assert_array_equal(sample(learned, tmp_path / "d.npz", "-n", "4", "--sampler", "ddpm"), between)
    # A network of three steps hardly says anything: its variance is half way between the two, in logarithms.
    assert (between != small).any() and (between != large).any()


def test_a_run_from_before_there_were_objectives_goes_on(run, tmp_path):
    """config.json without them means what was then the only one; the checkpoint has all that it needs."""
    shutil.copytree(run, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    values = json.loads(path.read_text())
    del values["config"]["objective"]
    path.write_text(json.dumps(values))
    cli.main(["train", str(run.parent.parent / "small.py"), "--workdir", str(tmp_path / "old")])
    starts = (tmp_path / "old" / "environment.jsonl").read_text().splitlines()
    assert json.loads(starts[-1])["from_step"] >= 3


def test_the_picture_shows_the_samples(run, tmp_path):
    arrays = sample(run, tmp_path / "x.npz", "-n", "1")
    sample(run, tmp_path / "x.png", "-n", "1")
    picture = np.asarray(Image.open(tmp_path / "x.png"))
    np.testing.assert_array_equal(picture[1:-1:6, 1:-1:6], arrays[0, :, :, 0])
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "command, message",
    [
        ("trian", r"unknown command 'trian'; did you mean 'train'\? \(known: train, sample, evaluate, encode,"),
        ("train --train.num-stepz 4", r"Unrecognized options: --train.num-stepz.*--train.num-steps INT"),
        ("train --train.num-steps many", r"--train.num-steps.*'many'.*INT"),
        ("train --model.dtype float16", r"'float16'.*--model.dtype.*'float32', 'bfloat16'"),
        ("train --train.batch-size 0", r"train.batch_size must be at least 1, got 0"),
        ("train --objective.variance learned_range", r"'learned_range' is not trained by objective.loss 'simple'"),
        ("train --objective.loss hybrid", r"variance must be one of learned, learned_range, got 'fixed_large'"),
        ("train --objective.loss hybrd", r"'hybrd'.*--objective.loss.*'simple', 'vlb', 'hybrid'"),
        ("train --objective.loss edm --objective.prediction v", r"must be left at 'eps'.* got 'v' and 'fixed_large'"),
        ("train --objective.sigma-data 1", r"sigma_data must be .* for .* 'edm', got 1.0 with 'simple'"),
        ("train --objective.vlb-weight 1", r"vlb_weight must be .* for .* 'hybrid', got 1.0 with 'simple'"),
        ("train --objective.weighting minsnr", r"unknown weighting 'minsnr'; did you mean 'min_snr'"),
        ("train --objective.weighting snr --objective.loss vlb", r"weighting is for .* 'simple', got 'snr'"),
        ("train --objective.timesteps importence", r"unknown timestep sampler 'importence'; did you mean 'importance'"),
        ("train --objective.timesteps-arguments k 3", r"timestep sampler 'uniform' takes no arguments, got 'k'"),
        ("train --objective.loss vlb --objective.prediction v --schedule.name jsd", r"zero.*needs a learned"),
        ("train --schedule.name jsd", r"eps says nothing about x_0 at time 999.*predict v"),
        ("train --sample.sampler ddpm_learned", r"needs a network whose variance is 'learned'.*one with 'fixed_large'"),
        ("train --optimizer.clip-norm 0", r"clip_norm must be positive, got 0.0"),
        ("train --train.batch-size 6", r"batch size 6 is not divisible by the number of devices, 4"),
        ("train --optimizer.ema-decay 1", r"ema_decay must lie in \[0, 1\), got 1"),
        ("train --optimizer.warmup-steps 7000", r"below optimizer.decay_steps, got 7000 and 6000"),
        ("train --schedule.name cosin", r"unknown schedule 'cosin'; did you mean 'cosine'"),
        ("train --schedule.arguments beta_end 2", r"betas must lie in \(0, 1\).*got betas"),
        ("train --schedule.arguments s 2", r"schedule 'linear' takes beta_start, beta_end, got 's'"),
        ("train --sample.sampler dimm", r"unknown sampler 'dimm'; did you mean 'ddim'"),
        ("train --sample.num-steps 1001", r"num_steps must be a whole number in \[1, 1000\], got 1001"),
        ("train --model.channels 33", r"channels 33 is not divisible by num_groups 8"),
        ("train --model.attention-resolutions 5", r"attention_resolutions \(5,\) are not all among \[8, 4\]"),
        ("train --data.name mnits", r"unknown data set 'mnits'.*'mnist'"),
        ("train missing.py", r"no experiment file missing.py \(a .py .* defines config\); images are --data\.name"),
        ("train empty.py", r"empty.py must define config, a ddpm_jax.config.run.Config, got NoneType"),
        ("train --workdir occupied", r"occupied is not empty and holds no run"),
        ("train --data.name pictures", r"pictures/b.png"),
        ("train --data.name nothing", r"no image below the folder nothing"),
        ("sample nowhere", r"no file or folder nowhere"),
        ("sample", r"ddpm-jax sample.*required"),
        ("sample RUN --sampler plsm", r"unknown sampler 'plsm'; did you mean 'plms'"),
        ("sample RUN --grid karas", r"unknown grid 'karas'; did you mean 'karras'"),
        ("sample RUN --grid karras --timesteps 9 0", r"give either --grid or --timesteps, got 'karras' and \[9, 0\]"),
        ("sample RUN --num-steps 5 --timesteps 9 0", r"give either --num-steps or --timesteps, got 5 and \[9, 0\]"),
        ("samplers show pndm --grid karras", r"need a grid of the schedule's timesteps"),
        ("sample RUN --sampler ddpm_learned_range", r"variance is 'learned_range' .* got one with 'fixed_large'"),
        ("sample RUN --num-steps 0", r"num_steps must be a whole number in \[1, 1000\], got 0"),
        ("sample RUN -n 0", r"num_images must be at least 1, got 0"),
        ("sample RUN --out x.gif", r"'.gif'.*\.png, \.npz"),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line(run, command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("")
    for name in ("occupied", "pictures", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "occupied" / "x").write_text("")
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "b.png").write_bytes(b"not a picture")
    with pytest.raises(SystemExit) as stop:
        cli.main(command.replace("RUN", str(run)).split())
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("ddpm-jax: ") and "\n" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "runs").exists()  # nothing is left behind by a refused command


def test_a_run_of_another_configuration_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", str(run.parent.parent / "small.py"), "--workdir", str(run), "--train.seed", "1"])
    assert "belongs to another configuration (train.seed: 0, now 1)" in capsys.readouterr().err


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown command"):
        cli.main(["trian"])


def test_help(capsys):
    cli.main([])
    assert "train [EXPERIMENT.py]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--optimizer.ema-decay" in out and "--workdir" in out
    cli.main(["samplers", "--help"])
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "samplers", "samplers show NAME|FILE.json [--num-steps 10] [--grid karras]"
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- configuration


def test_configurations_survive_json():
    config = Config(model=ModelConfig(channel_multipliers=(1, 2, 3), dtype="bfloat16"))
    again = from_dict(json.loads(json.dumps(to_dict(config))), Config)
    assert again == config and isinstance(again.model.channel_multipliers, tuple)
    before_objectives = {name: value for name, value in to_dict(config).items() if name != "objective"}
    assert from_dict(before_objectives, Config) == config
    for change, message in (({"modle": {}}, "modle"), ({"train": {"seed": "x"}}, "seed"), ({"train": 3}, "train")):
        with pytest.raises(ValueError, match=f"not a configuration: .*{message}"):
            from_dict({**to_dict(config), **change}, Config)


def configuration(*argv):
    arguments, _ = parse_run(TrainArguments, [str(word) for word in argv], "train")
    return arguments.config


def test_the_network_and_its_options(tmp_path):
    """Of the network that --model names, or that an experiment has."""
    assert configuration("--model", "dit", "--model.depth", "3") == Config(model=DiTConfig(depth=3))
    assert configuration("--model=uvit", "--model.no-time-mlp") == Config(model=UViTConfig())
    assert configuration("--model", "unet", "--model.channels", "8") == Config(model=ModelConfig(channels=8))
    experiment = tmp_path / "mine.py"
    experiment.write_text("from ddpm_jax.config.run import *\nconfig = Config(model=DiTConfig(depth=3, width=32))\n")
    assert configuration(experiment, "--model.depth", "2").model == DiTConfig(depth=2, width=32)
    assert configuration(experiment, "--model", "dit").model == DiTConfig(depth=3, width=32)
    assert configuration(experiment, "--model", "unet").model == ModelConfig()
    config = resolved(Config(model=UViTConfig()), (8, 8, 1))
    options = described(config, (8, 8, 1), 1).partition("8 x 1: ")[2].split()
    assert configuration(*options) == config
    with pytest.raises(ValueError, match=r"--model\.channel-multipliers is no setting of --model dit \(known: --m"):
        configuration("--model", "dit", "--model.channel-multipliers", "1", "2")
    with pytest.raises(ValueError, match=r"--model\.width is no setting of --model unet"):
        configuration("--model.width", "8")
    with pytest.raises(ValueError, match=r"unknown --model 'dat'; did you mean 'dit'\?"):
        configuration("--model", "dat")


def test_help_has_the_options_of_the_network(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--model", "dit", "--help"])
    out = capsys.readouterr().out
    assert (
        "--model {unet,dit,uvit,classifier,kl,vq,fsq}" in out
        and "--model.patch-size" in out
        and "--model.channels" not in out
    )


def test_differences_leave_out_what_may_change():
    arguments = parse(TrainArguments, ["--train.num-steps", "9", "--data.dir", "x", "--train.seed", "3"], "train")
    assert differences(Config(), arguments.config) == ["train.seed: 0, now 3"]


# ------------------------------------------------------------------------------------------------------ experiments

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
CONFIGS = ("digits", "digits_dit", "digits_uvit", "mnist", "cifar10", "mnist_simple", "mnist_hybrid", "iddpm_cifar10",
           "iddpm_imagenet64", "adm_imagenet256")  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_experiments_say_what_they_are(name):
    config = cli.load_experiment(EXPERIMENTS / f"{name}.py")
    sizes = {"digits": 8, "mnist": 28, "downsampled_imagenet/64x64": 64, "imagenet2012": 256}
    size = sizes.get(config.data.name, 32)
    schedule = build.make_schedule(config.schedule)
    build.make_objective(config.objective, schedule)
    make_table(config.sample.sampler, schedule, config.sample.num_steps, variance=config.objective.variance)
    build.make_model(config, (size, size, 3))
    text = (EXPERIMENTS / f"{name}.py").read_text()
    assert all(f"\n{word}:" in text for word in ("Run", "Needs", "Expect", "Measured"))


@pytest.mark.parametrize("name", ["iddpm_cifar10", "iddpm_imagenet64"])
def test_the_other_objective_of_iddpm(name):
    """The options that its docstring gives for L_vlb."""
    path = EXPERIMENTS / f"{name}.py"
    options = re.search(r"--objective.loss vlb.*importance", path.read_text()).group().split()
    config = parse(TrainArguments, options, "train", TrainArguments(cli.load_experiment(path))).config
    objective = config.objective
    assert (objective.loss, objective.variance, objective.timesteps) == ("vlb", "learned_range", "importance")
    assert config.schedule.num_timesteps == 4000


def test_mnist_simple_and_hybrid_differ_in_schedule_and_objective_only():
    simple, hybrid = (cli.load_experiment(EXPERIMENTS / f"mnist_{name}.py") for name in ("simple", "hybrid"))
    assert {d.split(":")[0] for d in differences(simple, hybrid)} == {
        "schedule.name", "objective.loss", "objective.variance",
    }  # fmt: skip


def test_digits_is_the_default():
    assert cli.load_experiment(EXPERIMENTS / "digits.py") == Config()


LATENT = tuple(f"{part}_{data}" for part in ("autoencoder", "latent") for data in ("emoji", "cifar10", "imagenet256"))
SHORT = ("digits",)
"""Of the experiments, an example of each kind: others take minutes to compile."""


@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SHORT else pytest.mark.campaign)
     for name in (*CONFIGS, *LATENT)],
)  # fmt: skip
def test_experiments_run(name, tmp_path):
    """The `smoke` variant, through the command line."""
    shared = EXPERIMENTS.parent.parent / "shared" / "tfds"
    data = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["smoke"].data.name
    if data != "digits" and not (shared / data).is_dir():
        pytest.skip(f"{data} is not prepared at {shared}")
    (tmp_path / "smoke.py").write_text(
        f"import runpy\nconfig = runpy.run_path({str(EXPERIMENTS / f'{name}.py')!r})['smoke']\n"
    )
    of_data = ["--data.dir", str(tmp_path)]
    if data != "digits":  # decoding all of them takes a minute
        of_data = ["--data.dir", str(shared), "--data.split", "train[:1%]"]
    cli.main(["train", str(tmp_path / "smoke.py"), "--workdir", str(tmp_path / "run"), *of_data])
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert (tmp_path / "run" / "samples.png").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train", "stopped; the same command goes on from what it has written"),
        ("sample", "stopped; the same command goes on from what it has written"),
        ("convert", "stopped"),
    ],
)
def test_ctrl_c_promises_to_go_on_only_where_it_does(command, said, monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command, interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main([command])
    assert stop.value.code == 130 and capsys.readouterr().err == f"ddpm-jax: {said}\n"


def test_what_jax_cannot_compute_is_one_line(monkeypatch, capsys):
    """Most often of memory; with the traceback where that is asked for."""

    def too_much(argv):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED.\nWhere: here")

    monkeypatch.setitem(cli.COMMANDS, "sample", too_much)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample"])
    assert stop.value.code == 2 and capsys.readouterr().err == (
        "ddpm-jax: JAX cannot compute this here, where fewer images at once may help: RESOURCE_EXHAUSTED.\n"
    )
    monkeypatch.setenv("DDPM_JAX_TRACEBACK", "1")
    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.main(["sample"])


def test_more_images_at_once_than_xla_can_count(run, tmp_path, capsys):
    """It would end the process."""
    out = f"{tmp_path}/x/"
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", str(run), "-n", "1000000000", "--batch-size", "1000000000", "--out", out])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and re.search(r"ddpm-jax: batch_size must be at most \d+, got 1000000000$", error), (
        error
    )
