"""Each condition: what is told, what nothing is, and which networks take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, conditions, images
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import Config, DiTConfig

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
KEY = jax.random.key(0)


def test_a_class_and_its_null_label():
    label = conditions.ClassLabel(10)
    told = label.given({"label": jnp.int32(3)}, KEY)
    assert told["y"] == 3 and label.nothing(told)["y"] == 10
    with pytest.raises(ValueError, match=r"trained with condition\.drop 0"):
        conditions.ClassLabel(10, null_label=False).nothing(told)


def test_low_resolution_is_the_mean_of_pixels():
    """Block by block in float64; the noise has the level that is drawn, uniform up to the largest."""
    found = conditions.LowRes(2).given({"image": jnp.asarray(IMAGE)}, KEY)["low_res"]
    expected = np.array([[(IMAGE[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] / 127.5 - 1).mean((0, 1)) for j in range(4)]
                         for i in range(3)])  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-6)
    grey = jnp.full((64, 64, 1), 128, jnp.uint8)
    keys = jax.random.split(KEY, 200)
    noisy = jax.vmap(lambda key: conditions.LowRes(2, noise=0.4).given({"image": grey}, key)["low_res"])(keys)
    levels = np.std(np.asarray(noisy), axis=(1, 2, 3))
    assert levels.max() < 0.42 and abs(levels.mean() - 0.2) < 5 * 0.4 / np.sqrt(12 * 200)
    with pytest.raises(ValueError, match="low_res_factor must divide height and width, 6 x 8, got 4"):
        conditions.LowRes(4).given({"image": jnp.asarray(IMAGE)}, KEY)


def test_a_mask_hides_a_rectangle():
    """What is known is the image there; the hidden rows and columns are an interval, each pair of edges as likely."""
    keys = jax.random.split(KEY, 4000)
    told = jax.vmap(lambda key: conditions.Mask().given({"image": jnp.asarray(IMAGE)}, key)["concat"])(keys)
    mask = np.asarray(told[..., 3:])
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(told[..., :3], mask * np.asarray(images.to_float(IMAGE)))
    hidden = mask[..., 0] == 0
    rows, columns = hidden.any(2), hidden.any(1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])
    runs = np.diff(np.pad(rows, ((0, 0), (1, 1))).astype(int), axis=1)
    assert ((runs == 1).sum(1) == 1).all()  # one interval, never empty
    # Of 7 edges there are 21 pairs; 6 - n + 1 of them are n apart.
    counts = np.bincount(rows.sum(1), minlength=7)[1:]
    expected = np.array([6, 5, 4, 3, 2, 1]) / 21 * len(keys)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all(), counts
    assert (conditions.Mask().nothing({"concat": told})["concat"] == 0).all()


def test_texts_and_embeddings():
    record = {"tokens": jnp.array([5, 6, 9, 9]), "token_mask": jnp.array([True, True, False, False])}
    text = conditions.Text(padding=9)
    told = text.given(record, KEY)
    nothing = text.nothing(told)
    assert told["tokens"].tolist() == [5, 6, 9, 9] and nothing["tokens"].tolist() == [9] * 4
    assert not nothing["mask"].any() and told["mask"].any()
    vector = conditions.Embedding("clip", "y").given({"clip": jnp.ones(4)}, KEY)
    assert conditions.Embedding("clip", "y").nothing(vector)["y"].tolist() == [0] * 4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"drop": 0.1}, r"condition.drop must lie in \[0, 1\) and is for a --condition, got 0.1 with none"),
        ({"names": ("class",), "drop": 1.0}, "got 1.0 with class"),
        ({"names": ("class", "class")}, "different ones, got class class"),
        ({"names": ("class",), "low_res_factor": 2}, "condition.low_res_factor is for --condition low-res"),
        ({"names": ("low-res",), "low_res_factor": 1}, "condition.low_res_factor must be at least 2, got 1"),
        ({"names": ("text",)}, "condition.names"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConditionConfig(**settings)


def test_networks_that_cannot_take_it():
    config = Config(model=DiTConfig(), condition=ConditionConfig(("class", "mask")))
    with pytest.raises(ValueError, match=r"--model dit does not take --condition mask \(it takes class\)"):
        build.build(config, (8, 8, 1), ("a", "b"))
    with pytest.raises(ValueError, match="--condition class needs labels, and these data have none"):
        build.build(Config(condition=ConditionConfig(("class",))), (8, 8, 1))


@pytest.mark.parametrize("model", ["unet", "dit", "uvit"])
@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_every_network_has_a_row_for_each_class_and_for_none(model, drop):
    from ddpm_jax.config.networks import NETWORKS

    built = build.build(
        Config(model=NETWORKS[model](), condition=ConditionConfig(("class",), drop)), (8, 8, 1), ("a", "b")
    )
    rows = [leaf.shape[0] for path, leaf in jax.tree_util.tree_leaves_with_path(built.params)
            if any(word in jax.tree_util.keystr(path) for word in ("class_embedding", "label"))]  # fmt: skip
    assert rows == [3 if drop else 2]
