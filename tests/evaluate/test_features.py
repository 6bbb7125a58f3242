"""Features of many pictures: the same bits for any batches and devices, of the weights' hash, and what is refused."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluate import features

KERNEL = np.random.RandomState(0).standard_normal((6 * 5 * 3, 7)).astype(np.float32)


def products(images):
    """A tiny network whose sums are long enough to be rounded."""
    return jnp.tanh(images.reshape(images.shape[0], -1).astype(jnp.float32) / 255) @ KERNEL


@pytest.fixture
def tiny():
    return features.of_function("tiny", products, (6, 5, 3))


def pictures(n: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (n, 6, 5, 3)).astype(np.uint8)


def all_of(found):
    return np.concatenate([part["features"] for part in found])


@pytest.mark.parametrize("cut", ([45], [1] * 45, [7, 0, 20, 18], [16, 16, 13]))
@pytest.mark.parametrize("num_devices", (1, 2, 4))
def test_the_same_bits_for_any_batches_and_devices(cut, num_devices, tiny, optimized):
    images = pictures(45)
    batches = np.split(images, np.cumsum(cut)[:-1])
    found = all_of(features.extract(tiny, batches, ["features"], devices=jax.devices()[:num_devices]))
    expected = all_of(features.extract(tiny, [images], ["features"], devices=jax.devices()[:1]))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, products(jnp.asarray(images)), rtol=1e-5, atol=1e-5)


def test_pieces_are_whole_but_for_the_last(tiny):
    sizes = [len(part["features"]) for part in features.extract(tiny, [pictures(3)] * 7, ["features"])]
    assert sizes == [tiny.batch, 21 - tiny.batch]
    assert not list(features.extract(tiny, [], ["features"]))


def test_pictures_that_are_none(tiny):
    for batches, said in (
        ([pictures(2).astype(np.float32)], r"must be uint8 .*got float32\[2, 6, 5, 3\]"),
        ([np.zeros((2, 6, 5, 4), np.uint8)], r"\[2, 6, 5, 4\]"),
        ([pictures(2), pictures(2)[:, :5]], r"one size, got \[6, 5, 3\] and \[5, 5, 3\]"),
    ):
        with pytest.raises(ValueError, match=said):
            list(features.extract(tiny, batches, ["features"]))
    with pytest.raises(ValueError, match="unknown output 'logits'"):
        list(features.extract(tiny, [pictures(2)], ["logits"]))


def test_functions_that_give_no_features():
    with pytest.raises(ValueError, match=r"own must return floats \[B, D\].*got uint8\[2, 6, 5, 3\]"):
        features.of_function("own", lambda images: images, (6, 5, 3))
    one, two = (features.of_function("own", products, (6, 5, 3), version=version) for version in ("1", "2"))
    assert one.sizes == {"features": 7} and one.sha256 != two.sha256


def test_names_that_are_none():
    with pytest.raises(ValueError, match="unknown features 'incption'; did you mean 'inception'"):
        features.of_name("incption")
    with pytest.raises(ValueError, match="unknown inputs 'torch'"):
        features.of_name("inception", inputs="torch")
    with pytest.raises(ValueError, match="'pytorch-fid' is of FID's Inception, not of efficientnet"):
        features.of_name("efficientnet", inputs="pytorch-fid")


def test_the_hash_is_of_names_and_numbers():
    """Written out once more; counters and the order do not matter, a digit, a name and an axis do."""
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(1, np.float32)}
    said = b"a [1]\n" + np.ones(1, "<f4").tobytes() + b"b [2, 3]\n" + np.arange(6, dtype="<f4").tobytes()
    digest = features.weights_sha256(arrays)
    assert digest == hashlib.sha256(said).hexdigest()
    assert digest == features.weights_sha256({"a": arrays["a"], "b": arrays["b"], "n.num_batches_tracked": np.array(3)})
    for other in ({"b": arrays["b"] + np.float32(1e-6)}, {"b": arrays["b"].T}, {"c": arrays["b"]}):
        assert digest != features.weights_sha256({"a": arrays["a"]} | other)


def test_grey_pictures_are_colours_that_are_alike():
    grey = jnp.arange(12, dtype=jnp.uint8).reshape(1, 3, 4, 1)
    np.testing.assert_array_equal(features.colours(grey), np.repeat(grey, 3, axis=-1))
