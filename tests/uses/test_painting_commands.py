"""inpaint, upscale and film, as a user meets them."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import images, keys, opening, samplers
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import SampleConfig
from ddpm_jax.models import UNet
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.uses import inpainting
from tests.helpers import trained_of
from tests.runs.small import small_run
from tests.uses.common import call, images_of, pixels_of, refused

JUMPS = ("--num-steps", "4", "--jump-length", "1", "--jump-n-sample", "2")


@pytest.fixture
def mask(tmp_path):
    """White in its right half, a grey line in it."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:], pixels[:, 4] = 255, 128
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


# ------------------------------------------------------------------------------------------------------- inpaint


@pytest.mark.parametrize("method", [("repaint", *JUMPS), ("replacement", "--num-steps", "4")], ids=lambda m: m[0])
def test_white_is_painted_anew(run, pictures, mask, tmp_path, method):
    words = ("inpaint", run, pictures, "--mask", mask, "--method", *method)
    for seed in ("0", "1"):
        call(*words, "--seed", seed, "--out", tmp_path / f"{seed}.npz")
    given = np.stack([pixels_of(path) for path in sorted(pictures.rglob("*.png"))])[..., None]
    found, other = (images_of(tmp_path / f"{seed}.npz") for seed in "01")
    np.testing.assert_array_equal(found[:, :, :4], given[:, :, :4])
    assert (found[:, :, 4:] != given[:, :, 4:]).mean() > 0.9
    assert (found[:, :, 4:] != other[:, :, 4:]).mean() > 0.5  # an untrained network's pixels are often clipped


def test_inpaint_is_that_function(run, pictures, mask, tmp_path):
    call("inpaint", run, pictures / "a.png", "--mask", mask, *JUMPS, "--eta", "0.5", "--out", tmp_path / "a.npz")
    trained = opening.open(run, print)
    table, denoiser = inpainting.repaint_preset(trained, 4, jump_length=1, jump_n_sample=2, eta=0.5)
    original = images.to_float(pixels_of(pictures / "a.png")[None, ..., None])
    known = jnp.ones((1, 8, 8, 1)).at[:, :, 4:].set(0)
    expected = inpainting.repaint(denoiser(trained.model_fn()), table, keys.make(0), original, known)
    assert np.abs(images_of(tmp_path / "a.npz").astype(int) - images.to_uint8(expected)).max() <= 1


def test_a_network_that_is_told_the_mask_paints(pictures, mask, tmp_path, capsys):
    """By default as it learned; what is painted follows what is known, and no other method is for it."""
    run = small_run(tmp_path, SampleConfig(sampler="ddim", num_steps=4), 2, ConditionConfig(("mask",), 0.1))
    words = ("inpaint", run, pictures / "a.png", "--mask", mask)
    call(*words, "--out", tmp_path / "a.npz")
    trained, known = opening.open(run, print), jnp.ones((1, 8, 8, 1)).at[:, :, 4:].set(0)
    original = images.to_float(pixels_of(pictures / "a.png")[None, ..., None])
    table, denoiser = trained.default_sampler(4)
    told = jnp.concatenate([original * known, known], axis=-1)
    denoise = denoiser(trained.model_fn(concat=told))
    expected = images.to_uint8(samplers.sample(denoise, table, keys.make(0), original.shape))
    found = images_of(tmp_path / "a.npz").astype(int)
    assert np.abs(found - expected)[:, :, 4:].max() <= 1
    np.testing.assert_array_equal(found[:, :, :4], pixels_of(pictures / "a.png")[None, :, :4, None])
    Image.fromarray(255 - pixels_of(pictures / "a.png")).save(pictures / "a.png")
    call(*words, "--out", tmp_path / "b.npz")
    assert np.abs(found - images_of(tmp_path / "b.npz"))[:, :, 4:].max() > 5
    error = refused(capsys, *words, "--method", "repaint")
    assert error == "the network is told which pixels are known: --method network, got repaint"
    assert "--eta 0.5 is for --method repaint, got network" in refused(capsys, *words, "--eta", "0.5")


def test_masks_that_are_refused(run, pictures, mask, tmp_path, capsys):
    small, black, two = tmp_path / "small.png", tmp_path / "black.png", tmp_path / "two"
    Image.fromarray(np.full((7, 9), 255, np.uint8)).save(small)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(black)
    two.mkdir()
    for name in "ab":
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(two / f"{name}.png")
    for place, message in {
        small: f"{small} is 9x7 pixels, but the network's images are 8x8; --resize crops and resizes it",
        black: f"nothing is white in --mask {black}, and white is what is painted anew",
        two: f"--mask must be one picture, or one for each of 3, got 2 in {two}",
        tmp_path / "none.png": f"no picture or folder {tmp_path / 'none.png'}",
    }.items():
        assert refused(capsys, "inpaint", run, pictures, "--mask", place) == message


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sampler", "ddim"], "--method repaint takes all steps of its own sampler: --sampler ddim is for others"),
        (["--method", "network"], "--method network is for networks that are told the known pixels, such as runs"),
        (["--method", "replacement", "--eta", "0"], "--eta 0.0 is for --method repaint, got replacement"),
        (["--method", "replacement", "--jump-n-sample", "3"], "--jump-n-sample 3 is for --method repaint"),
        (["--jump-length", "0"], "jump_length and num_visits must be at least 1, got 0"),
    ],
)
def test_options_of_the_other_method(run, pictures, mask, capsys, words, message):
    assert message in refused(capsys, "inpaint", run, pictures, "--mask", mask, *words)


def test_a_mask_for_each(run, pictures, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, name in enumerate("abc"):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[i] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
    call("inpaint", run, pictures, "--mask", folder, *JUMPS, "--out", tmp_path / "a.npz")
    given = np.stack([pixels_of(path) for path in sorted(pictures.rglob("*.png"))])[..., None]
    changed = (images_of(tmp_path / "a.npz") != given).any(axis=(2, 3))
    np.testing.assert_array_equal(changed, np.eye(3, 8, dtype=bool))


# ------------------------------------------------------------------------------------------------------- upscale


@pytest.fixture
def enlarging(monkeypatch):
    """A network that sees a smaller picture, in the place of what is opened."""
    model = UNet(channels=4, channel_multipliers=(1,), attention_resolutions=(), out_channels=1, num_groups=2)
    x, low = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 4, 4, 1))
    import jax

    params = jax.device_get(model.init(jax.random.key(0), x, jnp.zeros(1), low_res=low)["params"])
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape), params
    )
    trained = trained_of(model=model, params=params, image_shape=(8, 8, 1), num_steps=3)
    monkeypatch.setattr("ddpm_jax.opening.open", lambda *_: trained)
    return trained


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_upscale(enlarging, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
    call("upscale", "net", save(tmp_path / "a.png", small), "--out", "a.npz")
    table = make_table("ddpm", enlarging.schedule, 3, variance=enlarging.variance)
    low_res = images.to_float(small[None, ..., None])
    denoise = enlarging.denoiser(enlarging.model_fn(low_res=low_res))
    expected = images.to_uint8(samplers.sample(denoise, table, keys.make(0), (1, 8, 8, 1)))
    assert np.abs(images_of("a.npz").astype(int) - expected).max() <= 1
    call("upscale", "net", save(tmp_path / "b.png", 255 - small), "--out", "b.npz")
    assert np.abs(images_of("b.npz").astype(int) - expected).max() > 8


def test_what_upscale_refuses(enlarging, run, tmp_path, capsys):
    for size, message in {
        (9, 9): "is 9x9 pixels: allowed is what the network can make 8x8 of, smaller and of the same proportions",
        (4, 2): "is 2x4 pixels: allowed is what the network can make 8x8 of",
    }.items():
        place = save(tmp_path / "a.png", np.zeros(size, np.uint8))
        assert message in refused(capsys, "upscale", "net", place)
    (tmp_path / "two").mkdir()
    for n in (2, 4):
        save(tmp_path / "two" / f"{n}.png", np.zeros((n, n), np.uint8))
    message = refused(capsys, "upscale", "net", tmp_path / "two")
    assert "4.png is 4x4 pixels, but" in message and "2.png is 2x2" in message
    assert "img2img does not give" in refused(capsys, "img2img", "net", tmp_path / "two" / "2.png")


def test_a_run_does_not_upscale(run, pictures, capsys):
    assert "got one without" in refused(capsys, "upscale", run, pictures / "a.png")


# ---------------------------------------------------------------------------------------------------------- film


def test_film(run, tmp_path):
    call("film", run, "-n", "2", "--columns", "3", "--out", tmp_path / "a.png")
    shown = pixels_of(tmp_path / "a.png")
    assert shown.shape == (2 * 49 + 1, 3 * 49 + 1)
    call("sample", run, "-n", "2", "--out", tmp_path / "a.npz")
    drawn = images_of(tmp_path / "a.npz")[..., 0]
    for i in range(2):
        last = shown[1 + 49 * i : 49 * (i + 1) : 6, 2 * 49 + 1 : 3 * 49 + 1 : 6][:8, :8]
        assert np.abs(last.astype(int) - drawn[i]).max() <= 1
    call("film", run, "-n", "2", "--out", tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 4


def test_what_film_refuses(run, tmp_path, capsys):
    assert "--columns must lie in [1, 4]" in refused(capsys, "film", run, "--columns", "5")
    assert "--num-images must be at least 1, got 0" in refused(capsys, "film", run, "-n", "0")
    (tmp_path / "a.gif").touch()
    assert "a.gif is there already" in refused(capsys, "film", run, "--out", tmp_path / "a.gif")
    assert "unknown ending '.npz'" in refused(capsys, "film", run, "--out", "a.npz")
