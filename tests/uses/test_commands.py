"""The commands that work on pictures, as a user meets them: what they write, and what they refuse in one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import images, interop, keys, opening
from ddpm_jax.models import UNet
from ddpm_jax.uses import batches, image_to_image
from tests.helpers import trained_of
from tests.uses.common import call, images_of, pixels_of, refused

FEW = ("--num-steps", "4")


# ------------------------------------------------------------------------------------------------------- img2img


def test_img2img_of_a_folder(run, pictures, tmp_path):
    """Each picture is what the function makes of it; batches change nothing but rounding."""
    call("img2img", run, pictures, "--strength", "0.5", "--batch-size", "2", "--out", tmp_path / "a.npz")
    found = images_of(tmp_path / "a.npz")
    trained = opening.open(run, print)
    table, denoiser = image_to_image.preset(trained, 0.5)
    x_0 = images.to_float(np.stack([pixels_of(path) for path in sorted(pictures.rglob("*.png"))])[..., None])
    told = denoiser(trained.model_fn())
    expected = images.to_uint8(image_to_image.image_to_image(told, table, keys.make(0), x_0))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert not np.array_equal(found[0], found[1])


def test_img2img_of_a_run_and_of_its_folder(run, pictures, tmp_path):
    interop.save_diffusers(tmp_path / "folder", opening.open(run, print))
    for source in ("run", "folder"):
        call(
            "img2img",
            tmp_path / source,
            pictures / "a.png",
            "--sampler",
            "ddim",
            *FEW,
            "--out",
            tmp_path / source / "x",
        )
    assert [path.name for path in (tmp_path / "run" / "x").iterdir()] == ["000000.png"]
    ours, theirs = (pixels_of(tmp_path / source / "x" / "000000.png").astype(int) for source in ("run", "folder"))
    assert np.abs(ours - theirs).max() <= 1 and ours.shape == (8, 8)


def test_nothing_that_is_there_is_replaced(run, pictures, capsys):
    call("img2img", run, pictures)
    assert (run / "img2img_pictures_seed0.png").exists()
    assert "img2img_pictures_seed0.png is there already: choose another --out" in refused(
        capsys, "img2img", run, pictures
    )


def test_a_stopped_call_goes_on(run, pictures, tmp_path, monkeypatch, capsys):
    words = ("img2img", run, pictures, "--batch-size", "1")
    call(*words, "--out", tmp_path / "whole.npz")
    as_pictures = batches.as_pictures

    def two(found, first):
        monkeypatch.setattr("ddpm_jax.cli.uses.as_pictures", as_pictures)
        for _, batch in zip(range(2), as_pictures(found, first), strict=False):
            yield batch
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm_jax.cli.uses.as_pictures", two)
    with pytest.raises(SystemExit):
        call(*words, "--out", tmp_path / "a.npz")
    assert "stopped; the same command goes on" in capsys.readouterr().err
    other = refused(capsys, *words, "--strength", "0.75", "--out", tmp_path / "a.npz")
    assert "(--strength 0.5, now 0.75; table of the sampler" in other
    call(*words, "--out", tmp_path / "a.npz")
    assert "going on after 2 pictures" in capsys.readouterr().out
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--strength", "0"], "--strength must lie in (0, 1], got 0.0"),
        (["--strength", "1.5"], "--strength must lie in (0, 1], got 1.5"),
        (["--strength", "0.1"], "--strength 0.1 of 4 steps is less than one: at least 0.25"),
        (["--label", "3"], "--label is for networks with classes, and this one has none, got 3"),
        (["--sampler", "ddmi"], "unknown sampler 'ddmi'; did you mean 'ddpm'"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_options_that_are_refused(run, pictures, tmp_path, capsys, words, message):
    assert message in refused(capsys, "img2img", run, pictures, *words, "--out", tmp_path / "a.png")
    assert not list(tmp_path.glob("a.png*"))


def test_pictures_that_are_refused(run, pictures, tmp_path, capsys):
    wide, empty = tmp_path / "wide.png", tmp_path / "empty"
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(wide)
    empty.mkdir()
    for place, message in {
        wide: f"{wide} is 12x8 pixels, but the network's images are 8x8; --resize crops and resizes it",
        empty: f"no picture below the folder {empty}",
        tmp_path / "none.png": f"no picture or folder {tmp_path / 'none.png'}",
    }.items():
        assert refused(capsys, "img2img", run, place) == message
    call("img2img", run, wide, "--resize")


def test_colours_become_grey_and_it_is_said(run, tmp_path, capsys):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours).convert("L").save(tmp_path / "b.png")
    for name in "ab":
        call("img2img", run, tmp_path / f"{name}.png", "--out", tmp_path / f"{name}.npz")
    assert "of 1 of 1 pictures the colours become grey" in capsys.readouterr().out
    np.testing.assert_array_equal(images_of(tmp_path / "a.npz"), images_of(tmp_path / "b.npz"))


def test_latents_and_labels_are_refused(monkeypatch):
    """One line each, before anything is computed."""
    latents = trained_of(model=None, params={}, image_shape=(4, 4, 4), first_stage=object())
    with pytest.raises(ValueError, match="denoises latents, and invert is for networks that denoise pictures"):
        batches.check_pixels(latents, "invert")

    classes = trained_of(model=UNet(num_classes=5), params={"conv_in": {"kernel": jnp.zeros((3, 3, 1, 4))}},
                         image_shape=(8, 8, 1))  # fmt: skip
    with pytest.raises(ValueError, match="has 5 classes and none that stands for no class: give --label"):
        batches.checked_label(classes, None)
    with pytest.raises(ValueError, match=r"--label must be one of the network's labels 0 .. 4, got 5"):
        batches.checked_label(classes, 5)
    assert batches.checked_label(classes, 4) == 4
