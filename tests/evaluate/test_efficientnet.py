"""EfficientNet-Lite0 beside efficientnet-lite-pytorch 0.1.0, whose numbers for weights of a recipe are written here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluate import features
from ddpm_jax.interop.features.efficientnet import BLOCK, LAYERS, PACKAGE, efficientnet_to_params
from ddpm_jax.models.efficientnet import STAGES, EfficientNetLite0, efficientnet_input
from tests.evaluate import recipe

X = np.random.RandomState(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
FEATURES = (4.1469502, 1.2015002, 1.4855001, 3.5584939, 0.6495806, 0.0, 3.0746741)
SHA256 = "eca8bffbd1f6a0029be5365279de989876049738825698ffdb528c90d44a23ec"
LOGITS = (-3.4853444, -1.5874431, 1.6179501, -4.1534872, 0.6403676)


def weights_of(seed: int = 1) -> dict[str, np.ndarray]:
    """By the package's names."""
    shapes: dict[str, tuple[int, ...]] = {"_conv_stem": (32, 3, 3, 3), "_bn0": (32,)}
    inputs = 32
    depths = [stage._replace(stride=0) for stage in STAGES for _ in range(stage.repeats)]
    for i, stage in enumerate(depths):
        width = stage.expansion * inputs
        wanted = {"expand": (width, inputs, 1, 1), "depthwise": (width, 1, stage.kernel, stage.kernel)}
        wanted["project"] = (stage.features, width, 1, 1)
        for ours, (conv, norm) in BLOCK.items():
            if (i, ours) != (0, "expand"):
                shapes |= {f"_blocks.{i}.{conv}": wanted[ours], f"_blocks.{i}.{norm}": wanted[ours][:1]}
        inputs = stage.features
    shapes |= {LAYERS["head"][0]: (1280, 320, 1, 1), LAYERS["head"][1]: (1280,)}
    parts = ("weight", "bias", "running_mean", "running_var")
    found = {
        f"{name}.{part}": recipe.tensor(f"{name}.{part}", shape, seed)
        for name, shape in shapes.items()
        for part in (parts if len(shape) == 1 else parts[:1])
    }
    for part, shape in (("weight", (1000, 1280)), ("bias", (1000,))):
        found[f"_fc.{part}"] = recipe.tensor(f"_fc.{part}", shape, seed)
    return found


def test_features_and_logits_of_the_original():
    params = efficientnet_to_params(weights_of())
    found = jax.jit(lambda params, x: EfficientNetLite0().apply({"params": params}, x))(params, X)
    np.testing.assert_allclose(found["1280"][0, ::213], FEATURES, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["logits"][0, ::200], LOGITS, rtol=0, atol=1e-4)
    assert {name: array.shape[1] for name, array in found.items()} == {"1280": 1280, "logits": 1000}


def test_what_it_says_of_its_input():
    """Grey of 127 is 0, whatever the size: to 2e-5, because JAX's weights of four pixels sum to one in float32."""
    for size in (20, 300):
        image = jnp.full((1, size, size, 3), 127, jnp.uint8)
        np.testing.assert_allclose(efficientnet_input(image), np.zeros((1, 224, 224, 3)), atol=3e-5)
    np.testing.assert_allclose(efficientnet_input(jnp.full((1, 8, 9, 3), 255, jnp.uint8)), 1, rtol=3e-5)


def test_the_weights_of_the_package_know_a_flower():
    """scikit-learn's picture of a dahlia: of ImageNet's classes 985 is the daisy."""
    pytest.importorskip(PACKAGE)
    from sklearn.datasets import load_sample_images

    picture = load_sample_images().images[1][:424, 100:524]
    network = features.of_name("efficientnet")
    assert network.sha256 == SHA256
    (found,) = features.extract(dataclasses.replace(network, batch=1), [picture[None]], ["logits"])
    assert found["logits"].argmax() == 985


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ddpm-jax\[eval\]'"):
        features.of_name("efficientnet")


def test_weights_that_do_not_fit():
    weights = weights_of()
    del weights["_blocks.3._expand_conv.weight"]
    with pytest.raises(ValueError, match=r"missing _blocks\.3\._expand_conv\.weight$"):
        features.of_efficientnet_weights(weights)
