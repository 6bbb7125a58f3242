"""Shared test setup: strict promotion, several CPU devices, golden files."""

import os

# Tests of the sharded step need several devices; the flag must be set before JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import gc
import importlib
import tempfile
from pathlib import Path

# Many tests start the same small run again, some of them in a process of their own: compile it once, and prepare the
# digits once. The workers of xdist, and the processes that tests start, inherit the directory. TFDS reads its own when
# it is imported.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="ddpm_jax_tests_")
    os.environ["TFDS_DATA_DIR"] = f"{CACHE.name}/tfds"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{CACHE.name}/compiled")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Most of the time goes into compiling what then runs once.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

HERE = Path(__file__).parent


def pytest_collection_finish():
    """Tracing makes many small objects: looking through all modules for garbage took a fifth of its time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def optimized():
    """Compile as users do, where bits are asked for that two programs share only then."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def optax_promotes():
    """optax multiplies its int32 count by floats, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def highest():
    """float32 matrix products and convolutions without TF32 or bf16 shortcuts."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def shared_golden():
    """Golden files too large for the repository; a test that needs them skips where they are absent."""
    path = HERE.parent.parent / "shared" / "golden"
    if not path.is_dir():
        pytest.skip(f"golden networks are not at {path}")
    return path


@pytest.fixture(scope="module")
def libraries():
    """PyTorch and diffusers, where they are installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    return importlib.import_module("ddpm_jax.tools.parity.theirs").libraries()
