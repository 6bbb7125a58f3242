"""A condition in training: dropped by each example's own coin, and nothing that the loss or the loop must know."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import build, conditions, schedules, timesteps
from ddpm_jax.config.run import ObjectiveConfig
from ddpm_jax.models import UNet
from ddpm_jax.train import task
from ddpm_jax.train.tasks.diffusion import Diffusion

CLASSES, B = 3, 8


class Class(NamedTuple):
    """A label, and CLASSES for none; or its square as a number, under another name."""

    name: str = "y"
    reads: tuple[str, ...] = ("label",)

    def given(self, record, key):
        return {self.name: record["label"]}

    def nothing(self, conditioning):
        return conditioning | {self.name: jnp.full_like(conditioning[self.name], CLASSES)}


class Noisy(Class):
    """A number that is drawn anew for each example."""

    def given(self, record, key):
        return {self.name: jax.random.normal(key)}


def keys(n=B):
    return jax.vmap(lambda b: jax.random.fold_in(jax.random.key(1), b))(jnp.arange(n))


LABELS = {"label": jnp.arange(B, dtype=jnp.int32) % CLASSES}


def test_each_example_drops_its_condition_by_its_own_coin():
    """Frequency p within 5 standard errors; examples agree in any batch; 0 and 1 are never and always."""
    n, p = 4000, 0.3
    labels = {"label": jnp.zeros(n, jnp.int32)}
    dropped = np.asarray(conditions.conditioning(Class(), labels, keys(n), p)["y"]) == CLASSES
    assert abs(dropped.mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    part = conditions.conditioning(Class(), {"label": labels["label"][7:20]}, keys(n)[7:20], p)["y"] == CLASSES
    np.testing.assert_array_equal(part, dropped[7:20])
    for p, expected in ((0.0, LABELS["label"]), (1.0, jnp.full(B, CLASSES))):
        np.testing.assert_array_equal(conditions.conditioning(Class(), LABELS, keys(), p)["y"], expected)


def test_two_conditions_are_told_and_dropped_together():
    both = conditions.Both(Class(), Noisy("z"))
    assert both.reads == ("label",)
    told = conditions.conditioning(both, LABELS, keys(), 0.5)
    dropped = np.asarray(told["y"]) == CLASSES
    assert 0 < dropped.sum() < B and len(np.unique(told["z"])) == B - dropped.sum() + 1
    np.testing.assert_array_equal(np.asarray(told["z"]) == CLASSES, dropped)
    with pytest.raises(ValueError, match="two conditions tell the network the same: y"):
        conditions.conditioning(conditions.Both(Class(), Class()), LABELS, keys(), 0.5)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"drop must lie in \[0, 1\], got 1.5"):
        conditions.conditioning(Class(), LABELS, keys(), 1.5)

    class Other(Class):
        def nothing(self, conditioning):
            return {self.name: jnp.float32(0)}

    with pytest.raises(ValueError, match=r"as given is, \{'y': 'int32\[\]'\}, got \{'y': 'float32\[\]'\}"):
        conditions.conditioning(Other(), LABELS, keys(), 0.5)


def diffusion(drop):
    schedule, objective = schedules.linear(10), ObjectiveConfig()
    model = UNet(
        channels=4, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2, out_channels=1,
        num_classes=CLASSES + 1,
    )  # fmt: skip
    return Diffusion(
        model,
        build.make_objective(objective, schedule),
        timesteps.make("uniform", schedule),
        optax.sgd(0.1),
        jax.random.key(0),
        (4, 4, 1),
        condition=Class(),
        drop=drop,
        example={"label": jnp.zeros(1, jnp.int32)},
    )


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_only_what_is_told_learns(drop):
    """The gradient of a class' embedding is zero unless an example of it was told; of the null class', dropped."""
    trained = diffusion(drop)
    assert trained.reads == ("image", "label")
    state = task.init(trained, jax.random.key(2))
    image = jnp.asarray(np.random.RandomState(0).randint(0, 256, (B, 4, 4, 1)), jnp.uint8)
    batch = {"image": image, "label": jnp.zeros(B, jnp.int32)}  # no example of classes 1 and 2
    means, _ = jax.jit(trained.gradient, static_argnums=3)(state, batch, jnp.arange(B, dtype=jnp.uint32), B)
    embedding = next(leaf for leaf in jax.tree.leaves(means.grads) if leaf.shape[:1] == (CLASSES + 1,))
    moves = np.abs(np.asarray(embedding)).sum(1) > 0
    np.testing.assert_array_equal(moves, [drop < 1, False, False, drop > 0])
