"""invert and interpolate, as a user meets them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import images, opening, samplers
from tests.uses.common import call, images_of, pixels_of, refused

# -------------------------------------------------------------------------------------------------------- invert


def test_invert_finds_the_noise(run, pictures, tmp_path, capsys):
    """What is written makes the pictures, by the sampler alone."""
    call("invert", run, pictures, "--batch-size", "2", "--out", tmp_path / "a.npz")
    assert "largest error of the way there and back" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as file:
        found = {name: file[name] for name in file.files}
    given = np.stack([pixels_of(path) for path in sorted(pictures.rglob("*.png"))])[..., None]
    np.testing.assert_array_equal(found["images"], given)
    np.testing.assert_array_equal(found["reconstructions"], given)
    trained = opening.open(run, print)
    table, denoiser = trained.default_sampler(4)
    x_T = jnp.asarray(found["x_T"])
    again = jax.jit(
        lambda x_T: samplers.sample(denoiser(trained.model_fn()), table, jax.random.key(0), x_T.shape, x_T=x_T)
    )(x_T)
    np.testing.assert_array_equal(images.to_uint8(again), given)


def test_invert_as_a_picture(run, pictures, tmp_path, capsys):
    call("invert", run, pictures, "--out", tmp_path / "a.png")
    shown = pixels_of(tmp_path / "a.png")
    assert shown.shape == (3 * 49 + 1, 3 * 49 + 1)
    small = pixels_of(pictures / "a.png")
    for left in (1, 2 * 49 + 1):
        np.testing.assert_array_equal(shown[1:48:6, left : left + 48 : 6], small)
    assert "a.png is there already" in refused(capsys, "invert", run, pictures, "--out", tmp_path / "a.png")


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--sampler", "ddpm"],
            "a sampler that draws noise cannot be inverted: take a deterministic one, such as ddim",
        ),
        (["--sampler", "unipc"], "more images than X cannot be inverted row by row"),
        (["--out", "a.jpg"], "unknown ending '.jpg' of --out a.jpg (known: .npz, .png)"),
    ],
)
def test_inversions_that_are_refused(run, pictures, capsys, words, message):
    assert message in refused(capsys, "invert", run, pictures, *words)


# --------------------------------------------------------------------------------------------------- interpolate


def test_interpolate_between_pictures(run, pictures, tmp_path):
    a, b = pictures / "a.png", pictures / "b.png"
    call("interpolate", run, "--between", a, b, "--steps", "5", "--batch-size", "2", "--out", tmp_path / "a.npz")
    found = images_of(tmp_path / "a.npz")
    assert len(found) == 5
    np.testing.assert_array_equal(found[0, ..., 0], pixels_of(a))
    np.testing.assert_array_equal(found[-1, ..., 0], pixels_of(b))
    assert all(len(np.unique(part)) > 2 for part in found[1:-1])


def test_interpolate_between_seeds(run, tmp_path):
    """The ends are what sample draws first of each."""
    call("interpolate", run, "--seeds", "3", "8", "--steps", "3", "--out", tmp_path / "a.npz")
    found = images_of(tmp_path / "a.npz")
    for seed, end in ((3, found[0]), (8, found[-1])):
        call("sample", run, "-n", "1", "--seed", seed, "--out", tmp_path / f"{seed}.npz")
        assert np.abs(end.astype(int) - images_of(tmp_path / f"{seed}.npz")[0]).max() <= 1


def test_interpolate_makes_one_line(run, pictures):
    call("interpolate", run, "--between", pictures / "a.png", pictures / "b.png", "--steps", "3")
    assert pixels_of(run / "interpolate_a_b.png").shape == (50, 3 * 49 + 1)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give either --between A.png B.png or --seeds A B"),
        (["--seeds", "0", "1", "--between", "a.png", "b.png"], "give either --between A.png B.png or --seeds A B"),
        (["--seeds", "0", "1", "--steps", "1"], "--steps must be at least 2, got 1"),
        (["--seeds", "0", "-1"], "--seeds must be at least 0, got -1"),
        (["--seeds", "0", "1", "--resize"], "--resize is for the pictures of --between"),
        (["--seeds", "0", "1", "--sampler", "ddpm"], "a sampler must not draw noise"),
        (["--between", "PICTURES", "PICTURES"], "--between is two pictures, and PICTURES holds 3"),
    ],
)
def test_ways_that_are_refused(run, pictures, capsys, words, message):
    words = [word.replace("PICTURES", str(pictures)) for word in words]
    assert message.replace("PICTURES", str(pictures)) in refused(capsys, "interpolate", run, *words)


def test_a_picture_of_another_size(run, pictures, tmp_path, capsys):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "b.png")
    words = ("interpolate", run, "--between", pictures / "a.png", tmp_path / "b.png")
    assert "is 9x9 pixels, but the network's images are 8x8; --resize" in refused(capsys, *words)
