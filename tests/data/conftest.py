import pytest

from ddpm_jax import data
from ddpm_jax.data import records


@pytest.fixture(params=["in memory", "lazily"])
def bound(request, monkeypatch):
    """A set is read in both ways."""
    if request.param == "lazily":
        monkeypatch.setattr(records, "MEMORY_BOUND", 0)


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    """A TFDS data directory with the digits."""
    directory = tmp_path_factory.mktemp("tfds")
    data.load("digits", data_dir=directory)
    return directory
