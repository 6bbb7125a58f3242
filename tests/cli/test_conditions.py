"""Conditional runs on the command line: trained, opened, drawn from, and refused in one line."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, cli, guidance, keys, opening, pictures, samplers
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import Config, SampleConfig
from ddpm_jax.train import loop
from tests.cli.test_sample import error_of
from tests.helpers import assert_train_refuses, relative
from tests.runs.small import small_run

SAMPLE = SampleConfig(num_steps=2, num_images=4)


def made(tmp_path_factory, drop):
    """A run with three classes whose network listens: its embeddings are far apart."""
    return small_run(tmp_path_factory.mktemp("home"), SAMPLE, 2, ConditionConfig(("class",), drop))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory, 0.1)


@pytest.fixture(scope="module")
def undropped(tmp_path_factory):
    return made(tmp_path_factory, 0.0)


def sampled(run, out, *words):
    cli.main(["sample", *map(str, (run, "-n", 6, "--batch-size", 3, "--num-steps", 2, "--out", out, *words))])
    with np.load(out) as file:
        return file["images"], file["arr_1"]


def test_a_run_says_its_classes(run, undropped):
    trained = opening.open(run, print)
    assert trained.classes == ("0", "1", "2") and trained.conditions.num_classes == 3
    assert trained.conditions.null_label == 3 and opening.open(undropped, print).conditions.null_label is None


def test_labels_and_guidance_are_what_is_drawn(run, tmp_path):
    """As a loop over the network's own answers draws them; each label in turn, one, or some."""
    trained = opening.open(run, print)
    schedule_end = trained.schedule.num_timesteps
    for words, chosen, scale, interval in (
        ((), [0, 1, 2, 0, 1, 2], None, None),
        (("--label", 2), [2] * 6, None, None),
        (("--labels", 2, 0), [2, 0, 2, 0, 2, 0], None, None),
        (("--labels", 1, "--guidance-scale", 3.5), [1] * 6, 3.5, None),
        (("--labels", 1, "--guidance-scale", 3.5, "--guidance-interval", 0, 0.5), [1] * 6, 3.5, (0, 0.5)),
    ):
        images, labels = sampled(run, tmp_path / f"{len(list(tmp_path.iterdir()))}.npz", *words)
        assert labels.tolist() == chosen
        y = jnp.asarray(chosen, jnp.int32)
        given, nothing = trained.model_fn(y=y), trained.model_fn(y=jnp.full_like(y, 3))

        def model_fn(x, t, given=given, nothing=nothing, scale=scale, interval=interval):
            if scale is None:
                return given(x, t)
            inside = interval is None or (t[0] >= interval[0] * schedule_end) & (t[0] <= interval[1] * schedule_end)
            return jnp.where(inside, guidance.classifier_free(given, nothing, scale=scale)(x, t), given(x, t))

        preset = pictures.preset(trained, None, 2, None, None)
        x_0 = samplers.sample(preset.denoiser(model_fn), preset.table, keys.make(0), (6, 8, 8, 1))
        assert np.abs(images.astype(int) - np.round((np.asarray(x_0).clip(-1, 1) + 1) * 127.5)).max() <= 1


def test_scales_0_and_1_are_no_guidance(run, tmp_path, optimized):
    """The conditional and the unconditional pictures; another scale gives others."""
    plain, _ = sampled(run, tmp_path / "plain.npz")
    np.testing.assert_array_equal(sampled(run, tmp_path / "one.npz", "--guidance-scale", 1)[0], plain)
    nothing, _ = sampled(run, tmp_path / "zero.npz", "--guidance-scale", 0)
    np.testing.assert_array_equal(nothing, sampled(run, tmp_path / "two.npz", "--guidance-scale", 0, "--label", 1)[0])
    assert (sampled(run, tmp_path / "five.npz", "--guidance-scale", 5)[0] != plain).any()


def test_autoguidance_is_of_two_networks(run, undropped, tmp_path, capsys):
    """By an earlier checkpoint: the worse one's answer and what the better one adds to it, times the scale."""
    checkpoints = run / "checkpoints"
    good, bad = opening.open(run, print), opening.open_to_read(checkpoints / "2", print)
    assert bad.step == 2 and good.weights == bad.weights
    nothing, _ = sampled(run, tmp_path / "same.npz", "--guidance-scale", 3, "--guidance-with", checkpoints / "2")
    plain, _ = sampled(run, tmp_path / "plain.npz")
    assert np.abs(nothing.astype(int) - plain).max() <= 1  # beside itself, up to rounding
    error = error_of(capsys, "sample", run, "--guidance-scale", 3, "--guidance-with", checkpoints / "1")
    assert "no checkpoint 1 in" in error and "it has [2]" in error
    # Only beside: what draws from a place leaves its pictures there, and a checkpoint is no place for them.
    error_of(capsys, "sample", checkpoints / "2")
    assert not list((checkpoints / "2").glob("*.png"))
    error = error_of(capsys, "sample", run, "--guidance-scale", 3, "--guidance-with", undropped)
    assert "--guidance-with must have the same conditions" in error


def test_a_method_that_remembers_draws(run, tmp_path):
    """Its memory goes with the sampler: without a momentum, eta 1 and threshold none it is classifier-free guidance."""
    expected, _ = sampled(run, tmp_path / "free.npz", "--guidance-scale", 3)
    words = ("--guidance-scale", 3, "--guidance-method", "apg", "--guidance-numbers", "momentum")
    found, _ = sampled(run, tmp_path / "apg.npz", *words, 0, "eta", 1, "threshold", 1e9)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (sampled(run, tmp_path / "momentum.npz", *words, -0.75, "threshold", 1e9)[0] != expected).any()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--label 3", r"the network has the labels 0 .. 2, got label 3"),
        ("--labels 0 -1", r"got label -1"),
        ("--label 1 --labels 0 1", r"give either --label or --labels, got 1 and \[0, 1\]"),
        ("--guidance-interval 0 1", r"--guidance-interval is for --guidance-scale, got .* without it"),
        ("--guidance-scale 2 --guidance-interval 0.8 0.2", r"--guidance-interval must be .* got 0.8 0.2"),
        ("--guidance-scale 2 --guidance-rescale 1.5", r"--guidance-rescale must lie in \[0, 1\], got 1.5"),
        ("--guidance-method apg", r"--guidance-method is for --guidance-scale, got apg without it"),
        (
            "--guidance-scale 2 --guidance-method apg --guidance-numbers zero 1",
            r"number of --guidance-method apg.*zero",
        ),
        ("--guidance-scale 2 --guidance-numbers eta 1", r"number of --guidance-method classifier-free.*eta"),
        ("--guidance-scale 2 --guidance-method cfg++", r"scale.*\[0.*1\].*2"),
    ],
)
def test_bad_options(run, capsys, words, message):
    assert re.search(message, error_of(capsys, "sample", run, *words.split()))


def test_a_run_without_nothing_is_not_guided(undropped, capsys):
    error = error_of(capsys, "sample", undropped, "--guidance-scale", 2)
    assert "the run was trained with --condition.drop 0" in error and "got --guidance-scale 2" in error


@pytest.mark.parametrize(
    "options, message",
    [
        ("--model dit --condition mask", r"--model dit does not take --condition mask \(it takes class\)"),
        ("--condition class --data.labels none", r"--condition class needs labels, and these data have none"),
        ("--condition.drop 0.2", r"condition.drop must lie in \[0, 1\) and is for a --condition, got 0.2 with none"),
        ("--condition low-res --condition.low-res-factor 3", r"low_res_factor must divide height and width, 8 x 8"),
    ],
)
def test_train_refuses(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_train_refuses(options, message, capsys)


@pytest.mark.parametrize("names", [("mask",), ("class", "low-res")])
@pytest.mark.usefixtures("optax_promotes")
def test_what_is_told_is_learned(names, tmp_path):
    """The gradient of an embedding or an input channel is 0 where nothing is told, and not where it is."""
    home = small_run(tmp_path, SAMPLE, 1, ConditionConfig(names, 0.0))
    info = json.loads((home / "config.json").read_text())
    assert info["config"]["condition"]["names"] == list(names)
    assert (info["classes"] is not None) == ("class" in names)
    run = loop.prepare(opening.open(home, print).run, say=print)
    state = jax.jit(run.init)()
    batch = run.source.read(range(8), run.task.reads)
    gradient = jax.jit(
        lambda task_batch: run.task.gradient(state, task_batch, jnp.arange(8, dtype=jnp.uint32), 8)[0].grads
    )
    # Its last layer begins near 0: what is before it has a gradient, but a small one.
    found = gradient({name: jnp.asarray(values) for name, values in batch.items()})
    if "class" in names:
        rows = np.abs(found["class_embedding"]["embedding"]).sum(1)
        assert rows.shape == (3,) and (rows > 0).all()
    if names != ("class",):
        assert (np.abs(found["conv_in"]["kernel"]).sum((0, 1, 3)) > 0).all()
        shown = run.task.pictures(state.params, run.key_sample)
        assert shown.shape == (4, 8, 16, 1)  # what was told, beside what was drawn
        expected = run.task.shown.told[{"low-res": "low_res"}.get(names[-1], "concat")][..., :1]
        left = shown[:, :: 8 // expected.shape[1], : 8 : 8 // expected.shape[2]]
        assert np.abs(left - (np.asarray(expected) + 1) * 127.5).max() <= 0.5


def test_a_network_that_does_not_listen_is_said(run):
    """Where what it says is the same without its condition; one that listens is not told of."""
    said = []
    task = loop.prepare(opening.open(run, print).run, say=said.append).task
    said.clear()
    params = opening.open(run, print).params
    draw = lambda params, key: jnp.zeros((4, 8, 8, 1))
    task = dataclasses.replace(task, draw=draw)
    task.pictures(params, None)
    assert said == []
    deaf = params | {"class_embedding": jax.tree.map(np.zeros_like, params["class_embedding"])}
    assert relative(params["class_embedding"]["embedding"], deaf["class_embedding"]["embedding"] + 1) > 0
    task.pictures(deaf, None)
    assert said == ["the network does not listen to its condition: without it, 0.0e+00 of its answer changes"]


def test_old_configurations_open():
    """One of before there were conditions is unconditional."""
    assert build.build(Config(), (8, 8, 1)).condition is None


def test_a_converted_run_is_guided_as_the_run_is(run, tmp_path):
    """Which label stands for no class lies beside what diffusers reads."""
    folder = tmp_path / "folder"
    cli.main(["convert", str(run), str(folder)])
    trained = opening.open(folder, print)
    assert trained.classes == ("0", "1", "2")
    assert (trained.conditions.num_classes, trained.conditions.null_label) == (3, 3)
    options = ("--labels", 1, 2, "--guidance-scale", 3, "--sampler", "ddim")
    (ours, labels), (theirs, same) = (
        sampled(place, tmp_path / f"{place.name}.npz", *options) for place in (run, folder)
    )
    assert np.abs(ours.astype(int) - theirs).max() <= 1 and np.array_equal(labels, same)
    plain, _ = sampled(folder, tmp_path / "plain.npz", *options[:3], "--sampler", "ddim")
    assert np.abs(theirs.astype(int) - plain).max() > 10


@pytest.mark.parametrize(
    "content, message",
    [
        ({"null_label": 2}, "null_label in .* must be the network's last label 3, got 2"),
        ({"null_label": True}, "null_label in .* must be the network's last label 3, got True"),
        ({"classes": ["a"]}, "classes in .* must be 4 names, one for each class, got 1 values"),
        ({"null_label": 3, "classes": "abc"}, "classes in .* must be 3 names, one for each class, got 'abc'"),
        ({"nul_label": 3}, "unknown setting in .*'nul_label'; did you mean 'null_label'"),
    ],
)
def test_what_lies_beside_a_folder_must_fit(content, message, run, tmp_path):
    folder = tmp_path / "folder"
    cli.main(["convert", str(run), str(folder)])
    (folder / "ddpm_jax.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        opening.open(folder, print)
