import dataclasses
import runpy
from pathlib import Path

import jax
import pytest

from ddpm_jax.interop import openai
from ddpm_jax.interop.openai_published import CONFIGS
from ddpm_jax.train import build

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.mark.parametrize(
    "name, checkpoint, size, parameters",
    [
        ("iddpm_cifar10", "cifar10_uncond_50M_500K", 32, 52_546_438),
        ("iddpm_imagenet64", "imagenet64_uncond_100M_1500K", 64, 121_063_942),
    ],
)
def test_experiments_train_the_networks_of_the_published_checkpoints(name, checkpoint, size, parameters):
    config = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["config"]
    model = build.make_model(config, (size, size, 3))
    published = openai.unet_from_config(CONFIGS[checkpoint])
    # Attention at heights 16 and 8, written as heights here and as factors there.
    heights = tuple(size // factor for factor in published.attention_factors)
    assert set(heights) == set(model.attention_resolutions) == {16, 8}
    assert (
        dataclasses.replace(published, attention_resolutions=model.attention_resolutions, attention_factors=None)
        == model
    )
    leaves = jax.tree.leaves(build.params_template(model, (size, size, 3)))
    assert sum(leaf.size for leaf in leaves) == parameters
