"""Shared test setup: strict promotion, several CPU devices, golden files."""

import os

# Tests of the sharded step need several devices; the flag must be set before JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import functools
import gc
import importlib
import itertools
import signal
import tempfile
import zlib
from pathlib import Path

# A shell tells what it starts in the background to ignore Ctrl-C, and so would all that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


NOT_EVERYWHERE = {"libraries", "torch", "diffusers"}
"""Fixtures that skip where a library is absent."""


def pytest_addoption(parser):
    parser.addoption(
        "--part",
        metavar="K/N",
        help="of the tests of one function with parameters every N-th from the K-th on, of those without the ones in "
        "about every N-th file, so that N runs on different versions share them; all that a missing library would skip",
    )


def pytest_collection_modifyitems(config, items):
    if (part := config.getoption("--part")) is None:
        return
    k, n = map(int, part.split("/"))
    assert 1 <= k <= n, f"--part must be K/N with 1 <= K <= N, got {part}"
    kept, left = [], []
    skipping = functools.cache(lambda path: "importorskip" in path.read_text())
    for _, group in itertools.groupby(items, lambda item: item.nodeid.split("[")[0]):
        tests = list(group)
        whole = skipping(tests[0].path) or NOT_EVERYWHERE & set(tests[0].fixturenames)
        # By its name, so that a test stays where it was when there are more files.
        first = zlib.crc32(tests[0].nodeid.split("::")[0].encode()) if len(tests) == 1 else 0
        for number, item in enumerate(tests, first):
            (kept if whole or number % n == k - 1 else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_collection_finish():
    """Tracing makes many small objects: looking through all modules for garbage took a fifth of its time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _compiling(without_most_optimizations: bool):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", without_most_optimizations)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def optimized():
    """Compile as users do, where bits are asked for that two programs share only then."""
    yield from _compiling(False)


@pytest.fixture
def unoptimized():
    """Compile quickly, in the slow suite as well: where large networks are run for a step or two."""
    yield from _compiling(True)


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
