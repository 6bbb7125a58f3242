"""Guidance of the commands that work on pictures: as of the images of sample, and refused where it would be nothing."""

import shutil

import numpy as np
import pytest

from ddpm_jax import guided, images, keys, opening
from ddpm_jax import pictures as pictures_of_runs
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import SampleConfig
from ddpm_jax.uses import image_to_image
from tests.runs.small import small_run
from tests.uses.common import call, images_of, pixels_of, refused

LABEL = ("--label", 1)
COMMANDS = {
    "img2img": ("a.png",),
    "inpaint": ("a.png", "--mask", "b.png", "--method", "replacement"),
    "interpolate": ("--seeds", 0, 1, "--steps", 2),
    "film": ("--num-images", 1),
    "invert": ("a.png",),
}


@pytest.fixture(scope="module")
def made_with_classes(tmp_path_factory):
    sampler = SampleConfig(sampler="ddim", num_steps=4)
    return small_run(tmp_path_factory.mktemp("classes"), sampler, 2, ConditionConfig(("class",), 0.1))


@pytest.fixture
def classes(made_with_classes, tmp_path):
    return shutil.copytree(made_with_classes, tmp_path / "classes")


def words_of(command, pictures):
    return [pictures / word if str(word).endswith(".png") else word for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_guidance_reaches_the_command(command, classes, pictures, tmp_path):
    """A scale of 1 is none, and so is an interval without a row; of 4 gives other pictures."""
    ending = {"film": "png"}.get(command, "npz")
    read = pixels_of if ending == "png" else lambda path: np.load(path)["x_T" if command == "invert" else "images"]
    found = {}
    for name, more in {"none": (), "1": (1,), "4": (4,), "nowhere": (4, "--guidance-interval", 0, 0)}.items():
        out = tmp_path / f"{name}.{ending}"
        call(
            command, classes, *words_of(command, pictures), *LABEL,
            *(("--guidance-scale", *more) if more else ()), "--out", out,
        )  # fmt: skip
        found[name] = read(out).astype(float)
    scale = np.abs(found["none"]).max()
    # Of pictures, a level that rounding decides; an inversion of four steps makes of a tolerance of 1e-6 so much more.
    close = (0.05 if command == "invert" else 0.01) * scale
    assert np.abs(found["1"] - found["none"]).max() <= close
    assert np.abs(found["nowhere"] - found["none"]).max() <= close
    far = np.abs(found["4"] - found["none"]).max()
    assert far > 2 * close


def test_img2img_is_guided_as_the_function_is(classes, pictures, tmp_path):
    call("img2img", classes, pictures / "a.png", *LABEL, "--guidance-scale", 3, "--out", tmp_path / "a.npz")
    trained = opening.open(classes, print)
    guidance = guided.Guidance(3.0)
    table, denoiser = image_to_image.preset(trained, 0.5)
    table = guidance.on(table, trained.schedule.num_timesteps)
    told = {"y": np.ones(1, np.int32)}
    denoise = guided.denoise_of(trained, guidance, guided.parameters(trained, guidance), told, denoiser)
    x_0 = images.to_float(pixels_of(pictures / "a.png")[None, ..., None])
    expected = images.to_uint8(image_to_image.image_to_image(denoise, table, keys.make(0), x_0))
    assert np.abs(images_of(tmp_path / "a.npz").astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["img2img", "a.png", "--guidance-scale", 2], "--guidance-scale 2 is towards a class: give --label"),
        (["img2img", "a.png", *LABEL, "--guidance-rescale", 0.5], "--guidance-rescale is for --guidance-scale"),
        (
            ["invert", "a.png", *LABEL, "--guidance-scale", 2, "--guidance-method", "apg"],
            "--guidance-method apg remembers the steps before, and invert does not pass that on",
        ),
    ],
)
def test_guidance_that_is_refused(classes, pictures, capsys, words, message):
    command, *rest = [pictures / word if str(word).endswith(".png") else word for word in words]
    assert message in refused(capsys, command, classes, *rest)


def test_a_network_without_classes_is_not_guided(run, pictures, capsys):
    error = refused(capsys, "img2img", run, pictures, "--guidance-scale", 2)
    assert error == "the network has no classes, got --guidance-scale 2"


def test_pictures_are_not_gone_on_with_beside_another_network(classes, tmp_path, capsys, monkeypatch):
    """What guides is known by its weights, not by its name."""
    (home := tmp_path / "home").mkdir()
    beside = shutil.copytree(classes, tmp_path / "beside")
    words = ("sample", classes, "-n", 4, "--batch-size", 2, "--guidance-scale", 2, "--guidance-with", beside)
    finite, seen = pictures_of_runs.finite, []

    def once(batch):
        if seen:
            raise KeyboardInterrupt
        seen.append(batch)
        return finite(batch)

    monkeypatch.setattr("ddpm_jax.pictures.finite", once)
    with pytest.raises(SystemExit):
        call(*words, "--out", tmp_path / "a.npz")
    monkeypatch.undo()
    shutil.rmtree(beside)
    small_run(home, SampleConfig(sampler="ddim", num_steps=4), 3, ConditionConfig(("class",), 0.1)).rename(beside)
    assert "--guidance-with" in refused(capsys, *words, "--out", tmp_path / "a.npz")
