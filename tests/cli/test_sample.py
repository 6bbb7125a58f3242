"""`ddpm-jax sample`: what it writes when, what it keeps, and what it says of numbers that are none."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax import cli, interop, opening, pictures
from ddpm_jax.config.run import SampleConfig
from ddpm_jax.distil import files
from ddpm_jax.runs import checkpoint
from ddpm_jax.train import loop
from tests.runs.small import small_run

SOME = ("-n", "6", "--batch-size", "2", "--num-steps", "2")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("home"), SampleConfig(num_steps=2, num_images=4), num_steps=2)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def folder(made, tmp_path):
    interop.save_diffusers(tmp_path / "folder", opening.open(made, print))
    return tmp_path / "folder"


def sample(*words):
    cli.main(["sample", *map(str, words)])


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("ddpm-jax: ")
    return error


def stopped_after(monkeypatch, count):
    """Drawing ends with Ctrl-C after so many batches."""
    batches = pictures.batches

    def some(*arguments, **options):
        monkeypatch.setattr(pictures, "batches", batches)
        for _, batch in zip(range(count), batches(*arguments, **options), strict=False):
            yield batch
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "batches", some)


# --------------------------------------------------------------------------------------------- going on, and keeping


@pytest.mark.parametrize("out", ["a.npz", "a.png", "a/"])
def test_a_stopped_call_goes_on(run, tmp_path, monkeypatch, capsys, out):
    """With the bytes of one that was not stopped."""
    sample(run, *SOME, "--out", f"{tmp_path}/whole/{out}")
    stopped_after(monkeypatch, 2)
    with pytest.raises(SystemExit):
        sample(run, *SOME, "--out", f"{tmp_path}/stopped/{out}")
    assert "stopped; the same command goes on from what it has written" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / out).is_file()
    sample(run, *SOME, "--out", f"{tmp_path}/stopped/{out}")
    assert "going on after 4 images" in capsys.readouterr().out
    for place in ("whole", "stopped"):
        assert len([path for path in (tmp_path / place).rglob("*") if path.is_file()]) == (6 if out == "a/" else 1)
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_other_settings_do_not_go_on(run, tmp_path, monkeypatch, capsys):
    """Nor do those of a run that was trained on meanwhile."""
    out = ("--out", tmp_path / "a.npz")
    stopped_after(monkeypatch, 1)
    with pytest.raises(SystemExit):
        sample(run, *SOME, *out)
    capsys.readouterr()
    for words, message in {
        ("--seed", "1"): r"\(--seed 0, now 1\)",
        ("--sampler", "ddpm"): r"--sampler None, now ddpm; table",
        ("--num-steps", "3"): r"--num-steps 2, now 3; table",
        ("-n", "7"): r"--num-images 6, now 7",
        ("--batch-size", "3"): r"--batch-size 2, now 3",
    }.items():
        error = error_of(capsys, "sample", run, *SOME, *words, *out)
        assert re.search(f"a.npz.parts holds a part of .*{message}", error)
    (run / "checkpoints" / "2").rename(run / "checkpoints" / "4")
    assert re.search(r"\(step 2, now 4\)", error_of(capsys, "sample", run, *SOME, *out))


def test_finished_pictures_are_kept(run, tmp_path, capsys):
    """A picture has the name of what it shows; where one is there already, it stays."""
    sample(run, "-n", "4")
    sample(run, "-n", "1")
    sample(run, "-n", "4", "--timesteps", "9", "0")
    sample(run, "-n", "4", "--timesteps", "8", "0")
    (run / "checkpoints" / "2").rename(run / "checkpoints" / "4")
    sample(run, "-n", "4")
    assert len(list(run.glob("*.png"))) == 5
    before = {path: path.read_bytes() for path in run.glob("*.png")}
    error = error_of(capsys, "sample", run, "-n", "4")
    assert re.search(r"step4_ddim_2_n4_seed0\.png is there already: choose another --out, or delete it", error)
    assert {path: path.read_bytes() for path in run.glob("*.png")} == before


def test_where_nothing_can_be_written_nothing_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(opening, "open", lambda *arguments: pytest.fail("read"))
    assert "Not a directory" in error_of(capsys, "sample", "x", "--out", f"{tmp_path}/file/a.npz")


# -------------------------------------------------------------------------------------------------------- not finite


def test_images_that_are_not_finite_end_the_call(run, tmp_path, monkeypatch, capsys):
    """Those before are kept; asked for, the call goes on, and says how many there are."""
    original = pictures.samplers.sample

    def diverging(denoise, table, key, shape, first_index):
        x_0 = original(denoise, table, key, shape, first_index=first_index)
        return x_0.at[:, 0, 0].set(
            jnp.where(first_index + jnp.arange(2, dtype=jnp.uint32) == 3, jnp.nan, jnp.inf)[:, None]
        )

    monkeypatch.setattr(pictures.samplers, "sample", diverging)
    out = ("--out", tmp_path / "a.npz")
    error = error_of(capsys, "sample", run, *SOME, *out)
    assert re.search(r"2 of 2 images have NaN or infinity, first image 0: .*--allow-non-finite keeps", error)
    stopped_after(monkeypatch, 2)
    with pytest.raises(SystemExit):
        sample(run, *SOME, *out, "--allow-non-finite")
    sample(run, *SOME, *out, "--allow-non-finite")
    assert "6 of 6 images have NaN or infinity, first image 0" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as file:
        assert file["images"][:, 0, 0, 0].tolist() == [255, 255, 255, 0, 255, 255]


def test_pictures_in_python_are_finite(made, monkeypatch):
    trained = opening.open(made, print)
    monkeypatch.setattr(pictures.samplers, "sample", lambda *a, first_index: jnp.full((2, 8, 8, 1), jnp.nan))
    preset, labels = pictures.preset(trained, None, 2, None, None), pictures.labels(trained)
    with pytest.raises(FloatingPointError, match="2 of 2 images have NaN or infinity"):
        next(pictures.pictures(trained, preset, labels, 2, 2, 0))


def test_pictures_of_a_training_that_are_not_finite_are_said(made):
    said = []
    task = loop.prepare(checkpoint.load_run(made).config, say=said.append).task
    said.clear()  # what is said of the schedule
    x_0 = jnp.zeros((4, 8, 8, 1))
    assert (dataclasses.replace(task, draw=lambda *_: x_0).pictures({}, None) == 128).all() and said == []
    wrong = dataclasses.replace(task, draw=lambda *_: x_0.at[1, 0, 0].set(jnp.nan).at[2].set(-jnp.inf))
    assert wrong.pictures({}, None)[:, 0, 0, 0].tolist() == [128, 0, 0, 128]
    assert said == ["2 of the 4 images drawn have NaN or infinity: sample.sampler diverges"]


def test_weights_of_a_run_are_finite(run, capsys):
    """Whatever reads them."""
    info = checkpoint.load_run(run)
    template = opening.build.build(info.config, info.image_shape).params
    average, _ = checkpoint.restore_ema_and_step(run, template, print)
    average["conv_out"]["bias"] = average["conv_out"]["bias"].at[0].set(jnp.nan)
    place = run / "checkpoints" / "2"
    shutil.rmtree(place / "ema_params")
    with checkpoint.ocp.StandardCheckpointer() as writer:
        writer.save(place / "ema_params", average)
    checkpoint.seal(place)
    message = r"run, step 2: weights must be finite, .* in 1 of \d+ arrays: 1 of the 1 numbers of params/conv_out/bias$"
    for command in ("sample RUN", "nll RUN -n 1", "convert RUN RUN_x", "learn-sampler RUN"):
        assert re.search(message, error_of(capsys, *command.replace("RUN", str(run)).split())), command


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_of_other_projects_are_finite(folder, capsys, value):
    path = next(folder.rglob("*.safetensors"))
    weights = {name: np.full_like(array, value) for name, array in load_file(path).items()}
    save_file(weights, path)
    error = error_of(capsys, "sample", folder)
    assert re.search(r"folder: weights must be finite, .* is in (\d+) of \1 arrays: .*, \.\.\.$", error)


def test_numbers_that_overflow(folder, capsys):
    """Weights that are finite, of which nothing else is."""
    path = next(folder.rglob("*.safetensors"))
    save_file({name: np.full_like(array, 1e30) for name, array in load_file(path).items()}, path)
    error = error_of(capsys, "sample", folder, "-n", "2", "--num-steps", "2", "--out", folder.parent / "a.png")
    assert "2 of 2 images have NaN or infinity, first image 0: the sampler diverges" in error
    assert not (folder.parent / "a.png").exists()


# -------------------------------------------------------------------------------------------------- learned elsewhere


def learned(path, trained, **network):
    """A file of two calls that was made for this network, but for what is said of it."""
    rows = pictures.preset(trained, "ddim", 2, None, None).table.rows
    levels = np.array([rows.time, rows.alpha, rows.sigma]).T.tolist()
    calls = tuple(files.Call(*level, (0.5,) * (k + 1), 0.1) for k, level in enumerate(levels))
    said = {"weights": trained.weights, "prediction": trained.prediction, "origin": trained.origin}
    files.save(path, files.Learned(calls, {"network": said | network}))
    return path


def test_a_sampler_learned_on_another_network_is_said(made, tmp_path):
    trained, said = opening.open(made, print), []
    pictures.preset(trained, str(learned(tmp_path / "own.json", trained)), None, None, None, said.append)
    assert said == []
    other = learned(tmp_path / "other.json", trained, weights="00000000", prediction="v")
    pictures.preset(trained, str(other), None, None, None, said.append)
    weights = f"weights '00000000', here '{trained.weights}'"
    line = f"was learned on another network: {weights}; prediction 'v', here 'eps'; how well it does here is not known"
    assert said.pop().endswith(line)
    old = json.loads(other.read_text())
    for network, message in (
        ({"prediction": "eps", "origin": trained.origin, "step": 2}, None),
        ({"prediction": "eps", "origin": "a run of ddpm-jax, 9 steps"}, "origin 'a run of ddpm-jax, 9 steps', here"),
        (None, "the file does not say which"),
    ):
        old["made"]["network"] = network
        other.write_text(json.dumps(old))
        pictures.preset(trained, str(other), None, None, None, said.append)
        assert (message in said.pop()) if message else not said


def test_weights_tell_networks_apart(made):
    trained = opening.open(made, print)
    other = dataclasses.replace(trained, params=jax.tree.map(lambda leaf: leaf + 1e-6, trained.params))
    assert re.fullmatch("[0-9a-f]{8}", trained.weights) and trained.weights != other.weights


def test_random_labels():
    """Label i does not depend on the batch, and each class is as likely as another."""
    labels = pictures.Labels(5, None, (1, 4), at_random=7)
    n = 400
    all_ = labels.of(0, n)
    assert all_.dtype == np.int32 and set(all_.tolist()) == {1, 4}
    np.testing.assert_array_equal(np.concatenate([labels.of(first, 50) for first in range(0, n, 50)]), all_)
    assert abs((all_ == 1).sum() - n / 2) < 5 * np.sqrt(n / 4)
    assert (dataclasses.replace(labels, at_random=8).of(0, n) != all_).any()
    assert (labels.of(0, 6) != dataclasses.replace(labels, at_random=None).of(0, 6)).any()


def test_random_labels_need_classes(run, capsys):
    assert "--random-labels is for networks with classes" in error_of(capsys, "sample", run, *SOME, "--random-labels")
