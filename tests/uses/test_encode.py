"""Encoded images: what lies in a folder of latents, how it is read, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data, images
from ddpm_jax.data.records import from_arrays, texts
from ddpm_jax.models import AutoencoderKL, VQModel
from ddpm_jax.models.quantizers import FSQModel
from ddpm_jax.runs import first_stage_weights
from ddpm_jax.trained import FirstStage
from ddpm_jax.uses.encode import encode

pytestmark = pytest.mark.filterwarnings("error")
SIZE = {"channels": 4, "channel_multipliers": (1, 2), "num_res_blocks": 1, "num_groups": 2, "out_channels": 1}
RNG = np.random.RandomState(4)
PIXELS = RNG.randint(0, 256, (7, 4, 4, 1)).astype(np.uint8)
SOURCE = from_arrays(
    "mine",
    {"image": PIXELS, "label": np.arange(7, dtype=np.int32) % 2, "caption": texts([f"picture {i}" for i in range(7)])},
    ("cat", "dog"),
)
KINDS = {
    "kl": (AutoencoderKL, {"latent_channels": 3, "z_channels": 3}),
    "vq": (VQModel, {"latent_channels": 2, "z_channels": 2, "num_codes": 6}),
    "fsq": (FSQModel, {"latent_channels": 2, "z_channels": 2, "levels": (4, 3)}),
}


@pytest.fixture(scope="module", params=KINDS)
def stage(request):
    make, options = KINDS[request.param]
    model = make(**SIZE, **options)
    params = model.init(jax.random.key(1), jnp.zeros((1, 4, 4, 1)))["params"]
    return FirstStage(model, jax.device_get(params), 0.7)


@pytest.fixture(scope="module")
def folder(stage, tmp_path_factory):
    found = tmp_path_factory.mktemp("encoded") / "latents"
    encode(stage, SOURCE, found, batch_size=3, scaling="one")
    return found


def test_latents_are_what_the_autoencoder_says_of_each_image(stage, folder):
    source = data.load(str(folder))
    said = stage.posterior(images.to_float(jnp.asarray(PIXELS)))
    record = source.read(np.arange(7))
    mean, *rest = said if isinstance(stage.model, AutoencoderKL) else (said,)
    np.testing.assert_allclose(record["latent"], mean, atol=1e-5)
    assert ("log_variance" in record) == bool(rest)
    for log_variance in rest:
        np.testing.assert_allclose(record["log_variance"], log_variance, atol=1e-5)
    np.testing.assert_array_equal(record["label"], SOURCE.arrays["label"])
    assert list(record["caption"]) == list(SOURCE.arrays["caption"]) and source.classes == ("cat", "dog")
    assert source.image_shape == mean.shape[1:] and data.describe(source).startswith(f"{folder}: 7 latents of 2 x 2 x")


def test_the_autoencoder_is_in_the_folder_bit_for_bit(stage, folder):
    found = first_stage_weights.read(folder, json.loads((folder / "latents.json").read_text())["weights"])
    z = RNG.randn(2, 2, 2, stage.model.latent_channels).astype(np.float32)
    np.testing.assert_array_equal(found.decode(z), stage.decode(z))
    assert found.model == stage.model and found.scale == 0.7


def test_channels_become_ones_of_mean_0_and_variance_1(stage, tmp_path):
    """In expectation over the posterior's draws, and over all images."""
    said = encode(stage, SOURCE, tmp_path / "z", batch_size=7, scaling="channels")
    found, record = first_stage_weights.read(tmp_path / "z", said.weights), data.load(str(tmp_path / "z")).arrays
    z = np.float64(found.scaled(record["latent"]))
    scale = np.asarray(found.scale)
    spread = np.exp(np.float64(record["log_variance"])) * scale**2 if "log_variance" in record else 0 * z
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose((z**2 + spread).mean((0, 1, 2)), 1, atol=1e-5)
    x = images.to_float(jnp.asarray(PIXELS))
    expected = stage.model.apply({"params": stage.params}, record["latent"], method="decode")
    np.testing.assert_allclose(found.decode(found.scaled(record["latent"])), expected, atol=1e-4)
    np.testing.assert_allclose(found.encode(x), z, atol=1e-4)


def test_a_draw_is_each_images_own(stage):
    """Of a posterior by the keys given, one for each; the mode without; no draw where a codebook quantizes."""
    x, key = images.to_float(jnp.asarray(PIXELS)), jax.random.key(3)
    z = stage.encode(x, key)
    np.testing.assert_allclose(stage.encode(x[:3], key), z[:3], atol=1e-5)
    found = stage.posterior(x)
    if not isinstance(stage.model, AutoencoderKL):
        np.testing.assert_array_equal(z, 0.7 * found)
        return
    eps = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), found.mean.shape[1:]) for i in range(7)])
    np.testing.assert_allclose(z, 0.7 * (found.mean + jnp.exp(found.log_variance / 2) * eps), atol=1e-5)
    np.testing.assert_array_equal(stage.encode(x), 0.7 * found.mean)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_folder_that_is_not_whole_is_refused(copy):
    for path in sorted(copy.iterdir()):
        if path.name == "latents.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{path.name} is not what encode has written"):
            data.load(str(copy))
        path.unlink()
        with pytest.raises(ValueError, match=f"copy lacks {path.name}.*: it is not whole"):
            data.load(str(copy))
        path.write_bytes(content)
    data.load(str(copy))
    (copy / "latents.json").write_text("{}")
    with pytest.raises(ValueError, match=r"latents.json is not what encode has written"):
        data.load(str(copy))


def test_what_is_of_images_is_refused(folder):
    for options, message in (
        ({"image_size": 8}, "--data.image-size 8 is for images, and .* holds latents of some"),
        ({"transparency": "black"}, "--data.transparency 'black' is for"),
        ({"labels": "none"}, "holds latents, and --data.labels none reads images only"),
        ({"split": "test"}, "has no split 'test'"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(str(folder), **options)
    with pytest.raises(ValueError, match="holds latents, and images are needed here"):
        data.load(str(folder)).images([0])


def test_nothing_is_replaced_and_nothing_half_written(stage, folder, tmp_path):
    with pytest.raises(ValueError, match="is there already"):
        encode(stage, SOURCE, folder, batch_size=3, scaling="one")
    params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), stage.params)
    with pytest.raises(FloatingPointError, match="latents of the images 0 to 2 are not finite"):
        encode(FirstStage(stage.model, params, 1.0), SOURCE, tmp_path / "z", batch_size=3, scaling="one")
    assert not (tmp_path / "z").exists()
    for shape, message in (
        ((2, 5, 4, 1), "H and W must be divisible by 2, got 5 x 4"),
        ((2, 4, 4, 3), "the autoencoder encodes images of 1 channels, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            other = from_arrays("other", {"image": np.zeros(shape, np.uint8)})
            encode(stage, other, tmp_path / "z", batch_size=3, scaling="one")
    params = jax.tree.map(np.zeros_like, stage.params)
    if not isinstance(stage.model, AutoencoderKL):  # whose posterior has a variance
        with pytest.raises(ValueError, match="--scaling channels: channel 0 of the latents is the same everywhere"):
            encode(FirstStage(stage.model, params, 1.0), SOURCE, tmp_path / "z", batch_size=3, scaling="channels")
    assert list(tmp_path.iterdir()) == []
