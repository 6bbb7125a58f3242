"""A small run, and pictures for it."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.config.run import SampleConfig
from tests.runs.small import small_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("home"), SampleConfig(sampler="ddim", num_steps=4), num_steps=2)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def pictures(tmp_path):
    """A folder with three grey pictures of 8 x 8; one of them in a folder below."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    for name, image in zip(("a.png", "b.png", "more/c.png"), pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder
