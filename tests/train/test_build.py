import dataclasses
import runpy
from pathlib import Path

import jax
import pytest

from ddpm_jax import build
from ddpm_jax.interop import openai
from ddpm_jax.interop.openai.published import CONFIGS

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.mark.parametrize(
    "name, checkpoint, size, heights, parameters",
    [
        ("iddpm_cifar10", "cifar10_uncond_50M_500K", 32, {16, 8}, 52_546_438),
        ("iddpm_imagenet64", "imagenet64_uncond_100M_1500K", 64, {16, 8}, 121_063_942),
        ("adm_imagenet256", "256x256_diffusion_uncond", 256, {32, 16, 8}, 552_814_086),
    ],
)
def test_experiments_train_the_networks_of_the_published_checkpoints(name, checkpoint, size, heights, parameters):
    config = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["config"]
    model = build.make_model(config, (size, size, 3))
    published = openai.unet_from_config(CONFIGS[checkpoint])
    # Attention is written as heights here and as factors there.
    assert {size // factor for factor in published.attention_factors} == set(model.attention_resolutions) == heights
    assert (
        dataclasses.replace(published, attention_resolutions=model.attention_resolutions, attention_factors=None)
        == model
    )
    leaves = jax.tree.leaves(build.params_template(model, (size, size, 3)))
    assert sum(leaf.size for leaf in leaves) == parameters
