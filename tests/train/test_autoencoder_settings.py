"""Every setting of what a first stage minimizes changes what is learned in two steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config import defaults
from ddpm_jax.config.first_stage import AdversaryConfig, ReconstructionConfig
from ddpm_jax.config.networks import FSQConfig, KLConfig, VQConfig
from ddpm_jax.config.run import Config
from ddpm_jax.data.records import from_arrays
from ddpm_jax.train import task
from ddpm_jax.train.tasks import autoencoder, perceptual
from tests.first_stage.small import small_halves  # noqa: F401

pytestmark = pytest.mark.usefixtures("optax_promotes", "small_halves")
SHAPE = (16, 16, 1)
SOURCE = from_arrays("mine", {"image": np.random.RandomState(3).randint(0, 256, (4, *SHAPE)).astype(np.uint8)})
SMALL = {"channels": 4, "channel_multipliers": (1, 2), "num_groups": 2}
ADVERSARY = AdversaryConfig(loss="hinge", start=0, channels=4, num_layers=1)
PERCEPTUAL = ReconstructionConfig(perceptual="efficientnet")
BASES = {
    "kl": Config(task="autoencoder", model=KLConfig(**SMALL)),
    "vq": Config(task="autoencoder", model=VQConfig(**SMALL, num_codes=8)),
    "learned": Config(task="autoencoder", model=VQConfig(**SMALL, num_codes=8, codebook="gradient")),
    "fsq": Config(task="autoencoder", model=FSQConfig(**SMALL)),
    "adversary": Config(task="autoencoder", model=KLConfig(**SMALL), adversary=ADVERSARY),
    "perceptual": Config(task="autoencoder", model=KLConfig(**SMALL), reconstruction=PERCEPTUAL),
}
SETTINGS = [
    ("kl", "model", "kl_weight", 1.0),
    ("kl", "model", "latent_channels", 2),
    ("kl", "reconstruction", "pixel", "l2"),
    ("vq", "model", "codebook", "gradient"),
    ("vq", "model", "codebook_decay", 0.5),
    ("vq", "model", "commitment", 20.0),
    ("vq", "model", "codebook_weight", 30.0),
    ("vq", "model", "num_codes", 6),
    ("learned", "model", "beta_on", "codebook"),
    ("fsq", "model", "levels", (3, 3, 3, 3)),
    ("adversary", "adversary", "loss", "vanilla"),
    ("adversary", "adversary", "start", 1),
    ("adversary", "adversary", "weight", 0.1),
    ("adversary", "adversary", "adaptive", False),
    ("adversary", "adversary", "gradient_penalty", 10.0),
    ("adversary", "adversary", "channels", 8),
    ("adversary", "adversary", "num_layers", 2),
    ("perceptual", "reconstruction", "perceptual_weight", 3.0),
]


def learned(config):
    """The parameters after two steps, flat."""
    distance = perceptual.Distance(lambda x, y: jnp.abs(x - y).max(axis=(1, 2, 3)), "no weights")
    patch = lambda config: None if config.perceptual is None else distance
    with pytest.MonkeyPatch.context() as context, jax.numpy_dtype_promotion("standard"):
        context.setattr(perceptual, "make", patch)
        made = autoencoder.make(config, print)(defaults.resolved(config, SHAPE), SOURCE, jax.random.key(5))

        @jax.jit
        def step(state):
            batch = {"image": SOURCE.images(range(4))}
            means, said = made.gradient(state, batch, jnp.arange(4, dtype=jnp.uint32), 4)
            return dataclasses.replace(made.update(state, means, said), step=state.step + 1)

        state = jax.jit(lambda: task.init(made, jax.random.key(0)))()
        params = step(step(state)).params
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


of_base = functools.cache(lambda name: learned(BASES[name]))


@pytest.mark.parametrize("base, section, name, value", SETTINGS, ids=lambda each: str(each))
def test_a_setting_matters(base, section, name, value):
    config = BASES[base]
    changed = dataclasses.replace(getattr(config, section), **{name: value})
    found, before = learned(dataclasses.replace(config, **{section: changed})), of_base(base)
    assert np.isfinite(found).all()
    assert found.shape != before.shape or np.abs(found - before).max() > 1e-6


def test_no_setting_is_left_out():
    """Of the reconstruction, the adversary, and what of a network's settings is of its loss."""
    tried = {(section, name) for _, section, name, _ in SETTINGS}
    known = {("reconstruction", item.name) for item in dataclasses.fields(ReconstructionConfig)}
    known |= {("adversary", item.name) for item in dataclasses.fields(AdversaryConfig)}
    known |= {("model", name) for kind in (KLConfig, VQConfig, FSQConfig) for name in kind.of_loss}
    # Which distance, and with which weights: test_perceptual.
    assert known - tried == {("reconstruction", "perceptual"), ("reconstruction", "weights")}
