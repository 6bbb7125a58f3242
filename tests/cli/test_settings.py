"""No setting of a run is dropped on the way: changed, it changes what a command does, or the command refuses it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cli, opening
from ddpm_jax.config.run import SampleConfig
from ddpm_jax.distil.command import network_of
from ddpm_jax.interop.diffusers import save
from ddpm_jax.samplers import Row
from tests.runs.small import small_run

REFUSED = "refused"
# A setting: what it is changed to, and for which commands that matters.
EVERY = {"sample", "nll", "learn-sampler", "convert"}
SETTINGS = {
    "schedule.name": ("quad", EVERY),
    "schedule.arguments": ({"beta_end": 0.3}, EVERY),
    "objective.prediction": ("v", EVERY),
    # Samplers are learned among those that draw no noise, to which no variance matters.
    "objective.variance": ("fixed_small", EVERY - {"learn-sampler"}),
    "sample.clip": (0.3, EVERY),
    "sample.sampler": ("ddim", {"sample"}),
    "sample.num_steps": (4, {"sample"}),
}
EDM = {"objective.loss": "edm", "objective.sigma_data": 0.5}
X, NOISE_LEVEL = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 8, 8, 1), Row(5.0, 0.8, 0.6, 0.0, 0.0, None)


pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose pictures are ancestral samples, with parameters that say something."""
    return small_run(tmp_path_factory.mktemp("home"), SampleConfig(sampler="ddpm", num_steps=3, num_images=2))


def with_settings(run, target, **changes):
    """A copy of the run as it would be with other settings and the same parameters."""
    shutil.copytree(run, target)
    content = json.loads((target / "config.json").read_text())
    for name, value in changes.items():
        section, field = name.split(".")
        content["config"][section][field] = value
    (target / "config.json").write_text(json.dumps(content))
    return target


def outcome(run, command):
    """What a command makes of a run, as bytes; or that it refuses."""
    if command == "sample":
        cli.main(["sample", str(run), "-n", "2", "--out", str(run / "a.npz")])
        with np.load(run / "a.npz") as file:
            return b"".join(np.ascontiguousarray(file[name]).tobytes() for name in sorted(file.files))
    if command == "nll":
        cli.main(["nll", str(run), "-n", "2", "--batch-size", "2", "--num-steps", "5", "--optimal-steps", "2"])
        (summary,) = run.glob("nll/*/summary.json")
        return json.dumps(json.loads(summary.read_text())["bits_per_dim"]).encode()
    if command == "learn-sampler":
        trained = opening.open(run, print)
        network = network_of(trained)
        answer = network.make_denoise(*network.data)(jnp.asarray(X), NOISE_LEVEL).x_0
        return np.asarray(answer).tobytes() + trained.schedule.alphas_cumprod_float64.tobytes()
    try:
        folders, _ = save.parts(opening.open(run, print))
    except ValueError:
        return REFUSED.encode()
    return json.dumps(folders["scheduler"].config).encode()


@pytest.fixture(scope="module")
def watched(run, tmp_path_factory):
    """What the commands make of the run as it is, and which texts each of them read."""
    copy, texts, read_text = with_settings(run, tmp_path_factory.mktemp("unchanged") / "run"), {}, Path.read_text
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Path, "read_text", lambda path, *given, **named: seen.append(path.name) or read_text(path, *given, **named)
        )
        found = {}
        for command in EVERY:
            seen = texts[command] = []
            found[command] = outcome(copy, command)
    return found, texts


@pytest.fixture(scope="module")
def unchanged(watched):
    return watched[0]


def test_a_command_reads_the_configuration_once(watched):
    assert {command: texts.count("config.json") for command, texts in watched[1].items()} == dict.fromkeys(EVERY, 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_matters(name, run, unchanged, tmp_path):
    value, commands = SETTINGS[name]
    copy = with_settings(run, tmp_path / "run", **{name: value})
    found = {command: outcome(copy, command) for command in EVERY}
    assert {command for command in EVERY if found[command] != unchanged[command]} == commands


def test_the_settings_of_edm_matter(run, unchanged, tmp_path):
    """With the loss of EDM the network is another function of its output, and sigma_data a part of that."""
    a = with_settings(run, tmp_path / "a", **EDM)
    b = with_settings(run, tmp_path / "b", **EDM | {"objective.sigma_data": 1.0})
    for command in EVERY:
        of_a, of_b = outcome(a, command), outcome(b, command)
        assert of_a != unchanged[command], command
        assert of_a != of_b or of_a == REFUSED.encode(), command
    assert outcome(a, "convert") == REFUSED.encode()


@pytest.mark.parametrize("prediction", ["score", "x_prev"])
def test_what_diffusers_has_no_word_for_is_not_converted(prediction, run, tmp_path):
    copy = with_settings(run, tmp_path / "run", **{"objective.prediction": prediction})
    with pytest.raises(ValueError, match=f"prediction[= ]'{prediction}'"):
        save.parts(opening.open(copy, print))


def test_another_variance_by_name_is_said(run, tmp_path, capsys):
    copy = with_settings(run, tmp_path / "run", **{"objective.variance": "fixed_small"})
    drawn = {}
    for name in ("ddpm", "ddpm_small", "ddpm_large"):
        capsys.readouterr()
        cli.main(["sample", str(copy), "--sampler", name, "-n", "2", "--out", str(copy / f"{name}.npz")])
        said = "sampler 'ddpm_large' has variance 'fixed_large', the network was trained for 'fixed_small'"
        assert (said in capsys.readouterr().out) == (name == "ddpm_large")
        drawn[name] = dict(np.load(copy / f"{name}.npz"))
    for key in drawn["ddpm"]:
        np.testing.assert_array_equal(drawn["ddpm"][key], drawn["ddpm_small"][key])
        assert (drawn["ddpm"][key] != drawn["ddpm_large"][key]).any()
