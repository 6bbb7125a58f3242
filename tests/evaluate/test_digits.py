"""The embedded classifier of digits."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddpm_jax.evaluate import features
from ddpm_jax.interop import layers
from ddpm_jax.models.digits import DigitsNet

SHA256 = "c5ab03fc5f0d39ea007ef574fb0818b87a4df2caa01b754297d933206ea25bc9"


def test_it_knows_the_digits_that_it_was_not_fitted_to():
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)[1347:]
    found = list(features.extract(features.of_name("digits"), [images], ["64", "logits"]))
    logits = np.concatenate([part["logits"] for part in found])
    assert (logits.argmax(axis=1) == labels[1347:]).mean() == 440 / 450
    # A layer that says nothing of some of them would make their features alike.
    hidden = np.concatenate([part["64"] for part in found])
    assert len(np.unique(hidden, axis=0)) == 450


def test_the_embedded_weights_are_whole():
    network = features.of_name("digits")
    assert network.sha256 == SHA256
    wanted = layers.param_shapes(DigitsNet(), jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    assert {path: leaf.shape for path, leaf in layers._flatten(network.params).items()} == wanted


def test_other_pictures_are_refused():
    for shape in ((2, 8, 8, 3), (2, 16, 16, 1)):
        with pytest.raises(ValueError, match=f"of pictures of 8 x 8 x 1, got {' x '.join(map(str, shape[1:]))}"):
            list(features.extract(features.of_name("digits"), [np.zeros(shape, np.uint8)], ["64"]))
