"""PyTorch and diffusers beside us, where they are installed: pip install -e ".[parity]"."""

import pytest


@pytest.fixture(scope="session")
def torch():
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def theirs(torch):
    module = pytest.importorskip("diffusers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module
